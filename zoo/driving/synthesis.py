"""Scenes from runs: windows of 5 s every 2 s, in memory or written as an Argoverse 1 folder by several processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from zoo.driving.agents import Rules, Run, drive, motion
from zoo.driving.audit import heading_change
from zoo.driving.maps import VectorMap, read_maps, write_map
from zoo.driving.scenes import FUTURE, HISTORY, Scene, Track, write_scene
from zoo.errors import ZooError

WINDOW, STRIDE = HISTORY + FUTURE, 20  # rows
_CHUNK = 64  # runs driven at once
Job = tuple[str, bool, list[int], set[int]]  # city, augmented or not, runs, those of them that are held out


@dataclass
class Report:
    """What a synthesis gave: scenes written, runs thrown away by reason, and how the agents move."""

    scenes: int = 0
    augmented: int = 0
    held_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    speeds: list[float] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        self.scenes += other.scenes
        self.augmented += other.augmented
        self.held_out += other.held_out
        self.rejected.update(other.rejected)
        self.speeds += other.speeds
        self.turns.update(other.turns)


def windows(run: Run, city: str) -> Iterator[Scene]:
    """A run's scenes, named as the released ones: window k starts at 2 (k - 1) s."""
    prefix = "augmap_" if run.augmentation else ""
    for k in range(1, (len(run.xy) - WINDOW) // STRIDE + 2):
        first = (k - 1) * STRIDE
        xy = run.xy[first : first + WINDOW]
        name = f"{prefix}dv10{city}_{run.number}_id_{k}_tr_5.0_ti_2.0.csv"
        track = Track("AGENT", np.arange(WINDOW) * 0.1, xy)
        yield Scene(name, city, [track], run.augmentation, start=2.0 * (k - 1))


def generate_scenes(
    vector_map: VectorMap, runs: int, seed: int, augmented_share: float = 0.5, rules: Rules | None = None
) -> list[Scene]:
    """Scenes of `runs` drives, the given share of them on augmented maps, in the order of the runs."""
    scenes = []
    for augmented, numbers in _split(range(runs), augmented_share):
        for start in range(0, len(numbers), _CHUNK):
            for run in drive(vector_map, numbers[start : start + _CHUNK], seed, augmented, rules):
                if run.rejected is None:
                    scenes += list(windows(run, vector_map.city))
    return scenes


def _split(numbers: range, share: float) -> list[tuple[bool, list[int]]]:
    """Which runs are driven on augmented maps: spread evenly over the numbers."""
    if not 0 <= share <= 1:
        raise ZooError(f"The share of augmented runs lies from 0 to 1, not at {share}.")
    chosen = [int((n + 1) * share) > int(n * share) for n in numbers]
    return [(kind, [n for n, c in zip(numbers, chosen, strict=True) if c is kind]) for kind in (False, True)]


def synthesize(
    map_folder: Path,
    out: Path,
    runs: int,
    *,
    seed: int = 0,
    augmented_share: float = 0.5,
    val_share: float = 0.1,
    processes: int = 1,
    rules: Rules | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Drives `runs` runs over each city's map in `map_folder` and writes scenes and maps below `out`.

    `out/map_files` gets the maps, `out/train/data` and `out/val/data` the CSVs (every run's windows on one side). The
    same seed gives the same files, whatever `processes` is; memory does not grow with `runs`.
    """
    if runs < 1 or processes < 1:
        raise ZooError(f"There must be at least one run and one process, not {runs} and {processes}.")
    if not 0 <= val_share < 1:
        raise ZooError(f"The validation share lies from 0 up to below 1, not at {val_share}.")
    maps = read_maps(map_folder)
    for vector_map in maps.values():
        write_map(vector_map, out / "map_files")
    for split in ("train", "val"):
        (out / split / "data").mkdir(parents=True, exist_ok=True)
    jobs: list[Job] = []
    kinds = _split(range(runs), augmented_share)
    # Held out within each kind, so that both are in both splits; of few runs at least one.
    held = {n for _, part in kinds for j, n in enumerate(part) if int((j + 1) * val_share) > int(j * val_share)}
    if not held and val_share and runs > 1:
        held = {runs - 1}
    for city in maps:
        for augmented, numbers in kinds:
            held_out = held.intersection(numbers)
            for start in range(0, len(numbers), _CHUNK):
                chunk = numbers[start : start + _CHUNK]
                jobs.append((city, augmented, chunk, held_out.intersection(chunk)))
    work = partial(_write_chunk, maps, out, seed, rules)
    total = Report()

    def take(report: Report, job: Job) -> None:
        total.add(report)
        if progress is not None:
            progress(len(job[2]))

    if processes == 1:
        for job in jobs:
            take(work(job), job)
    else:
        with ProcessPoolExecutor(processes) as pool:
            for report, job in zip(pool.map(work, jobs), jobs, strict=True):
                take(report, job)
    return total


def _write_chunk(maps: dict[str, VectorMap], out: Path, seed: int, rules: Rules | None, job: Job) -> Report:
    city, augmented, numbers, held_out = job
    report = Report()
    for run in drive(maps[city], numbers, seed, augmented, rules):
        if run.rejected is not None:
            report.rejected[run.rejected] += 1
            continue
        for scene in windows(run, city):
            write_scene(scene, out / ("val" if run.number in held_out else "train") / "data")
            report.scenes += 1
            report.held_out += run.number in held_out
            report.augmented += run.augmentation is not None
            describe(scene, report)
    return report


def describe(scene: Scene, report: Report) -> None:
    """Adds a scene's mean speed and its turn to a report."""
    found = motion(scene.agent.xy)
    report.speeds.append(float(found["speed"].mean()))
    report.turns[turn_of(scene)] += 1


def turn_of(scene: Scene) -> str:
    """ "left", "right" or "straight": whether the agent's heading changes by 30 degrees over the scene."""
    angle = heading_change(scene.agent.xy)
    return "straight" if abs(angle) < 30 else "left" if angle > 0 else "right"
