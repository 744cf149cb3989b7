"""The picture of DropPos: an image, its visible patches without their places, and where the model puts them."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from zoo.nn.patches import patchify
from zoo.papers.droppos.masking import Masks

_GAP = 0.92  # patches are drawn a little smaller than their cell


def draw_positions(images: Tensor, masks: Masks, logits: Tensor, patch_size: int, max_images: int = 4) -> Figure:
    """One row an image, three columns.

    1. the image; 2. what the encoder gets: patches that keep their position in place, the others (outlined) lined up
    beside without one; 3. the same patches where the model puts them: green right, red
    wrong, the right and sure ones on top.

    Args:
        images: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.
        masks: the draws; logits: (B, V, N).
    """
    images, logits = images.detach().float().cpu(), logits.detach().float().cpu()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    images = (images * std + mean).clamp(0, 1)
    count, side = min(max_images, len(images)), images.shape[-1] // patch_size
    patches = patchify(images, patch_size).unflatten(-1, (images.shape[1], patch_size, patch_size))
    patches = patches.permute(0, 1, 3, 4, 2).numpy()
    visible, dropped = masks.visible.cpu(), masks.position_dropped.cpu()
    confidence, guess = logits.softmax(-1).max(-1)

    tray = int(np.ceil(dropped[0].sum().item() / side)) + 0.6 if dropped.any() else 0.0
    widths = [side, side + tray, side]
    figure, axes = plt.subplots(
        count, 3, figsize=(2.3 * sum(widths) / side, 2.4 * count), squeeze=False, width_ratios=widths
    )
    for row in range(count):
        original, given, placed = axes[row]
        original.imshow(images[row].permute(1, 2, 0).numpy(), extent=(0, side, side, 0))
        outlined = [index for index in range(visible.shape[1]) if dropped[row, index]]
        for slot, index in enumerate(outlined):
            column = side + 0.6 + slot // side
            _tile(given, patches[row, visible[row, index]], column, slot % side, "tab:orange")
        correct = 0
        for index in torch.argsort(confidence[row] + (guess[row] == visible[row])).tolist():
            cell, at = int(visible[row, index]), int(guess[row, index])
            patch = patches[row, cell]
            if dropped[row, index]:
                correct += at == cell
                _tile(placed, patch, at % side, at // side, "tab:green" if at == cell else "tab:red")
            else:
                _tile(given, patch, cell % side, cell // side, None)
                _tile(placed, patch, cell % side, cell // side, None)
        placed.set_xlabel(f"{correct} of {len(outlined)} placed right", fontsize=9)
        for axis, width in zip(axes[row], widths, strict=True):
            axis.add_patch(Rectangle((0, 0), side, side, fill=False, color="0.8", linewidth=0.8))
            axis.set(xlim=(-0.1, width + 0.1), ylim=(side + 0.1, -0.1), aspect="equal", xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
    titles = (
        "image",
        "what the encoder gets\n(orange: position dropped)",
        "where the model puts it\n(green: right)",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    return figure


def _tile(axis: plt.Axes, patch: np.ndarray, column: float, row: float, colour: str | None) -> None:
    pad = (1 - _GAP) / 2
    extent = (column + pad, column + 1 - pad, row + 1 - pad, row + pad)
    axis.imshow(patch, extent=extent, zorder=2, vmin=0, vmax=1)
    if colour:
        frame = Rectangle((column + pad, row + pad), _GAP, _GAP, fill=False, color=colour, linewidth=1.6, zorder=3)
        axis.add_patch(frame)
