"""Argoverse 2 motion-forecasting scenarios and their maps, read with pyarrow and json (no av2 package).

A scenario is a folder with `scenario_<id>.parquet` and `log_map_archive_<id>.json`: 11 s at 10 Hz, of which 5 s are
observed, on a map of its own. The method here takes 2 s and forecasts 3 s, so a scene is what lies around the same
present: the last 2 s observed and the first 3 s to come. Schema: github.com/argoverse/av2-api, `data_schema.py`,
`lane_segment.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.driving.maps import Lane, VectorMap, check_centre_line, resample
from zoo.driving.scenes import FUTURE, HISTORY, STEP, Scene, Track
from zoo.errors import ZooError

OBSERVED = 50  # steps of a scenario before the present
COLUMNS = ("track_id", "object_type", "timestep", "position_x", "position_y", "focal_track_id", "city")
STILL = ("static", "background", "construction", "riderless_bicycle")  # no road users: Argoverse 1 has none of them
ROAD_LANES = ("VEHICLE", "BUS")  # Argoverse 1's maps have no bicycle lanes
_TURN = np.radians(30)


def is_scenario(path: Path) -> bool:
    """Whether a file is named as Argoverse 2's scenarios are (any Parquet file passes)."""
    return path.suffix == ".parquet"


def scenario_files(folder: Path) -> list[Path]:
    """Scenarios in a folder, or each in a folder of its own in it, in order of name."""
    found = sorted(folder.glob("scenario_*.parquet")) + sorted(folder.glob("*/scenario_*.parquet"))
    return [path for path in found if not path.name.startswith(".")]


def read_scenario(path: Path, need_future: bool = True) -> Scene:
    """A scenario as a scene of 2 s and, where it is there, 3 s to come; the focal track is the agent.

    Raises `ZooError` that names the file, and the row where there is one (0 is the first).
    """
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ZooError(f"{path} is no readable Parquet file: {str(error).splitlines()[0].rstrip('.')}.") from error
    missing = [name for name in COLUMNS if name not in found.column_names]
    if missing:
        raise ZooError(f"{path}: no column {missing[0]}; an Argoverse 2 scenario has {', '.join(COLUMNS)}.")
    if not found.num_rows:
        raise ZooError(f"{path}: no rows.")
    table: dict[str, NDArray[Any]] = {name: np.asarray(found[name].to_pylist()) for name in COLUMNS}
    try:
        xy = np.stack([table["position_x"], table["position_y"]], axis=1).astype(np.float64)
        steps = table["timestep"].astype(np.int64)
    except (TypeError, ValueError) as error:
        raise ZooError(f"{path}: a position or timestep is no number.") from error
    bad = np.flatnonzero(~np.isfinite(xy).all(axis=1))
    if len(bad):
        raise ZooError(f"{path}, row {bad[0]}: the position is not a finite number.")
    ids, focal = table["track_id"], table["focal_track_id"][0]
    present = (steps >= OBSERVED - HISTORY) & (steps < OBSERVED + FUTURE)
    order = [str(focal), *(["AV"] if "AV" in ids else [])]
    order += [name for name in dict.fromkeys(ids.tolist()) if name not in order]
    tracks = []
    for name in order:
        rows = np.flatnonzero((ids == name) & present)
        agent = name == str(focal)
        if not agent and (not len(rows) or table["object_type"][rows[0]] in STILL):
            continue
        rows = rows[np.argsort(steps[rows], kind="stable")]
        if agent:
            _check_focal(steps[rows], str(focal), path, need_future)
        elif len(np.unique(steps[rows])) < len(rows):
            raise ZooError(f"{path}: track {name} has two rows of one timestep.")
        kind = "AGENT" if agent else "AV" if name == "AV" else "OTHERS"
        tracks.append(Track(kind, (steps[rows] - (OBSERVED - HISTORY)) * STEP, xy[rows]))
    return Scene(path.name, str(table["city"][0]), tracks)


def _check_focal(steps: NDArray[np.int64], name: str, path: Path, need_future: bool) -> None:
    last = OBSERVED + (FUTURE if need_future else 0)
    wanted = np.arange(OBSERVED - HISTORY, last)
    lacking = np.setdiff1d(wanted, steps)
    if len(lacking):
        raise ZooError(
            f"{path}: the focal track {name} has no row of timestep {lacking[0]}; "
            f"{wanted[0]} to {wanted[-1]} are needed."
        )
    if len(np.unique(steps)) < len(steps):
        raise ZooError(f"{path}: the focal track {name} has two rows of one timestep.")


def archive_of(scenario: Path) -> Path:
    """The map beside a scenario."""
    return scenario.with_name(f"log_map_archive_{scenario.stem.removeprefix('scenario_')}.json")


def read_archive(path: Path, city: str) -> VectorMap:
    """A scenario's map. Traffic lights are not in it (`traffic_control` is False); a turn is a lane of an intersection
    that bends by more than 30 degrees.

    Raises `ZooError` that names the file and the lane.
    """
    try:
        segments = json.loads(path.read_text(encoding="utf-8"))["lane_segments"]
    except FileNotFoundError as error:
        raise ZooError(f"There is no map {path.name} beside the scenario in {path.parent}.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is no map of Argoverse 2: it has no lane_segments that can be read.") from error
    lanes: dict[int, Lane] = {}
    for key, segment in segments.items():
        where = f"{path}: lane {key}"
        try:
            if segment["lane_type"] not in ROAD_LANES:
                continue
            points = _centre_line(segment, where)
            crossing = bool(segment["is_intersection"])
            left, right = (segment.get(f"{side}_neighbor_id") for side in ("left", "right"))
            lane = Lane(
                int(segment["id"]), points, turn=_turn(points) if crossing else "NONE", intersection=crossing,
                predecessors=tuple(map(int, segment["predecessors"])),
                successors=tuple(map(int, segment["successors"])), left=left, right=right,
            )  # fmt: skip
        except KeyError as error:
            raise ZooError(f"{where}: {error} is missing.") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ZooError(f"{where} cannot be read: {error}.") from error
        lanes[lane.id] = lane
    if not lanes:
        raise ZooError(f"{path} holds no lanes for vehicles.")
    return VectorMap(city, lanes)


def _centre_line(segment: dict[str, Any], where: str) -> NDArray[np.float64]:
    """The lane's own centre line, or what lies halfway between its boundaries."""

    def line(key: str) -> NDArray[np.float64]:
        points = np.array([[point["x"], point["y"]] for point in segment[key]], dtype=np.float64).reshape(-1, 2)
        check_centre_line(points, where)
        return points

    if segment.get("centerline"):
        return resample(line("centerline"))
    left, right = (resample(line(f"{side}_lane_boundary"), always=True) for side in ("left", "right"))
    return (left + right) / 2


def _turn(points: NDArray[np.float64]) -> str:
    steps = np.diff(points, axis=0)
    first, last = steps[0], steps[-1]
    angle = np.arctan2(first[0] * last[1] - first[1] * last[0], first @ last)
    return "LEFT" if angle > _TURN else "RIGHT" if angle < -_TURN else "NONE"
