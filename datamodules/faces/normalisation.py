"""What landmark errors are divided by: the published normalisations."""

from __future__ import annotations

import numpy as np

from zoo.errors import ZooError

EYES = {68: ((36, 39), (42, 45)), 98: ((60, 64), (68, 72)), 29: ((8, 10), (11, 9)), 19: ((6, 8), (9, 11))}
"""(outer, inner), (inner, outer) corners of the eyes by number of landmarks: 300-W, WFLW, COFW, AFLW-19."""


def box_around(points: np.ndarray) -> np.ndarray:
    """(n, K, 2) to their bounding boxes (n, 4), left, top, right, bottom; NaN points do not count."""
    return np.concatenate([np.nanmin(points, axis=1), np.nanmax(points, axis=1)], axis=1)


def error_scale(points: np.ndarray, how: str, boxes: np.ndarray | None, sizes: np.ndarray | None = None) -> np.ndarray:
    """What landmark errors are divided by, (n,) in the unit of the points.

    Args:
        points: (n, K, 2) true landmarks.
        boxes: (n, 4) left, top, right, bottom; None takes the landmarks' bounding box.
        how: "inter_ocular" (outer corners of the eyes: 300-W, WFLW, COFW), "inter_pupil" (means of each eye's corners),
            "box_diagonal" (AFLW), "box_size" (root of the box's area), "image_diagonal" of the pictures, or "pair:A-B",
            the distance of two points, counted from 0.
        sizes: (n, 2) width and height of the pictures, for "image_diagonal".
    """
    if how.startswith("pair:"):
        return _pair_distance(points, how)
    if how == "image_diagonal":
        if sizes is None:
            raise ZooError("The pictures' sizes are not known: choose another normalisation than image_diagonal.")
        return np.linalg.norm(sizes, axis=1)
    if how in ("inter_ocular", "inter_pupil"):
        if points.shape[1] not in EYES:
            raise ZooError(
                f"No eye corners are known for {points.shape[1]} landmarks: choose box_diagonal or pair:A-B."
            )
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
    raise ZooError(
        "normalisation is inter_ocular, inter_pupil, box_diagonal, box_size, image_diagonal or pair:A-B (two points), "
        f"not {how!r}."
    )


def _pair_distance(points: np.ndarray, how: str) -> np.ndarray:
    words = how.removeprefix("pair:").split("-")
    if len(words) != 2 or not all(word.isdigit() and int(word) < points.shape[1] for word in words):
        raise ZooError(f"normalisation pair:A-B has two points from 0 to {points.shape[1] - 1}, not {how!r}.")
    first, second = (points[:, int(word)] for word in words)
    distance = np.linalg.norm(first - second, axis=-1)
    if not (distance > 0).all():
        raise ZooError(
            f"The points of {how} are not known, or at one place, in {int((~(distance > 0)).sum())} pictures."
        )
    return distance
