"""What landmark errors are divided by: the published normalisations."""

from __future__ import annotations

import numpy as np

from zoo.errors import ZooError

EYES = {68: ((36, 39), (42, 45)), 98: ((60, 64), (68, 72)), 29: ((8, 10), (11, 9)), 19: ((6, 8), (9, 11))}
"""(outer, inner), (inner, outer) corners of the eyes by number of landmarks: 300-W, WFLW, COFW, AFLW-19."""


def box_around(points: np.ndarray) -> np.ndarray:
    """(n, K, 2) to their bounding boxes (n, 4), left, top, right, bottom; NaN points do not count."""
    return np.concatenate([np.nanmin(points, axis=1), np.nanmax(points, axis=1)], axis=1)


def error_scale(points: np.ndarray, how: str, boxes: np.ndarray | None) -> np.ndarray:
    """What landmark errors are divided by, (n,) in the unit of the points.

    Args:
        points: (n, K, 2) true landmarks.
        boxes: (n, 4) left, top, right, bottom; None takes the landmarks' bounding box.
        how: "inter_ocular" (outer corners of the eyes: 300-W, WFLW, COFW), "inter_pupil" (means of each eye's corners),
            "box_diagonal" (AFLW) or "box_size" (root of the box's area).
    """
    if how in ("inter_ocular", "inter_pupil"):
        if points.shape[1] not in EYES:
            raise ZooError(f"No eye corners are known for {points.shape[1]} landmarks: choose a box normalisation.")
        (outer, inner), (other_inner, other_outer) = EYES[points.shape[1]]
        if how == "inter_ocular":
            return np.linalg.norm(points[:, outer] - points[:, other_outer], axis=-1)
        eyes = points[:, [outer, inner]].mean(axis=1) - points[:, [other_inner, other_outer]].mean(axis=1)
        return np.linalg.norm(eyes, axis=-1)
    box = boxes if boxes is not None else box_around(points)
    side = box[:, 2:] - box[:, :2]
    if how == "box_diagonal":
        return np.linalg.norm(side, axis=1)
    if how == "box_size":
        return np.sqrt(side.prod(axis=1))
    raise ZooError(f"normalisation is inter_ocular, inter_pupil, box_diagonal or box_size, not {how!r}.")
