"""The pictures of fractal pre-training: what classes look like, and what the model finds in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

Look = Callable[[int], np.ndarray]
_SHOWN = 5


def draw_classes(look: Look, count: int, columns: int = 10) -> Figure:
    """A sheet of the first `count` classes; `look(k)` gives the (h, h) shares of class k."""
    rows = -(-count // columns)
    figure, axes = _grid(rows, columns, (columns, 1.15 * rows))
    for label, axis in enumerate(axes.flat):
        if label < count:
            _fractal(axis, look(label))
            axis.set_title(str(label), fontsize=8, pad=2, y=1)
    return figure


def draw_predictions(
    images: Tensor, labels: Tensor, scores: Tensor, mean: Sequence[float], std: Sequence[float], look: Look | None
) -> Figure:
    """One row a picture: the picture with its true classes, then the classes that the model scores highest.

    Args:
        images: (B, 3, H, W) as the model gets them; labels: (B, K) or (B,), -1 for none.
        scores: (B, C) from 0 to 1. Right ones are titled green, wrong ones red.
        look: gives the (h, h) shares of a class; None writes its number alone.
    """
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pictures = (images.detach().float().cpu() * scale + shift).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    shown = min(_SHOWN, scores.shape[1])
    top = scores.detach().float().cpu().topk(shown, dim=1)
    size = (1.35 * (shown + 1) + 0.6, 1.7 * len(pictures))
    figure, axes = _grid(len(pictures), shown + 1, size, width_ratios=[1.2] + [1] * shown)
    for row, picture in enumerate(pictures):
        true = {label for label in labels[row].reshape(-1).tolist() if label >= 0}
        axes[row, 0].imshow(picture)
        axes[row, 0].set_title("in it: " + (", ".join(map(str, sorted(true))) or "none"), fontsize=8, y=1)
        for place in range(shown):
            label, score = int(top.indices[row, place]), float(top.values[row, place])
            axis = axes[row, place + 1]
            if look is not None:
                _fractal(axis, look(label))
            colour = "tab:green" if label in true else "tab:red"
            axis.set_title(f"{label}: {score:.0%}", fontsize=8, color=colour, y=1)
    return figure


def _grid(rows: int, columns: int, size: tuple[float, float], **spec: Any) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches with bare axes. Spaces are set: to find them, `tight_layout`, takes a second for 40.

    So are the heights of titles (y=1): matplotlib would measure the ticks that are not there.
    """
    spec |= {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 1 - 0.25 / size[1], "wspace": 0.06, "hspace": 0.2}
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, gridspec_kw=spec)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _fractal(axis: Axes, shares: np.ndarray) -> None:
    # Square root: most of a fractal's cells hold few of its points.
    image = colormaps["viridis"](np.sqrt(shares))
    image[shares == 0] = (0.06, 0.06, 0.08, 1)
    axis.imshow(image)
