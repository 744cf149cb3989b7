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

    Args:
        images: (n, 3, S, S) uint8. scores: (n, K) cosines.
    """
    used = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    chosen = np.argsort(-used, kind="stable")[:prototypes]
    figure, axes = plt.subplots(len(chosen), faces, figsize=(faces, 1.12 * len(chosen)), squeeze=False)
    for row, prototype in enumerate(chosen):
        nearest = np.argsort(-scores[:, prototype], kind="stable")[:faces]
        for column in range(faces):
            axes[row, column].axis("off")
            if column < len(nearest):
                axes[row, column].imshow(_pixels(images[nearest[column]]))
                axes[row, column].set_title(f"{scores[nearest[column], prototype]:.2f}", fontsize=7, pad=1)
    figure.suptitle(
        f"Faces nearest to the {len(chosen)} most used of {scores.shape[1]} prototypes (cosine)", fontsize=9
    )
    figure.tight_layout(pad=0.3, rect=(0, 0, 1, 0.97))
    return figure


def draw_landmarks(images: Sequence[Tensor], truth: np.ndarray, predictions: Mapping[str, np.ndarray]) -> Figure:
    """One row an encoder, one column a picture; true points white, predicted ones coloured.

    Args:
        truth, predictions: (n, K, 2) shares of the image.
    """
    sides = list(predictions)
    figure, axes = plt.subplots(len(sides), len(images), figsize=(1.6 * len(images), 1.75 * len(sides)), squeeze=False)
    for row, side in enumerate(sides):
        for column, image in enumerate(images):
            axis, size = axes[row, column], image.shape[-1]
            axis.imshow(_pixels(image), extent=(0, size, size, 0))
            axis.scatter(*(truth[column].T * size), s=5, c="white", edgecolors="black", linewidths=0.3)
            axis.scatter(*(predictions[side][column].T * size), s=4, c="tab:red" if row else "tab:green")
            axis.set(xticks=[], yticks=[])
            if not column:
                axis.set_ylabel(side, fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


def draw_curves(scores: Mapping[str, Any], headlines: Mapping[str, Any]) -> Figure:
    """Every task's headline number over the number of labels, one line an encoder."""
    tasks = list(next(iter(scores.values())))
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.1 * len(tasks), 3), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for side, of_side in scores.items():
            shots = of_side.get(task, {})
            if shots:
                x = [float(shot) for shot in shots]
                means = [np.mean(values) for values in shots.values()]
                axis.errorbar(x, means, [np.std(values) for values in shots.values()], marker="o", ms=3, label=side)
        axis.set_xscale("log")
        arrow = "higher is better" if headlines[task].higher else "lower is better"
        axis.set_title(f"{headlines[task].title}\n({arrow})", fontsize=8)
        axis.set_xlabel("labels", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).cpu().numpy()
