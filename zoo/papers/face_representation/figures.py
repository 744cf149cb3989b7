"""The pictures: prototypes' nearest faces, predicted landmarks, a sheet of faces, few-shot curves. No names in any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor


def draw_sheet(images: Sequence[Tensor], columns: int = 12) -> Figure:
    """uint8 (3, S, S) pictures side by side."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns, rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(_pixels(image))
    figure.subplots_adjust(0, 0, 1, 1, 0.03, 0.03)
    return figure


def draw_prototypes(images: Tensor, scores: np.ndarray, prototypes: int = 8, faces: int = 8) -> Figure:
    """One row a prototype, the best used first: the faces nearest to it.

    Two prototypes may lie close together: one whose nearest faces are half shown already is passed over, as long as
    others are left.

    Args:
        images: (n, 3, S, S) uint8. scores: (n, K) cosines.
    """
    used = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    order = np.argsort(-used, kind="stable")
    nearest = {row: np.argsort(-scores[:, row], kind="stable")[:faces] for row in order}
    chosen: list[int] = []
    for row in order:
        if all(2 * len(np.intersect1d(nearest[row], nearest[other])) < faces for other in chosen):
            chosen.append(row)
    chosen = (chosen + [row for row in order if row not in chosen])[:prototypes]
    figure, axes = plt.subplots(
        len(chosen), faces, figsize=(faces, 1.2 * len(chosen) + 0.4), squeeze=False, layout="constrained"
    )
    for row, prototype in enumerate(chosen):
        for column in range(faces):
            axes[row, column].axis("off")
            if column < len(nearest[prototype]):
                index = nearest[prototype][column]
                axes[row, column].imshow(_pixels(images[index]))
                axes[row, column].set_title(f"{scores[index, prototype]:.2f}", fontsize=7, pad=2)
    figure.suptitle(
        f"Faces nearest to {len(chosen)} of the most used of {scores.shape[1]} prototypes (cosine)", fontsize=9
    )
    return figure


def draw_landmarks(images: Sequence[Tensor], truth: np.ndarray, predictions: Mapping[str, np.ndarray]) -> Figure:
    """One row an encoder, one column a picture; true points white, predicted ones coloured, a line from one to other.

    Args:
        truth, predictions: (n, K, 2) shares of the image.
    """
    sides = list(predictions)
    figure, axes = plt.subplots(
        len(sides), len(images), figsize=(2.2 * len(images), 2.35 * len(sides)), squeeze=False, layout="constrained"
    )
    for row, side in enumerate(sides):
        colour = "tab:red" if row else "limegreen"
        for column, image in enumerate(images):
            axis, size = axes[row, column], image.shape[-1]
            true, found = truth[column] * size, predictions[side][column] * size
            axis.imshow(_pixels(image), extent=(0, size, size, 0), interpolation="bilinear")
            axis.plot(*np.stack([true, found]).transpose(2, 0, 1), color=colour, linewidth=0.7, zorder=2)
            axis.scatter(*true.T, s=5, c="white", edgecolors="black", linewidths=0.4, zorder=3)
            axis.scatter(*found.T, s=5, c=colour, zorder=4)
            axis.set(xticks=[], yticks=[], xlim=(0, size), ylim=(size, 0))  # points may lie outside of the picture
            error = np.nanmean(np.linalg.norm(found - true, axis=-1))
            axis.set_title(f"{error:.1f} px", fontsize=8, pad=2)
            if not column:
                axis.set_ylabel(side, fontsize=10)
    return figure


def draw_curves(scores: Mapping[str, Any], headlines: Mapping[str, Any]) -> Figure:
    """Every task's headline number over the number of labels, one line an encoder."""
    tasks = list(next(iter(scores.values())))
    figure, axes = plt.subplots(1, len(tasks), figsize=(3 * len(tasks) + 0.5, 3.2), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        ticks: list[float] = []
        for side, of_side in scores.items():
            shots = of_side.get(task, {})
            if shots:
                ticks = [float(shot) for shot in shots]
                means = [np.mean(values) for values in shots.values()]
                spreads = [np.std(values) for values in shots.values()]
                axis.errorbar(ticks, means, spreads, marker="o", ms=3, capsize=2, label=side)
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        arrow = "higher is better" if headlines[task].higher else "lower is better"
        axis.set_title(f"{headlines[task].title}\n({arrow})", fontsize=8)
        axis.set_xlabel("labels" if ticks and min(ticks) >= 2 else "labels, or share of them", fontsize=8)
        axis.tick_params(labelsize=7)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=8, frameon=False)
    return figure


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).cpu().numpy()
