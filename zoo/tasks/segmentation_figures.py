"""Pictures of image segmentation: what is true and what is found, as outlines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor


def draw_masks(
    images: Tensor, masks: Tensor, probabilities: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """One row an image: with the true outline, with the found one, and the probability.

    `images` (B, 3, H, W) as the model gets them; `masks` and `probabilities` (B, 1, H, W).
    """
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pictures = (images.float().cpu() * scale + shift).clamp(0, 1).permute(0, 2, 3, 1).numpy()
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
