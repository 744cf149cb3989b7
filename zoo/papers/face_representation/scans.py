"""Reconstructed meshes against 3D scans, which have a topology of their own (MICC Florence): align, then measure.

The protocol in common use: the scan within 95 mm of the tip of the nose, iterated closest points, the mean distance
over the distance of the outer corners of the eyes. Errors do not depend on the unit or the pose of either side.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from zoo.errors import ZooError

NOSE_TIP, EYE_CORNERS = 30, (36, 45)
"""In the 300-W order, from 0."""


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation (3, 3) and shift (3,) that bring (n, 3) points closest to others (Umeyama 1991).

    `scale * source @ rotation.T + shift`; no reflection.
    """
    mean_s, mean_t = source.mean(axis=0), target.mean(axis=0)
    s, t = source - mean_s, target - mean_t
    u, d, vt = np.linalg.svd(t.T @ s / len(s))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float((d * sign).sum() / max(s.var(axis=0).sum(), 1e-12))
    return scale, rotation, mean_t - scale * mean_s @ rotation.T


def scan_errors(
    mesh: np.ndarray, mesh_landmarks: np.ndarray, scan: np.ndarray, normals: np.ndarray,
    scan_landmarks: dict[int, np.ndarray], radius: float = 95.0, iterations: int = 50,
) -> dict[str, float]:  # fmt: skip
    """Mean distances of a mesh from a scan, shares of the distance of the outer corners of the eyes.

    Args:
        mesh: (V, 3) predicted vertices in any unit and pose. mesh_landmarks: (68,) which of them are the landmarks.
        scan: (S, 3) points. normals: (S, 3) of unit length.
        scan_landmarks: number in the 300-W order (from 0) to a point on the scan; the outer corners of the eyes, the
            tip of the nose and at least one more off their plane's line (a corner of the mouth).
        radius: what is farther from the tip of the nose is left out, on both sides, in the scan's unit.
        iterations: of closest points, at most.

    Returns `point` (to the nearest point of the scan) and `plane` (to its tangent plane).
    """
    missing = [number for number in (NOSE_TIP, *EYE_CORNERS) if number not in scan_landmarks]
    if missing or len(scan_landmarks) < 4:
        raise ZooError(
            "A scan needs four landmarks or more, with the outer corners of the eyes (37, 46) and the tip of the nose "
            f"(31) among them; there are {', '.join(str(number + 1) for number in sorted(scan_landmarks)) or 'none'}."
        )
    numbers = sorted(scan_landmarks)
    marks = np.stack([scan_landmarks[number] for number in numbers])
    scale, rotation, shift = similarity(mesh[mesh_landmarks[numbers]], marks)
    moved = scale * mesh @ rotation.T + shift
    near = np.linalg.norm(scan - scan_landmarks[NOSE_TIP], axis=1) <= radius
    if near.sum() < 10:
        raise ZooError(f"Only {near.sum()} points of the scan lie within {radius:g} of the nose: is its unit mm?")
    # The part of the mesh is chosen once, so that each round compares the same vertices.
    moved = moved[np.linalg.norm(moved - scan_landmarks[NOSE_TIP], axis=1) <= radius]
    points, across = scan[near], normals[near]
    tree = cKDTree(points)
    before = np.inf
    for _ in range(iterations):
        distance, index = tree.query(moved)
        if before - distance.mean() < 1e-6 * before:
            break
        before = distance.mean()
        scale, rotation, shift = similarity(moved, points[index])
        moved = scale * moved @ rotation.T + shift
    distance, index = tree.query(moved)
    plane = np.abs(((moved - points[index]) * across[index]).sum(axis=1))
    eyes = np.linalg.norm(scan_landmarks[EYE_CORNERS[0]] - scan_landmarks[EYE_CORNERS[1]])
    return {"point": float(distance.mean() / eyes), "plane": float(plane.mean() / eyes)}
