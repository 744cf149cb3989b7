"""Pictures of the tasks on MRI volumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

_COLOURS = ((1.0, 0.75, 0.1), (0.2, 0.6, 1.0), (0.9, 0.15, 0.15))  # TC, WT, ET


def tumour_slice(seg: Tensor) -> int:
    """Where along the last axis of (3, H, W, D) the whole tumour is largest; the middle if there is none."""
    counts = seg[1].float().sum((0, 1))
    return int(counts.argmax()) if counts.max() > 0 else seg.shape[-1] // 2


def draw_segmentation(volumes: Mapping[str, Tensor], truth: Tensor, found: Tensor) -> Figure:
    """One subject (batches of 1): a slice of each sequence, the true and the predicted regions over the last."""
    z = tumour_slice(truth[0])
    images = {name: volume[0, 0, :, :, z].float().cpu().numpy().T for name, volume in volumes.items()}
    last = list(images.values())[-1]
    panels: list[tuple[str, Any, Any]] = [(name, image, None) for name, image in images.items()]
    panels += [("truth", last, truth[0]), ("predicted", last, found[0])]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.4 * len(panels), 2.7), squeeze=False)
    for axis, (title, image, regions) in zip(axes[0], panels, strict=True):
        axis.imshow(image, cmap="gray")
        if regions is not None:
            for index in (1, 0, 2):
                mask = regions[index, :, :, z].float().cpu().numpy().T
                overlay = np.zeros((*mask.shape, 4))
                overlay[..., :3], overlay[..., 3] = _COLOURS[index], 0.55 * mask
                axis.imshow(overlay)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.text(0.5, 0.01, "blue: whole tumour, yellow: core, red: enhancing", ha="center", fontsize=8)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def draw_survival(time: np.ndarray, event: np.ndarray, risk: np.ndarray, unit: str = "years") -> Figure:
    """Kaplan-Meier curves of the subjects below and above the median risk, with the log-rank test between them."""
    from zoo.nn.survival import kaplan_meier, log_rank

    high = risk > np.median(risk)
    p = log_rank(time, event, high)
    figure, axis = plt.subplots(figsize=(5, 3.6))
    for group, name, colour in ((~high, "low risk", "tab:blue"), (high, "high risk", "tab:red")):
        if not group.any():
            continue
        times, survival = kaplan_meier(time[group], event[group])
        axis.step(times, survival, where="post", color=colour, label=f"{name} (n = {int(group.sum())})")
        censored = time[group][event[group] == 0]
        heights = survival[np.searchsorted(times, censored, side="right") - 1]
        axis.plot(censored, heights, "|", color=colour, markersize=7)
    axis.set(xlabel=f"time ({unit})", ylabel="survival", ylim=(0, 1.02), xlim=(0, None))
    shown = "not defined" if np.isnan(p) else f"{p:.3g}"
    axis.set_title(f"split at the median risk; log-rank p {shown}", fontsize=10)
    axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return figure
