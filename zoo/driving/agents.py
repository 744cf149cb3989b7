"""Rule-based drivers: a random walk over the lane graph, followed by a kinematic bicycle with pure pursuit.

The paper's own generator was not released; this one is built after what its released scenes show (desired speed 10 m/s,
slower in curves, 10 Hz, gentle acceleration). All runs of a call are driven at once; each run's draws come from
(seed, run) alone, so neither the batch nor the number of processes changes a trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.driving.deform import Augmentation
from zoo.driving.maps import VectorMap
from zoo.errors import ZooError

Array = NDArray[np.float64]
STEP = 0.1  # seconds
_DS = 0.5  # metres between points of a reference path


@dataclass(frozen=True)
class Rules:
    """How runs are driven, and what is thrown away.

    Attributes:
        desired_speed: m/s on a straight road. max_acceleration: m/s^2, for speeding up and for braking.
        max_lateral: m/s^2; sets the speed in curves. wheel_base: m. max_steer: rad.
        max_offset: metres from the (deformed) centre line at which a run is discarded.
        max_jump: a lateral acceleration above max_lateral by this factor discards a run as well.
        seconds: length of a run; one shorter than `min_seconds` (its road ended) is discarded.
        powers: strengths of the map functions; kinds: which of them (0 smooth turn, 1 double turn).
    """

    desired_speed: float = 10.0
    max_acceleration: float = 1.7
    max_lateral: float = 2.0
    wheel_base: float = 2.8
    max_steer: float = 0.6
    max_offset: float = 1.0
    max_jump: float = 1.5
    seconds: float = 25.0
    min_seconds: float = 5.0
    powers: tuple[float, ...] = (4.0, 7.0)
    kinds: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class Run:
    """One drive.

    Attributes:
        number: of the run. xy: (T, 2) metres at 10 Hz, on the augmented map if `augmentation` is given.
        path: (N, 2) the deformed centre line it followed. rejected: why it was thrown away, or None.
    """

    number: int
    xy: Array
    path: Array
    augmentation: Augmentation | None
    rejected: str | None


def drive(
    vector_map: VectorMap, numbers: Sequence[int], seed: int, augmented: bool, rules: Rules | None = None
) -> list[Run]:
    """Drives the runs `numbers`, rejected ones included. Raises `ZooError` for a map without two joined lanes."""
    rules = rules or Rules()
    starts = [lane_id for lane_id, lane in vector_map.lanes.items() if lane.successors and not lane.intersection]
    if not starts:
        raise ZooError(f"The map of {vector_map.city} has no lane that leads on: nothing can be driven on it.")
    centres, augmentations, speeds = [], [], []
    for number in numbers:
        rng = np.random.default_rng([seed, int(augmented), number])
        centre = _walk(vector_map, rng, starts, rules.seconds * rules.desired_speed + 20)
        chosen = _augmentation(rng, centre, rules) if augmented else None
        centres.append(chosen.apply(centre) if chosen else centre)
        augmentations.append(chosen)
        speeds.append(rng.uniform(0.4, 1.0))
    paths = [_even(centre, _DS) for centre in centres]
    tracks = _simulate([_smooth(path) for path in paths], np.array(speeds), rules)
    return [
        Run(number, xy, path, augmentation, _check(xy, path, rules))
        for number, xy, path, augmentation in zip(numbers, tracks, paths, augmentations, strict=True)
    ]


def _walk(vector_map: VectorMap, rng: np.random.Generator, starts: list[int], length: float) -> Array:
    """Centre line of a random walk, at least `length` metres where the road goes on that long."""
    lane = vector_map.lanes[starts[rng.integers(len(starts))]]
    parts, total = [lane.points], _length(lane.points)
    while total < length:
        ways = [successor for successor in lane.successors if successor in vector_map.lanes]
        if not ways:
            break
        lane = vector_map.lanes[ways[rng.integers(len(ways))]]
        parts.append(lane.points[1:])
        total += _length(lane.points)
    return _even(np.concatenate(parts), _DS)


def _augmentation(rng: np.random.Generator, centre: Array, rules: Rules) -> Augmentation:
    """Strength, kind and direction at random; placed so that the bend lies on the way."""
    x_ref = float(centre[:, 0].min() - rng.uniform(0, 40))
    kind, power = int(rng.choice(rules.kinds)), float(rng.choice(rules.powers))
    return Augmentation(x_ref, kind, int(rng.integers(2)), power)


def _length(points: Array) -> float:
    return float(np.hypot(*np.diff(points, axis=0).T).sum())


def _even(points: Array, spacing: float) -> Array:
    """The same line with points `spacing` metres apart."""
    steps = np.hypot(*np.diff(points, axis=0).T)
    points = points[np.concatenate([[True], steps > 1e-9])]
    along = np.concatenate([[0.0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
    wanted = np.arange(0, along[-1], spacing)
    return np.stack([np.interp(wanted, along, points[:, axis]) for axis in (0, 1)], axis=1)


def _smooth(path: Array, sigma: float = 2.0) -> Array:
    """What a driver makes of a bend: a Gaussian of `sigma` metres along the path; evenly spaced again."""
    radius = int(3 * sigma / _DS)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) * _DS / sigma) ** 2)
    ahead = path[-1] + np.arange(1, radius + 1)[:, None] * (path[-1] - path[-2])
    behind = path[0] - np.arange(radius, 0, -1)[:, None] * (path[1] - path[0])
    long = np.concatenate([behind, path, ahead])
    return _even(np.stack([np.convolve(long[:, a], kernel / kernel.sum(), "valid") for a in (0, 1)], axis=1), _DS)


def _speed_limits(path: Array, rules: Rules) -> Array:
    """Speed at each point of a path: the curve's limit, and slow enough before to brake down to it."""
    step = np.gradient(path, axis=0)
    heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    curvature = np.abs(np.gradient(heading)) / _DS
    limit = np.minimum(rules.desired_speed, np.sqrt(rules.max_lateral / np.maximum(curvature, 1e-6)))
    squared = limit**2
    for index in range(len(squared) - 2, -1, -1):
        squared[index] = min(squared[index], squared[index + 1] + 2 * 0.8 * rules.max_acceleration * _DS)
    return np.sqrt(squared)


def _simulate(paths: list[Array], share: Array, rules: Rules) -> list[Array]:
    """Bicycles along all paths at once; a run ends where its path does."""
    count, longest = len(paths), max(len(path) for path in paths)
    ends = np.array([len(path) for path in paths])
    points = np.stack([np.pad(path, ((0, longest - len(path)), (0, 0)), mode="edge") for path in paths])
    limits = np.stack([np.pad(_speed_limits(path, rules), (0, longest - len(path)), mode="edge") for path in paths])
    rows = np.arange(count)
    window = np.arange(12)
    position = points[:, 0].copy()
    first = points[rows, np.minimum(2, ends - 1)] - points[:, 0]
    heading = np.arctan2(first[:, 1], first[:, 0])
    speed, at, lived = limits[:, 0] * share, np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    tracks = [position.copy()]
    for _ in range(round(rules.seconds / STEP) - 1):
        near = np.minimum(at[:, None] + window, longest - 1)
        at = near[rows, np.square(points[rows[:, None], near] - position[:, None]).sum(-1).argmin(1)]
        ahead = np.clip(0.5 * speed, 2.5, 6.0)
        target = points[rows, np.minimum(at + (ahead / _DS).astype(np.int64) + 1, longest - 1)] - position
        distance = np.hypot(target[:, 0], target[:, 1])
        aside = np.arctan2(target[:, 1], target[:, 0]) - heading
        curvature = 2 * np.sin(aside) / np.maximum(distance, 1.0)
        steer = np.clip(np.arctan(rules.wheel_base * curvature), -rules.max_steer, rules.max_steer)
        preview = np.minimum(at + (speed * 3 * STEP / _DS).astype(np.int64) + 1, longest - 1)
        wanted = np.minimum(limits[rows, at], limits[rows, preview])
        push = np.clip((wanted - speed) / 0.4, -rules.max_acceleration, rules.max_acceleration)
        speed = np.maximum(speed + push * STEP, 0.0)
        heading = heading + speed * np.tan(steer) / rules.wheel_base * STEP
        position = position + speed[:, None] * STEP * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        lived += at + 14 < ends  # short of the end, where there is nothing left to look ahead to
        tracks.append(position.copy())
    together = np.stack(tracks, axis=1)
    return [track[: length + 1] for track, length in zip(together, lived, strict=True)]


# ---------------------------------------------------------------------- checks


def motion(xy: Array) -> dict[str, Array]:
    """Speed (m/s), acceleration and lateral acceleration (m/s^2), curvature (1/m) of positions (T, 2) at 10 Hz."""
    velocity = np.diff(xy, axis=0) / STEP
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    turned = np.diff(np.unwrap(np.arctan2(velocity[:, 1], velocity[:, 0])))
    mean = (speed[1:] + speed[:-1]) / 2
    return {
        "speed": speed,
        "acceleration": np.diff(speed) / STEP,
        "lateral": mean * turned / STEP,
        "curvature": turned / np.maximum(mean * STEP, 1e-3),
    }


def distance_to_line(points: Array, line: Array) -> Array:
    """(N,) metres from points (N, 2) to a polyline (M, 2)."""
    start, step = line[:-1], np.diff(line, axis=0)
    squared = np.maximum((step**2).sum(1), 1e-12)
    relative = points[:, None] - start
    t = np.clip((relative * step).sum(-1) / squared, 0, 1)
    return np.sqrt(np.square(relative - t[..., None] * step).sum(-1).min(1))


def _check(xy: Array, path: Array, rules: Rules) -> str | None:
    """Why a run breaks the rules, or None."""
    if len(xy) < round(rules.min_seconds / STEP):
        return "too short"
    found = motion(xy)
    if found["speed"].max() > 1.05 * rules.desired_speed:
        return "too fast"
    if np.abs(found["acceleration"]).max() > 1.05 * rules.max_acceleration:
        return "acceleration"
    if np.abs(found["lateral"]).max() > rules.max_jump * rules.max_lateral:
        return "lateral acceleration"
    if np.abs(found["curvature"]).max() > 1.05 * np.tan(rules.max_steer) / rules.wheel_base:
        return "curvature"
    offset = max(distance_to_line(part, path).max() for part in np.array_split(xy, max(1, len(xy) // 64)))
    return "off the lane" if offset > rules.max_offset else None
