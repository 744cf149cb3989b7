"""Scenes ready for training in one memory-mapped file instead of a pickle each.

A scene takes a few kilobytes of flat arrays; the vectors are made from them when it is asked for, in about 0.2 ms.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.driving.argoverse2 import archive_of, is_scenario
from zoo.driving.features import Frame, LocalScene, localise
from zoo.driving.files import MapSource, read_any_scene
from zoo.driving.maps import VectorMap
from zoo.driving.scenes import OBJECT_TYPES, Scene, Track
from zoo.errors import ZooError

_VERSION = 1
_CHUNK = 128


def encode(local: LocalScene) -> NDArray[np.float64]:
    """A local scene as one flat array; `decode` gives it back, names and city apart."""
    header = [len(local.tracks), len(local.lanes), *local.frame.origin, local.frame.angle]
    parts: list[NDArray] = [np.array(header, dtype=np.float64)]
    kinds = [(OBJECT_TYPES.index(track.kind), len(track.times)) for track in local.tracks]
    parts.append(np.array(kinds, dtype=np.float64).ravel())
    parts.append(np.array([len(points) for points in local.lanes], dtype=np.float64))
    parts += [local.lane_flags.ravel(), local.lane_ids.astype(np.float64)]
    parts += [np.column_stack([track.times, track.xy]).ravel() for track in local.tracks]
    parts += [points.ravel() for points in local.lanes]
    return np.concatenate(parts)


def decode(flat: NDArray[np.float64], name: str, city: str) -> LocalScene:
    """The inverse of `encode`."""
    tracks_n, lanes_n = int(flat[0]), int(flat[1])
    frame, at = Frame(np.array(flat[2:4]), float(flat[4])), 5
    kinds = flat[at : at + 2 * tracks_n].reshape(-1, 2).astype(np.int64)
    at += 2 * tracks_n
    counts = flat[at : at + lanes_n].astype(np.int64)
    at += lanes_n
    flags = flat[at : at + 3 * lanes_n].reshape(-1, 3)
    at += 3 * lanes_n
    ids = flat[at : at + lanes_n].astype(np.int64)
    at += lanes_n
    tracks = []
    for kind, rows in kinds:
        values = flat[at : at + 3 * rows].reshape(-1, 3)
        at += 3 * rows
        tracks.append(Track(OBJECT_TYPES[kind], values[:, 0], values[:, 1:]))
    points = flat[at : at + 2 * counts.sum()].reshape(-1, 2)
    return LocalScene(name, city, frame, tracks, np.split(points, np.cumsum(counts)[:-1]), flags, ids)


class SceneStore(Sequence[LocalScene]):
    """Local scenes by number, from flat values and where each begins."""

    def __init__(self, values: NDArray[np.float64], bounds: NDArray[np.int64], names: list[str], cities: list[str]):
        self.values, self.bounds, self.names, self.cities = values, bounds, names, cities

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LocalScene:  # type: ignore[override]
        begin, end = self.bounds[index], self.bounds[index + 1]
        return decode(np.asarray(self.values[begin:end]), self.names[index], self.cities[index])

    @classmethod
    def from_scenes(cls, scenes: Iterable[Scene], maps: dict[str, VectorMap]) -> SceneStore:
        """In memory."""
        kept, names, cities = [], [], []
        for scene in scenes:
            kept.append(encode(localise(scene, maps[scene.city])))
            names.append(scene.name)
            cities.append(scene.city)
        if not kept:
            raise ZooError("There are no scenes.")
        bounds = np.concatenate([[0], np.cumsum([len(flat) for flat in kept])]).astype(np.int64)
        return cls(np.concatenate(kept), bounds, names, cities)

    @classmethod
    def from_folder(
        cls,
        files: Sequence[Path],
        map_folder: Path | None,
        cache: Path,
        *,
        need_future: bool = True,
        processes: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> SceneStore:
        """Reads the scenes once and keeps what comes of them below `cache`; a later call maps that file.

        `map_folder` is for Argoverse 1; scenarios of Argoverse 2 have a map each. The cache's name follows the files'
        names, sizes and times, so changed data is read again.
        """
        key = _fingerprint(files, map_folder, need_future)
        folder = cache / key
        if not (folder / "index.json").is_file():
            _build(files, map_folder, folder, need_future, processes, progress)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        values = np.memmap(folder / "values.f64", dtype=np.float64, mode="r")
        return cls(values, np.load(folder / "bounds.npy"), index["names"], index["cities"])


def _fingerprint(files: Sequence[Path], map_folder: Path | None, need_future: bool) -> str:
    digest = hashlib.sha256(f"{_VERSION} {need_future}".encode())
    own = [archive_of(path) for path in files if is_scenario(path)]
    for path in [
        *files,
        *(path for path in own if path.is_file()),
        *sorted(map_folder.iterdir() if map_folder else ()),
    ]:
        stat = path.stat()
        digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _build(
    files: Sequence[Path],
    map_folder: Path | None,
    folder: Path,
    need_future: bool,
    processes: int,
    progress: Callable[[int], None] | None,
) -> None:
    maps = MapSource(map_folder)
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    work = partial(_read_chunk, maps, need_future)
    lengths: list[int] = []
    cities: list[str] = []
    # Another process may build the same cache: each writes files of its own and renames them when whole.
    new = folder / f"values.{os.getpid()}.new"
    with new.open("wb") as out:
        for chunk, done in zip(chunks, _map(work, chunks, processes), strict=True):
            for flat, city in done:
                out.write(flat.tobytes())
                lengths.append(len(flat))
                cities.append(city)
            if progress is not None:
                progress(len(chunk))
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(folder / f"bounds.{os.getpid()}.npy", bounds)
    os.replace(folder / f"bounds.{os.getpid()}.npy", folder / "bounds.npy")
    os.replace(new, folder / "values.f64")
    index = folder / f"index.{os.getpid()}.new"
    index.write_text(json.dumps({"names": [path.name for path in files], "cities": cities}), encoding="utf-8")
    os.replace(index, folder / "index.json")


def _read_chunk(maps: MapSource, need_future: bool, files: Sequence[Path]) -> list[tuple[NDArray, str]]:
    done = []
    for path in files:
        scene = read_any_scene(path, need_future)
        done.append((encode(localise(scene, maps.of(path, scene.city))), scene.city))
    return done


def _map(work: Callable, chunks: list, processes: int) -> Iterable:
    """Results in order; with processes, a few chunks in flight, so that memory does not grow with the data."""
    if processes <= 1:
        yield from map(work, chunks)
        return
    with ProcessPoolExecutor(processes) as pool:
        waiting = iter(chunks)
        flying = [pool.submit(work, chunk) for chunk in islice(waiting, 2 * processes)]
        while flying:
            yield flying.pop(0).result()
            flying += [pool.submit(work, chunk) for chunk in islice(waiting, 1)]
