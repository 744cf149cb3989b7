"""Pictures of image segmentation: what is true and what is found, as outlines or colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from zoo.nn.segmentation import IGNORE


def draw_masks(
    images: Tensor, masks: Tensor, probabilities: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """One row an image: with the true outline, with the found one, and the probability.

    `images` (B, 3, H, W) as the model gets them; `masks` and `probabilities` (B, 1, H, W).
    """
    pictures = _shown(images, mean, std)
    figure, axes = plt.subplots(len(pictures), 3, figsize=(9, 3.1 * len(pictures)), squeeze=False)
    for row, picture in enumerate(pictures):
        true, found = (part[row, 0].float().cpu().numpy() for part in (masks, probabilities))
        for column, (outline, colour) in enumerate(((true, "lime"), (found, "red"))):
            axes[row, column].imshow(picture)
            if outline.min() < 0.5 <= outline.max():
                axes[row, column].contour(outline, [0.5], colors=colour, linewidths=1.2)
        axes[row, 2].imshow(found, vmin=0, vmax=1, cmap="magma")
    for axis, title in zip(axes[0], ("annotated", "found", "probability"), strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    return figure


def palette(classes: int) -> np.ndarray:
    """(classes, 3) uint8 colours, black first, as PASCAL VOC has them: a class's bits spread over the channels."""
    numbers = np.arange(classes)
    colours = np.zeros((classes, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel)) & 1).astype(np.uint8) << (7 - bit)
    return colours


def draw_classes(
    images: Tensor, true: Tensor, found: Tensor, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """One row an image: alone, with the true classes over it, with the found ones, and where they differ.

    `images` (B, 3, H, W) as the model gets them; `true` and `found` (B, H, W), `IGNORE` where a true label does not
    count, which is grey.
    """
    pictures = _shown(images, mean, std)
    colours = palette(len(classes))
    figure, axes = plt.subplots(len(pictures), 4, figsize=(12, 3.1 * len(pictures)), squeeze=False)
    titles = ("picture", "annotated", "found", "wrong (white), not judged (grey)")
    for row, picture in enumerate(pictures):
        labels, guess = true[row].cpu().numpy(), found[row].cpu().numpy()
        known = labels != IGNORE
        axes[row, 0].imshow(picture)
        for column, part in ((1, labels), (2, guess)):
            over = colours[np.where(part == IGNORE, 0, part)] / 255
            mixed = 0.45 * picture + 0.55 * over
            mixed[part == 0] = picture[part == 0]  # the first class is mostly background: left as it is
            mixed[part == IGNORE] = 0.5
            axes[row, column].imshow(mixed)
        axes[row, 3].imshow(np.where(known, (labels != guess).astype(float), 0.4), vmin=0, vmax=1, cmap="gray")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    there = sorted({int(v) for v in torch.cat([true.cpu().flatten(), found.cpu().flatten()]).unique()} - {0, IGNORE})
    handles = [Patch(color=colours[k] / 255, label=classes[k]) for k in there[:20]]
    if handles:
        figure.legend(handles=handles, loc="lower center", ncol=min(6, len(handles)), fontsize=8, frameon=False)
    figure.tight_layout(pad=0.4, rect=(0, 0.02 + 0.03 * -(-len(handles) // 6), 1, 1))
    return figure


def _shown(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (images.float().cpu() * scale + shift).clamp(0, 1).permute(0, 2, 3, 1).numpy()
