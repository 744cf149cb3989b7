"""How well an embedding finds samples of the same label: recall at k and mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import ZooError
from zoo.tasks.outcomes import SampleOutcome

_CHUNK = 512


def retrieval_outcome(features: np.ndarray, labels: Sequence[str], ks: Sequence[int] = (1, 5, 10)) -> SampleOutcome:
    """Every sample once as the query, all others ranked by cosine similarity.

    Args:
        features: (n, D). labels: (n,). ks: of "recall@k", whether one of the first k has the query's label (Oh Song et
            al. 2016).

    "mAP@R" is the mean of the precisions at the first R places that are right, R being how many others have the label
    (Musgrave et al. 2020). A query whose label nobody else has does not count. Raises `ZooError` if none is left.
    """
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    others = np.bincount(codes)[codes] - 1
    if not (others > 0).any():
        raise ZooError("No label has two samples, so nothing can be found again.")
    ranked = neighbours(features, max(max(ks), int(others.max())))
    right = codes[ranked] == codes[:, None]
    values = {f"recall@{k}": right[:, :k].any(1).astype(float) for k in ks}
    places = np.arange(1, right.shape[1] + 1)
    counted = right & (places <= others[:, None])
    precision = right.cumsum(1) / places
    values["mAP@R"] = (counted * precision).sum(1) / np.maximum(others, 1)
    for score in values.values():
        score[others == 0] = np.nan
    return SampleOutcome(len(codes), f"recall@{ks[0]}", values=values)


def chance(labels: Sequence[str]) -> float:
    """Recall at 1 of a random neighbour, over the queries that count."""
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    others = np.bincount(codes)[codes] - 1
    return float((others[others > 0] / (len(codes) - 1)).mean())


def neighbours(features: np.ndarray, most: int) -> np.ndarray:
    """(n, k) indices of the most similar others, nearest first; k is `most` or all others, if these are fewer."""
    unit = np.asarray(features, np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    count = min(most, len(unit) - 1)
    found = np.empty((len(unit), count), dtype=np.int64)
    for start in range(0, len(unit), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(unit)))
        similarity = unit[rows] @ unit.T
        similarity[rows - start, rows] = -np.inf
        if count < len(unit) - 1:
            near = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
            order = np.argsort(-np.take_along_axis(similarity, near, 1), axis=1, kind="stable")
            found[rows] = np.take_along_axis(near, order, 1)
        else:
            found[rows] = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return found


def draw_neighbours(files: Sequence[Path], labels: Sequence[str], ranked: np.ndarray, queries: Sequence[int]) -> Any:
    """One row a query: the picture, then its neighbours, framed green where the label is the same, else red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    columns = min(7, ranked.shape[1]) + 1
    figure, axes = plt.subplots(len(queries), columns, figsize=(1.3 * columns, 1.5 * len(queries)), squeeze=False)
    for row, query in zip(axes, queries, strict=True):
        for place, (axis, at) in enumerate(zip(row, [query, *ranked[query, : columns - 1]], strict=True)):
            with Image.open(files[at]) as image:
                axis.imshow(image.convert("RGB").resize((112, 112)))
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(str(labels[at])[:16], fontsize=7)
            colour = "black" if place == 0 else "limegreen" if labels[at] == labels[query] else "red"
            for side in axis.spines.values():
                side.set(edgecolor=colour, linewidth=2.5)
    figure.tight_layout(pad=0.4)
    return figure
