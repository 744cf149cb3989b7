"""Small made-up towns as vector maps: a jittered grid of two-way streets that curve a little, crossings with turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zoo.driving.maps import MAX_POINTS, Lane, VectorMap

LANE_OFFSET = 1.9  # metres from a street's middle to a lane's centre line; traffic keeps to the right
_BOX = 13.0  # metres from the middle of a crossing to where its lanes end
_PIECE = 40.0  # about this long is a lane segment between crossings


def make_town(seed: int, size: int = 4, spacing: float = 110.0, city: str = "MIA") -> VectorMap:
    """A town of `size` x `size` crossings, `spacing` metres apart; the same for the same seed.

    Each end of a street leads on (no dead ends), a crossing joins each lane that comes in with each lane that goes out
    on another street.
    """
    rng = np.random.default_rng([seed, size])
    corner = rng.uniform(-2000, 2000, 2)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1).reshape(-1, 2)
    crossings = corner + grid * spacing + rng.uniform(-0.14, 0.14, (len(grid), 2)) * spacing
    streets = [
        (a, b)
        for a in range(len(grid))
        for b in range(a + 1, len(grid))
        if np.abs(grid[a] - grid[b]).sum() == 1 and (rng.random() < 0.9 or _needed(grid[a], grid[b], size))
    ]
    lanes: list[dict] = []
    arriving: dict[int, list[int]] = {}
    leaving: dict[int, list[int]] = {}
    for a, b in streets:
        bow = rng.uniform(-6, 6)
        for start, end, side in ((a, b, bow), (b, a, -bow)):
            first = len(lanes)
            for piece in _street(crossings[start], crossings[end], side):
                lanes.append({"points": piece, "successors": [len(lanes) + 1], "street": (a, b)})
            lanes[-1]["successors"] = []
            leaving.setdefault(start, []).append(first)
            arriving.setdefault(end, []).append(len(lanes) - 1)
    for crossing, incoming in arriving.items():
        lights = bool(rng.random() < 0.5)
        for one in incoming:
            for other in leaving[crossing]:
                if lanes[one]["street"] == lanes[other]["street"]:
                    continue  # no turning back
                points, turn = _connect(lanes[one]["points"], lanes[other]["points"])
                lanes[one]["successors"].append(len(lanes))
                lanes.append(
                    {"points": points, "turn": turn, "successors": [other], "lights": lights, "crossing": True}
                )
    return _as_map(lanes, city)


def _needed(a: NDArray[np.int64], b: NDArray[np.int64], size: int) -> bool:
    """Streets along the edge of the town are always there, so that every crossing has two."""
    return any(a[axis] == b[axis] and a[axis] in (0, size - 1) for axis in (0, 1))


def _street(start: NDArray[np.float64], end: NDArray[np.float64], bow: float) -> list[NDArray[np.float64]]:
    """Segments of the right-hand lane from one crossing to the next; the street's middle bows out by `bow` metres."""
    along = end - start
    length = float(np.hypot(*along))
    ahead = along / length
    right = np.array([ahead[1], -ahead[0]])
    pieces = max(1, round((length - 2 * _BOX) / _PIECE))
    s = np.linspace(_BOX, length - _BOX, pieces * (MAX_POINTS - 1) + 1)
    share = (s - _BOX) / (length - 2 * _BOX)
    sideways = LANE_OFFSET + bow * np.sin(np.pi * share) ** 2
    points = start + s[:, None] * ahead + sideways[:, None] * right
    return [points[i * (MAX_POINTS - 1) : (i + 1) * (MAX_POINTS - 1) + 1] for i in range(pieces)]


def _connect(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """A smooth lane (cubic Hermite) from the end of one lane to the start of another, and which turn it is."""
    start, end = before[-1], after[0]
    out, into = before[-1] - before[-2], after[1] - after[0]
    reach = float(np.hypot(*(end - start)))
    out, into = out / np.hypot(*out) * reach, into / np.hypot(*into) * reach
    t = np.linspace(0, 1, MAX_POINTS)[:, None]
    points = (
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * out
        + (3 * t**2 - 2 * t**3) * end
        + (t**3 - t**2) * into
    )
    angle = np.arctan2(out[0] * into[1] - out[1] * into[0], out @ into)
    return points, "NONE" if abs(angle) < np.pi / 6 else "LEFT" if angle > 0 else "RIGHT"


def _as_map(lanes: list[dict], city: str) -> VectorMap:
    number = 9_600_000  # Argoverse's lane ids have seven digits
    before: dict[int, list[int]] = {}
    for index, lane in enumerate(lanes):
        for successor in lane["successors"]:
            before.setdefault(successor, []).append(index)
    made = {}
    for index, lane in enumerate(lanes):
        made[number + index] = Lane(
            number + index,
            lane["points"],
            traffic_control=lane.get("lights", False),
            turn=lane.get("turn", "NONE"),
            intersection=lane.get("crossing", False),
            predecessors=tuple(number + i for i in before.get(index, [])),
            successors=tuple(number + i for i in lane["successors"]),
        )
    return VectorMap(city, made)
