"""Speed of the driving room on one core: scenes driven, CSVs preprocessed, samples made, training steps; peak memory.

    python benchmarks/trajectory_mae.py --scenes 1000 --json trajectory_mae.json

Rates are of CPU seconds of this process, so that a busy neighbour does not lower them. The official pipeline is not
part of this comparison yet.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, resident_bytes, write_report

from datamodules.trajectory_mae import SceneDataset, to_batch
from zoo.driving.maps import write_map
from zoo.driving.scenes import write_scene
from zoo.driving.store import SceneStore
from zoo.driving.synthesis import generate_scenes
from zoo.driving.towns import make_town
from zoo.papers.trajectory_mae import TrajectoryForecaster, TrajectoryMAE


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    town = make_town(0)
    rows: list[dict[str, Any]] = []

    def row(what: str, seconds: float, count: int, unit: str) -> None:
        peak = resident_bytes("VmHWM") / 2**20
        rows.append({"what": what, "count": count, "cpu_s": seconds, f"{unit} / s": count / seconds, "peak MiB": peak})

    seconds, scenes = cpu_seconds(lambda: generate_scenes(town, -(-args.scenes // 11), 0, 0.5)[: args.scenes])
    row("drive and cut scenes", seconds, len(scenes), "scenes")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_map(town, root / "map_files")
        (root / "data").mkdir()
        files = [write_scene(scene, root / "data") for scene in scenes]
        seconds, store = cpu_seconds(lambda: SceneStore.from_folder(files, root / "map_files", root / "cache"))
        row("preprocess CSVs into the store", seconds, len(scenes), "scenes")
        for task, history in (("pretrain", False), ("forecast", True)):
            data = SceneDataset(store, history)
            seconds, samples = cpu_seconds(lambda data=data: [data[i] for i in range(len(data))])
            row(f"samples, {task}", seconds, len(data), "scenes")
            model: Any = TrajectoryForecaster(width=args.width) if history else TrajectoryMAE(width=args.width)
            batch = to_batch(samples[: args.batch])

            def step(model: Any = model, batch: Any = batch, history: bool = history) -> None:
                (model.loss(batch).mean() if history else model.reconstruct(batch).loss).backward()

            step()
            seconds, _ = cpu_seconds(step)
            row(f"training step, {task}", seconds, len(batch["lanes"]), "scenes")
            if history:
                seconds, _ = cpu_seconds(lambda model=model, batch=batch: model.predict(batch))
                row("predict six trajectories", seconds, len(batch["lanes"]), "scenes")
    settings = {"scenes": args.scenes, "batch": args.batch, "width": args.width}
    notes = ["scenes of a made-up town: one road user each, about 20 lanes"]
    report = {
        "benchmark": "trajectory_mae",
        "settings": settings,
        "machine": machine("cpu"),
        "rows": rows,
        "notes": notes,
    }
    write_report(report, args.json)


if __name__ == "__main__":
    main()
