"""How far runs go against the rules and how they move: for property checks and statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.driving.agents import STEP, Run, motion
from zoo.driving.maps import VectorMap
from zoo.driving.scenes import Scene

Array = NDArray[np.float64]
PERCENTILES = (5, 25, 50, 75, 95)


def worst(vector_map: VectorMap, runs: Sequence[Run], every: int = 5) -> dict[str, float]:
    """The largest value over kept runs of each quantity that the rules bound.

    speed (m/s), acceleration and lateral acceleration (m/s^2), curvature (1/m), jump (m between rows beyond what the
    top speed allows), path and lane (m from the followed path, and from the nearest centre line of the map, deformed
    where the run is; of each `every`-th row).
    """
    found = dict.fromkeys(("speed", "acceleration", "lateral", "curvature", "jump", "path", "lane"), 0.0)
    kept = [run for run in runs if run.rejected is None]
    for run in kept:
        values = {name: float(np.abs(value).max()) for name, value in motion(run.xy).items()}
        values["jump"] = float(np.hypot(*np.diff(run.xy, axis=0).T).max()) / STEP
        values["path"] = float(_nearest(run.xy[::every], [run.path]).max())
        lanes = [lane.points[:, :2] for lane in vector_map.lanes.values()]
        if run.augmentation:
            moved = run.augmentation.apply(np.concatenate(lanes))
            lanes = np.split(moved, np.cumsum([len(points) for points in lanes])[:-1])
        values["lane"] = float(_nearest(run.xy[::every], lanes).max())
        found = {name: max(found[name], values[name]) for name in found}
    return found


def _nearest(points: Array, lines: Iterable[Array]) -> Array:
    """(N,) metres from points (N, 2) to the nearest of polylines (M, 2); only segments near each point's box count."""
    lines = list(lines)
    start = np.concatenate([line[:-1] for line in lines])
    step = np.concatenate([np.diff(line, axis=0) for line in lines])
    low, high = points.min(0) - 20, points.max(0) + 20
    end = start + step
    near = (np.minimum(start, end) <= high).all(1) & (np.maximum(start, end) >= low).all(1)
    if not near.any():
        return np.full(len(points), np.inf)
    start, step = start[near], step[near]
    relative = points[:, None] - start
    t = np.clip((relative * step).sum(-1) / np.maximum((step**2).sum(1), 1e-12), 0, 1)
    return np.sqrt(np.square(relative - t[..., None] * step).sum(-1).min(1))


def heading_change(xy: Array) -> float:
    """Degrees by which the heading turns over a scene, left positive: first to last half second."""
    a, b = xy[5] - xy[0], xy[-1] - xy[-6]
    return float(np.degrees(np.arctan2(a[0] * b[1] - a[1] * b[0], a @ b)))


def statistics(scenes: Sequence[Scene], percentiles: Sequence[int] = PERCENTILES) -> dict[str, list[float]]:
    """Percentiles of the agents' speed (m/s), acceleration and lateral acceleration (m/s^2) and curvature (1/m) over
    all rows, and of the turn (degrees) over scenes."""
    values: dict[str, list[Array]] = {}
    for scene in scenes:
        for name, value in motion(scene.agent.xy).items():
            values.setdefault(name, []).append(value)
        values.setdefault("turn", []).append(np.array([heading_change(scene.agent.xy)]))
    return {name: [float(v) for v in np.percentile(np.concatenate(many), percentiles)] for name, many in values.items()}
