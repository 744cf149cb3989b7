"""From a scene and its map to VectorNet's vectors, in the agent's frame.

The released features are rows of 128 numbers of which 10 (a road user's step) or 12 (a piece of lane) are used; here
only those are kept, and `widen` of the network puts them into their columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.driving.maps import MAX_POINTS, Lane, VectorMap, check_centre_line, resample
from zoo.driving.scenes import FUTURE, HISTORY, Scene, Track
from zoo.errors import ZooError

AGENT_VALUES, LANE_VALUES = 10, 12
LANE_COLUMNS = (-18, -17, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1)  # of a released row; an agent's are 0 to 9
MAX_STEPS, MAX_PIECES = HISTORY + FUTURE - 1, MAX_POINTS - 1
# About the size that each column reaches: metres, seconds, flags, indices. Networks may divide by them.
AGENT_SCALE = (20.0, 20.0, 20.0, 20.0, 2.5, 1.0, 1.0, 1.0, 20.0, 25.0)
LANE_SCALE = (20.0, 20.0, 1.0, 1.0, 1.0, 20.0, 5.0, 1.0, 20.0, 20.0, 20.0, 20.0)
RADIUS = 50.0  # metres around the agent, Manhattan
_EPS = 1e-5


@dataclass(frozen=True)
class Frame:
    """The agent frame: origin where the agent is when forecasting starts, +y where it is heading.

    Attributes:
        origin: (2,) metres, city frame.
        angle: radians by which points are turned after the origin is taken off.
    """

    origin: NDArray[np.float64]
    angle: float

    @classmethod
    def of(cls, history: NDArray[np.float64]) -> Frame:
        """From the agent's 20 observed positions (20, 2): heading is the mean of four 2-step differences at the end."""
        last = history[-6:]
        dx, dy = (last[2:] - last[:-2]).mean(axis=0)
        return cls(history[-1].copy(), -math.atan2(dy, dx) + math.radians(90))

    def to_agent(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) of the city frame to the agent frame."""
        return rotate(points - self.origin, self.angle)

    def to_city(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) of the agent frame to the city frame; the inverse of `to_agent`."""
        return rotate(points, -self.angle) + self.origin


def rotate(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """(..., 2) turned counter-clockwise around the origin."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = points[..., 0], points[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)


@dataclass(frozen=True)
class LocalScene:
    """A scene in its agent's frame, cut to what lies around it: what the store keeps.

    Attributes:
        tracks: agent first. lanes: (2 to 10, 2) each, deformed where the scene is augmented.
        lane_flags: (L, 3): traffic control +-1, turn (right 1, left -1, else 0), intersection +-1.
        lane_ids: (L,).
    """

    name: str
    city: str
    frame: Frame
    tracks: list[Track]
    lanes: list[NDArray[np.float64]]
    lane_flags: NDArray[np.float64]
    lane_ids: NDArray[np.int64]


def localise(scene: Scene, vector_map: VectorMap, radius: float = RADIUS) -> LocalScene:
    """Lanes around the agent and all tracks, in the agent's frame.

    On an augmented scene the original map is asked around where the agent would be without the augmentation, and each
    lane is deformed before it changes frame. Raises `ZooError` if no lane lies in range, which a city that does not
    match the map looks like.
    """
    frame = Frame.of(scene.agent.xy[:HISTORY])
    x, y = scene.augmentation.undo(frame.origin) if scene.augmentation else frame.origin
    near = vector_map.around(float(x), float(y), radius)
    if not near:
        raise ZooError(
            f"{scene.name}: no lane of {vector_map.city} within {radius:g} m of ({x:.1f}, {y:.1f}): "
            "is this the map that the scene was driven on?"
        )
    return _local(scene, frame, near)


def _local(scene: Scene, frame: Frame, near: Sequence[Lane]) -> LocalScene:
    counts = [len(lane.points) for lane in near]
    points = np.concatenate([lane.points[:, :2] for lane in near])
    points = frame.to_agent(scene.augmentation.apply(points) if scene.augmentation else points)
    lanes = np.split(points, np.cumsum(counts)[:-1])
    turns = {"RIGHT": 1.0, "LEFT": -1.0}
    flags = [
        (1.0 if lane.traffic_control else -1.0, turns.get(lane.turn, 0.0), 1.0 if lane.intersection else -1.0)
        for lane in near
    ]
    ends = np.cumsum([len(track.xy) for track in scene.tracks])[:-1]
    turned = np.split(frame.to_agent(np.concatenate([track.xy for track in scene.tracks])), ends)
    tracks = [Track(track.kind, track.times, xy) for track, xy in zip(scene.tracks, turned, strict=True)]
    ids = np.array([lane.id for lane in near], dtype=np.int64)
    return LocalScene(scene.name, scene.city, frame, tracks, lanes, np.array(flags), ids)


# ---------------------------------------------------------------------- vectors


def agent_vectors(tracks: Sequence[Track], history_only: bool) -> list[NDArray[np.float32]]:
    """One (steps, 10) array a track: [x before, y before, x, y, time, is AV, is AGENT, is OTHERS, polyline, step].

    With `history_only` steps end with the agent's 20th row. A track of a single row has no step and is left out.
    """
    limit = tracks[0].times[HISTORY - 1] + _EPS
    found: list[NDArray[np.float32]] = []
    for track in tracks:
        count = int((track.times <= limit).sum()) if history_only else len(track.times)
        count = min(count, MAX_STEPS + 1)
        if count < 2:
            continue
        rows = np.zeros((count - 1, AGENT_VALUES), dtype=np.float32)
        rows[:, 0:2], rows[:, 2:4], rows[:, 4] = track.xy[: count - 1], track.xy[1:count], track.times[1:count]
        rows[:, 5 + ("AV", "AGENT", "OTHERS").index(track.kind)] = 1
        rows[:, 8], rows[:, 9] = len(found), np.arange(1, count)
        found.append(rows)
    return found


def lane_vectors(
    lanes: Sequence[NDArray[np.float64]], flags: NDArray[np.float64], first_polyline: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(L, 9, 12) vectors in the order of `LANE_COLUMNS`, zeros past a lane's end, and (L,) how many each lane has.

    A vector: y and x of the point before the last, intersection, turn, traffic control, polyline, number, 1, y, x,
    y before, x before.
    """
    counts = np.array([len(points) for points in lanes], dtype=np.int64)
    padded = np.zeros((len(lanes), MAX_POINTS, 2))
    filled = np.arange(MAX_POINTS) < counts[:, None]
    padded[filled] = np.concatenate(lanes) if len(lanes) else np.zeros((0, 2))
    before, now = padded[:, :-1], padded[:, 1:]
    earlier = np.concatenate([2 * before[:, :1] - now[:, :1], padded[:, :-2]], axis=1)
    out = np.zeros((len(lanes), MAX_PIECES, LANE_VALUES), dtype=np.float32)
    out[..., 0], out[..., 1] = earlier[..., 1], earlier[..., 0]
    out[..., 2], out[..., 3], out[..., 4] = flags[:, 2, None], flags[:, 1, None], flags[:, 0, None]
    out[..., 5] = first_polyline + np.arange(len(lanes))[:, None]
    out[..., 6] = np.arange(1, MAX_POINTS)
    out[..., 7] = 1
    out[..., 8], out[..., 9], out[..., 10], out[..., 11] = now[..., 1], now[..., 0], before[..., 1], before[..., 0]
    out *= filled[:, 1:, None]
    return out, counts - 1


def goal_candidates(lanes: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """(G, 2) sparse goals: each lane's points (those within a centimetre's cell once), then points between them so that
    a lane's mean spacing is at most 1 m."""
    if not len(lanes):
        return np.zeros((0, 2), dtype=np.float32)
    counts = np.array([len(points) for points in lanes])
    ends = np.cumsum(counts)
    together = np.concatenate(lanes)
    cells = np.round((together + 500) * 100).astype(np.int64)
    fresh = np.zeros(len(together), dtype=bool)
    fresh[np.unique(cells[:, 0] * 1_000_000 + cells[:, 1], return_index=True)[1]] = True  # the first of each
    steps = np.hypot(*np.diff(together, axis=0).T)
    found: list[NDArray[np.float64]] = []
    for end, count in zip(ends.tolist(), counts.tolist(), strict=True):
        begin = end - count
        points = together[begin:end]
        found.append(points[fresh[begin:end]])
        parts = math.ceil(steps[begin : end - 1].mean() - 1e-12)
        if parts > 1:
            share = (np.arange(1, parts) / parts)[None, :, None]
            found.append((points[:-1, None] * (1 - share) + points[1:, None] * share).reshape(-1, 2))
    return np.concatenate(found).astype(np.float32)


def nearest_lane(lanes: Sequence[NDArray[np.float64]], point: NDArray[np.float64]) -> int:
    """Index of the lane with the centre-line point closest to `point`; the first of equals."""
    return int(np.argmin([np.hypot(*(points - point).T).min() for points in lanes]))


Sample = dict[str, NDArray]


def make_sample(local: LocalScene, history_only: bool) -> Sample:
    """What a model gets of one scene, unpadded (`collate` pads): agents, lanes and, to forecast, goals and truth.

    Keys: agents (A, 49 or 19, 10) with agent_length (A,); lanes (L, 9, 12) with lane_length (L,); with `history_only`
    also goals (G, 2), and, where the scene has them, future (30, 2) and lane_label. origin (2,) and angle lead back.
    """
    rows = agent_vectors(local.tracks, history_only)
    width = HISTORY - 1 if history_only else MAX_STEPS
    agents = np.zeros((len(rows), width, AGENT_VALUES), dtype=np.float32)
    for index, row in enumerate(rows):
        agents[index, : min(len(row), width)] = row[:width]
    lanes, lane_length = lane_vectors(local.lanes, local.lane_flags, len(rows))
    sample: Sample = {
        "agents": agents,
        "agent_length": np.array([min(len(row), width) for row in rows], dtype=np.int64),
        "lanes": lanes,
        "lane_length": lane_length,
        "origin": local.frame.origin.astype(np.float64),
        "angle": np.array(local.frame.angle, dtype=np.float64),
    }
    if history_only:
        sample["goals"] = goal_candidates(local.lanes)
        truth = local.tracks[0].xy[HISTORY : HISTORY + FUTURE]
        has_future = len(truth) == FUTURE
        sample["future"] = (truth if has_future else np.zeros((FUTURE, 2))).astype(np.float32)
        sample["has_future"] = np.array(has_future)
        label = nearest_lane(local.lanes, truth[-1]) if has_future else 0
        sample["lane_label"] = np.array(label, dtype=np.int64)
    return sample


def collate(samples: Sequence[Sample]) -> Sample:
    """Stacks samples, padding agents, lanes and goals with zeros; `goal_count` (B,) says how many goals are real."""
    out: Sample = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if key in ("agents", "agent_length", "lanes", "lane_length", "goals"):
            stacked = np.zeros((len(values), max(len(v) for v in values), *values[0].shape[1:]), dtype=values[0].dtype)
            for index, value in enumerate(values):
                stacked[index, : len(value)] = value
            out[key] = stacked
        else:
            out[key] = np.stack(values)
    if "goals" in out:
        out["goal_count"] = np.array([len(sample["goals"]) for sample in samples], dtype=np.int64)
    return out


def lanes_from_arrays(lanes: Sequence[NDArray[np.float64]]) -> list[Lane]:
    """Lanes from bare centre lines (N, 2) in the city frame, without turn, signal or intersection."""
    made = []
    for index, points in enumerate(lanes):
        array = np.asarray(points, dtype=np.float64)
        check_centre_line(array, f"lane {index}")
        made.append(Lane(index, resample(array[:, :2])))
    return made


def sample_from_arrays(
    history: NDArray[np.float64], lanes: VectorMap | Sequence[NDArray[np.float64] | Lane], radius: float = RADIUS
) -> tuple[Sample, Frame]:
    """The forecasting sample of one agent from plain arrays: `history` (20, 2), metres, city frame, 0.1 s apart."""
    try:
        history = np.asarray(history, dtype=np.float64)
    except (TypeError, ValueError):
        raise ZooError(f"A history is an array of 20 positions (x, y), not {type(history).__name__}.") from None
    if history.shape != (HISTORY, 2):
        raise ZooError(f"A history is {HISTORY} positions (x, y), 0.1 s apart, not an array of shape {history.shape}.")
    if not np.isfinite(history).all():
        raise ZooError("A position of the history is not a number.")
    if not isinstance(lanes, VectorMap):
        if not isinstance(lanes, Sequence) or not len(lanes):
            raise ZooError("The map is a VectorMap or a list of centre lines (N, 2), and not empty.")
        given = [lane if isinstance(lane, Lane) else None for lane in lanes]
        bare = iter(lanes_from_arrays([lane for lane in lanes if not isinstance(lane, Lane)]))
        made = [lane if lane is not None else next(bare) for lane in given]
        lanes = VectorMap("MIA", dict(enumerate(made)))
    agent = Track("AGENT", np.arange(HISTORY) * 0.1, history)
    local = localise(Scene("the given history", lanes.city, [agent]), lanes, radius)
    return make_sample(local, history_only=True), local.frame
