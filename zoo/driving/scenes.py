"""Argoverse 1 motion-forecasting CSVs, plain or with this paper's four augmentation columns: reading and writing."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.driving.deform import AUGMENT_TYPES, Augmentation
from zoo.driving.maps import check_city
from zoo.errors import ZooError

HISTORY, FUTURE, STEP = 20, 30, 0.1  # rows, rows, seconds
COLUMNS = ("TIMESTAMP", "TRACK_ID", "OBJECT_TYPE", "X", "Y", "CITY_NAME")
AUGMENT_COLUMNS = ("REF_xmin", "AUGMENT_TYPE", "AUGMENT_DIRECTION", "ATTACK_POWER_TYPE")
OBJECT_TYPES = ("AV", "AGENT", "OTHERS")
AGENT_ID = "52180"  # what every released synthetic scene calls its agent


@dataclass(frozen=True)
class Track:
    """One road user.

    Attributes:
        kind: "AGENT" (the one to forecast), "AV" or "OTHERS".
        times: (T,) seconds since the scene's first row; xy: (T, 2) metres, city frame.
    """

    kind: str
    times: NDArray[np.float64]
    xy: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """Tracks on a city's map: the agent first, the AV next if there is one, the others as they appear."""

    name: str
    city: str
    tracks: list[Track]
    augmentation: Augmentation | None = None
    start: float = 0.0

    @property
    def agent(self) -> Track:
        return self.tracks[0]


def read_scene(path: Path, need_future: bool = True) -> Scene:
    """Reads a scene's CSV.

    Args:
        need_future: whether the agent must have all 50 rows; 20 are always needed.

    Raises `ZooError` that names the file, and the row where there is one: a missing column, a value that is no finite
    number, an unknown city, no agent or two, too few rows, a gap in the agent's time stamps.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    return parse_scene(text, path.name, str(path), need_future)


def parse_scene(text: str, name: str, where: str, need_future: bool = True) -> Scene:
    """`read_scene` for the text of a CSV."""
    lines = text.splitlines()
    header = lines[0].split(",") if lines else []
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ZooError(f"{where}: no column {missing[0]}; a scene's first line is {','.join(COLUMNS)}.")
    rows = [line for line in lines[1:] if line]
    if not rows:
        raise ZooError(f"{where}: no rows below the header.")
    width = len(header)
    for number, row in enumerate(rows, start=2):
        if row.count(",") != width - 1:
            raise ZooError(f"{where}, row {number}: {row.count(',') + 1} values for {width} columns.")
    flat = ",".join(rows).split(",")  # one split for the whole file: columns are every width-th value
    columns = {column: flat[index::width] for index, column in enumerate(header)}
    times, xs, ys = (_numbers(columns[key], key, where) for key in ("TIMESTAMP", "X", "Y"))
    cities, kinds, ids = columns["CITY_NAME"], columns["OBJECT_TYPE"], columns["TRACK_ID"]
    city = check_city(cities[0], f"{where}, row 2")
    if cities.count(city) != len(cities):
        number = next(n for n, value in enumerate(cities, start=2) if value != city)
        raise ZooError(f"{where}, row {number}: city {cities[number - 2]!r}, but the rows above are in {city}.")
    if not set(kinds) <= set(OBJECT_TYPES):
        number = next(n for n, kind in enumerate(kinds, start=2) if kind not in OBJECT_TYPES)
        raise ZooError(
            f"{where}, row {number}: OBJECT_TYPE {kinds[number - 2]!r} is none of {', '.join(OBJECT_TYPES)}."
        )
    agents = {track for kind, track in zip(kinds, ids, strict=True) if kind == "AGENT"}
    groups: dict[str, list[int]] = {}
    for index, (kind, track) in enumerate(zip(kinds, ids, strict=True)):
        groups.setdefault(track if kind == "OTHERS" else kind, []).append(index)
    if not agents:
        raise ZooError(f"{where}: no track is the AGENT, the road user to forecast.")
    if len(agents) > 1:
        first = ids[kinds.index("AGENT")]
        number = next(
            n for n, (kind, t) in enumerate(zip(kinds, ids, strict=True), 2) if kind == "AGENT" and t != first
        )
        raise ZooError(f"{where}, row {number}: track {ids[number - 2]} is a second AGENT beside {first}.")
    keys = ["AGENT", *(["AV"] if "AV" in groups else []), *(key for key in groups if key not in ("AGENT", "AV"))]
    start = times[0]
    xy, since = np.stack([xs, ys], axis=1), times - start
    tracks = []
    for key in keys:
        index = np.array(groups[key])
        tracks.append(Track(key if key in ("AGENT", "AV") else "OTHERS", since[index], xy[index]))
    _check_agent(tracks[0], np.array(groups["AGENT"]), where, need_future)
    return Scene(name, city, tracks, _augmentation(columns, where), float(start))


def _numbers(column: Sequence[str], key: str, where: str) -> NDArray[np.float64]:
    try:
        values = np.fromiter(map(float, column), dtype=np.float64, count=len(column))
    except ValueError:
        for number, text in enumerate(column, start=2):
            try:
                float(text)
            except ValueError:
                raise ZooError(f"{where}, row {number}: {key} is {text!r}, not a number.") from None
        raise
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ZooError(f"{where}, row {bad[0] + 2}: {key} is {column[bad[0]]}, not a finite number.")
    return values


def _check_agent(agent: Track, rows: NDArray[np.int64], where: str, need_future: bool) -> None:
    needed = HISTORY + FUTURE if need_future else HISTORY
    if len(agent.times) < needed:
        raise ZooError(
            f"{where}: the agent has {len(agent.times)} rows, {needed} are needed "
            f"({HISTORY} observed{f', {FUTURE} to come' if need_future else ''})."
        )
    gaps = np.diff(agent.times)
    # Argoverse's clock jitters by a few hundredths of a second.
    bad = np.flatnonzero((gaps < 0.4 * STEP) | (gaps > 1.6 * STEP))
    if len(bad):
        row = rows[bad[0] + 1] + 2
        raise ZooError(f"{where}, row {row}: {gaps[bad[0]]:.2f} s after the agent's row before; rows are 0.1 s apart.")


def _augmentation(columns: dict[str, list[str]], where: str) -> Augmentation | None:
    """The augmentation columns. They decide, not the file's name (which the released reader goes by)."""
    present = [column for column in AUGMENT_COLUMNS if column in columns]
    if not present:
        return None
    if len(present) < len(AUGMENT_COLUMNS):
        missing = next(column for column in AUGMENT_COLUMNS if column not in columns)
        raise ZooError(f"{where}: an augmented scene needs the column {missing} as well.")
    for column in AUGMENT_COLUMNS:
        if columns[column].count(columns[column][0]) != len(columns[column]):
            number = next(n for n, value in enumerate(columns[column], start=2) if value != columns[column][0])
            raise ZooError(f"{where}, row {number}: {column} changes within the scene; it is one value a file.")
    x_ref, kind, direction, power = (
        float(_numbers(columns[column][:1], column, where)[0]) for column in AUGMENT_COLUMNS
    )
    if kind not in AUGMENT_TYPES:
        known = ", ".join(map(str, AUGMENT_TYPES))
        raise ZooError(f"{where}, row 2: AUGMENT_TYPE is one of {known}, not {kind:g}.")
    if direction not in (0, 1):
        raise ZooError(f"{where}, row 2: AUGMENT_DIRECTION is 0 or 1, not {direction:g}.")
    return Augmentation(x_ref, int(kind), int(direction), power)


def write_scene(scene: Scene, folder: Path) -> Path:
    """Writes a scene's CSV as the released data has it (times relative, coordinates of 6 digits); returns the file."""
    columns = [*COLUMNS, *(AUGMENT_COLUMNS if scene.augmentation else ())]
    a = scene.augmentation
    extra = [repr(a.x_ref), a.kind, a.direction, a.power] if a else []
    others = iter(range(1, len(scene.tracks) + 1))
    ids = {id(t): AGENT_ID if t.kind == "AGENT" else "0" if t.kind == "AV" else str(next(others)) for t in scene.tracks}
    rows = [(t, track, xy) for track in scene.tracks for t, xy in zip(track.times, track.xy, strict=True)]
    rows.sort(key=lambda row: round(row[0], 6))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for time, track, (x, y) in rows:
        stamp = f"{round(scene.start + time, 3)}"
        writer.writerow([stamp, ids[id(track)], track.kind, f"{x:.6g}", f"{y:.6g}", scene.city, *extra])
    path = folder / scene.name
    path.write_text(out.getvalue(), encoding="utf-8")
    return path
