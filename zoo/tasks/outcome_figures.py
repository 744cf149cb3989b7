"""Pictures of outcomes: confusion matrix, calibration, found against true, spread over the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def draw_confusion(
    matrix: np.ndarray, classes: Sequence[str], what: str = "held-out samples", numbers: str = "count"
) -> Figure:
    """Counts (C, C), the true class in rows, coloured by the share of the row.

    Up to 20 classes each cell says its "count", or its "share" of the row in per cent where counts are too long.
    """
    size = len(classes)
    side = min(12.0, 2.5 + 0.45 * size)
    figure, axis = plt.subplots(figsize=(side + 1, side))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if size <= 20:
        for i, j in np.ndindex(size, size):
            if matrix[i, j]:
                text = f"{100 * share[i, j]:.0f}" if numbers == "share" else matrix[i, j]
                axis.text(j, i, text, ha="center", va="center", fontsize=8, color="w" if share[i, j] > 0.5 else "k")
    short = [name if len(name) <= 18 else f"{name[:17]}…" for name in classes]
    if size <= 40:
        axis.set_xticks(range(size), short, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(size), short, fontsize=8)
    axis.set(xlabel="found", ylabel="true", title=f"Confusion matrix, {what}")
    figure.colorbar(image, ax=axis, label="share of the true class", fraction=0.046)
    figure.tight_layout()
    return figure


def draw_calibration(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> Figure:
    """Accuracy over confidence in bins of equal width, and how many samples each has."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    at = np.clip((confidence * bins).astype(int), 0, bins - 1)
    counts = np.bincount(at, minlength=bins)
    there = counts > 0
    centre = np.bincount(at, confidence, bins)[there] / counts[there]
    accuracy = np.bincount(at, right, bins)[there] / counts[there]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(4.5, 5.2), height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfectly calibrated")
    top.plot(centre, accuracy, marker="o", label="this model")
    top.set(ylabel="share that is right", ylim=(0, 1.02), title="Calibration: is it as sure as it should be?")
    top.legend(fontsize=8)
    bottom.bar((np.arange(bins) + 0.5) / bins, counts, width=0.9 / bins, color="0.6")
    bottom.set(xlabel="confidence (largest probability)", ylabel="samples", xlim=(0, 1))
    figure.tight_layout()
    return figure


def draw_numbers(target: np.ndarray, prediction: np.ndarray) -> Figure:
    """Predicted over true numbers, with the diagonal."""
    figure, axis = plt.subplots(figsize=(4.5, 4.5))
    low, high = min(target.min(), prediction.min()), max(target.max(), prediction.max())
    axis.plot([low, high], [low, high], color="0.6", linestyle="--")
    axis.scatter(target, prediction, s=12, alpha=0.5)
    axis.set(xlabel="true", ylabel="found", title="Held-out samples")
    figure.tight_layout()
    return figure


def draw_spread(values: Mapping[str, Any]) -> Figure:
    """A box for each score over the samples, each with an axis of its own."""
    finite = {name: v[np.isfinite(v)] for name, v in values.items()}
    finite = {name: v for name, v in finite.items() if len(v)}
    figure, axes = plt.subplots(1, max(1, len(finite)), figsize=(1.7 * max(1, len(finite)) + 1, 3.4), squeeze=False)
    for axis, (name, chosen) in zip(axes[0], finite.items(), strict=False):
        axis.boxplot(chosen, widths=0.5, showmeans=True)
        spots = np.random.default_rng(0).uniform(0.85, 1.15, len(chosen))
        axis.scatter(spots, chosen, s=8, alpha=0.4)
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
    figure.suptitle("Spread over the held-out samples", fontsize=10)
    figure.tight_layout()
    return figure


def draw_labels(
    classes: Sequence[str], rows: Mapping[str, np.ndarray], positives: np.ndarray, thresholds: np.ndarray
) -> Figure:
    """Scores of each label as points on a line, best first; with how many samples have it and its best threshold."""
    order = np.argsort(np.nan_to_num(next(iter(rows.values())), nan=-1))[-40:]
    figure, axis = plt.subplots(figsize=(7.5, 1.4 + 0.28 * len(order)))
    for (name, values), marker in zip(rows.items(), "os^D", strict=False):
        axis.plot(values[order], np.arange(len(order)), marker, label=name, markersize=5, alpha=0.8)
    text = [f"{classes[k]} ({positives[k]}; from {thresholds[k]:.2f})" for k in order]
    axis.set_yticks(range(len(order)), text, fontsize=8)
    axis.set(xlim=(-0.02, 1.02), xlabel="score", title="Labels (held-out samples that have it; best threshold)")
    axis.grid(axis="both", alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16 - 0.3 / len(order)), ncol=2, frameon=False)
    return figure
