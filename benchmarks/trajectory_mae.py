"""The driving room measured: speed beside the official preprocessing, rules on many maps, statistics, the two masks,
what a pre-trained encoder is worth beside a random one.

    python benchmarks/trajectory_mae.py speed --scenes 500 --official DENSETNT/src     # one core
    python benchmarks/trajectory_mae.py rules --maps 3000
    python benchmarks/trajectory_mae.py statistics --released FOLDER_OF_CSVS
    python benchmarks/trajectory_mae.py masks --runs RUN_FOLDERS
    python benchmarks/trajectory_mae.py transfer --runs RUN_FOLDERS --epochs 10        # and again with --frozen

Rates of `speed` are of CPU seconds of this process, so that a busy neighbour does not lower them. The official
preprocessing is DenseTNT's, which the paper's repository carries on; a scene there becomes a compressed pickle.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, resident_bytes, write_report
from trajectory_mae_official import official_pipeline

from datamodules.trajectory_mae import DrivingDataModule, SceneDataset, to_batch
from zoo.driving.agents import Rules, drive
from zoo.driving.audit import PERCENTILES, statistics, worst
from zoo.driving.features import agent_vectors, lane_vectors
from zoo.driving.maps import VectorMap, write_map
from zoo.driving.scenes import Scene, Track, read_scene, write_scene
from zoo.driving.store import SceneStore
from zoo.driving.synthesis import generate_scenes
from zoo.driving.towns import make_town
from zoo.loading import load
from zoo.papers.trajectory_mae import TrajectoryForecaster, TrajectoryMAE
from zoo.papers.trajectory_mae.module import reconstruction_errors
from zoo.papers.trajectory_mae.report import ForecastReport

Rows = list[dict[str, Any]]


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def crowd(scenes: list[Scene], users: int) -> list[Scene]:
    """Scenes with an AV and others around the agent, as recorded ones have: road users of the scenes that follow."""
    out = []
    for index, scene in enumerate(scenes):
        tracks = [scene.agent]
        for other in range(1, users):
            track = scenes[(index + other) % len(scenes)].agent
            tracks.append(Track("AV" if other == 1 else "OTHERS", track.times, track.xy))
        out.append(replace(scene, name=f"{index}.csv", tracks=tracks, augmentation=None))
    return out


def speed(args: argparse.Namespace) -> Rows:
    torch.set_num_threads(1)
    town, rows = make_town(0, args.town), []

    def row(what: str, seconds: float, count: int, **more: Any) -> float:
        peak = resident_bytes("VmHWM") / 2**20
        rate = count / seconds
        cells = {"what": what, "scenes": count, "cpu_s": seconds, "scenes / s": rate, "peak MiB": peak}
        rows.append({**cells, "grown MiB": None, "ours / official": None, **more})
        return rate

    seconds, scenes = cpu_seconds(lambda: generate_scenes(town, -(-args.scenes // 11), 0, 0.5)[: args.scenes])
    row("drive and cut scenes", seconds, len(scenes))
    for name, chosen in (("1 road user", scenes), (f"{args.users} road users", crowd(scenes, args.users))):
        with tempfile.TemporaryDirectory() as folder:
            ours, files = _preprocess(name, chosen, town, Path(folder), row)
            if args.official and chosen[0].augmentation is None and len(chosen[0].tracks) > 1:
                official = official_pipeline(Path(args.official), town)
                seconds, made = cpu_seconds(lambda f=files, o=official: [o(file) for file in f])
                ratio = ours * seconds / len(files)
                row(f"official preprocessing, {name}", seconds, len(files), **{"ours / official": ratio})
                _check_same(made[0][0], files[0], town)
    _models(scenes, town, args, row)
    return rows


def _preprocess(name: str, scenes: list[Scene], town: VectorMap, root: Path, row: Any) -> tuple[float, list[Path]]:
    write_map(town, root / "map_files")
    (root / "data").mkdir()
    files = [write_scene(scene, root / "data") for scene in scenes]
    start = resident_bytes("VmRSS")
    seconds, store = cpu_seconds(lambda: SceneStore.from_folder(files, root / "map_files", root / "cache"))
    grown = (resident_bytes("VmRSS") - start) / 2**20
    rate = row(f"CSVs to the store, {name}", seconds, len(files), **{"grown MiB": grown})
    data = SceneDataset(store, history_only=True)
    seconds, _ = cpu_seconds(lambda: [data[i] for i in range(len(data))])
    row(f"samples from the store, {name}", seconds, len(data))
    return rate, files


def _check_same(matrix: np.ndarray, file: Path, town: VectorMap) -> None:
    """The official vectors of a file are ours."""
    from zoo.driving.features import LANE_COLUMNS, localise

    local = localise(read_scene(file), town)
    agents = agent_vectors(local.tracks, history_only=True)
    lanes, lengths = lane_vectors(local.lanes, local.lane_flags, len(agents))
    mine = np.concatenate([*agents])
    np.testing.assert_allclose(matrix[: len(mine), :10].astype(float), mine, rtol=0, atol=1e-3)
    flat = np.concatenate([lane[:n] for lane, n in zip(lanes, lengths, strict=True)])
    np.testing.assert_allclose(matrix[len(mine) :][:, list(LANE_COLUMNS)].astype(float), flat, rtol=0, atol=1e-3)


def _models(scenes: list[Scene], town: VectorMap, args: argparse.Namespace, row: Any) -> None:
    store = SceneStore.from_scenes(scenes[: args.batch], {town.city: town})
    for task, history in (("pretrain", False), ("forecast", True)):
        data = SceneDataset(store, history)
        model: Any = TrajectoryForecaster(width=args.width) if history else TrajectoryMAE(width=args.width)
        batch = to_batch([data[i] for i in range(len(data))])

        def step(model: Any = model, batch: Any = batch, history: bool = history) -> None:
            (model.loss(batch).mean() if history else model.reconstruct(batch).loss).backward()

        step()
        row(f"training step, {task}", cpu_seconds(step)[0], len(data))
        if history:
            row("predict six trajectories", cpu_seconds(lambda m=model, b=batch: m.predict(b))[0], len(data))


def rules(args: argparse.Namespace) -> Rows:
    """The worst that runs do on random maps, plain and augmented, beside what the rules allow."""
    rows: Rows = []
    limits = Rules(seconds=8.0)
    allowed = {
        "speed": limits.desired_speed, "acceleration": limits.max_acceleration,
        "lateral": limits.max_jump * limits.max_lateral,
        "curvature": float(np.tan(limits.max_steer)) / limits.wheel_base,
        "jump": 1.05 * limits.desired_speed, "path": limits.max_offset, "lane": None,
    }  # fmt: skip
    for augmented in (False, True):
        found: dict[str, float] = {}
        kept = thrown = 0
        for seed in range(args.maps):
            town = make_town(seed, size=2 + seed % 2)
            runs = drive(town, range(2), seed, augmented, limits)
            good = sum(run.rejected is None for run in runs)
            kept, thrown = kept + good, thrown + len(runs) - good
            found = {name: max(found.get(name, 0.0), value) for name, value in worst(town, runs).items()}
        name = "augmented" if augmented else "original"
        rows.append({"maps": f"{args.maps} {name}", "kept": kept, "thrown away": thrown, **found})
    rows.append({"maps": "allowed", "kept": None, "thrown away": None, **allowed})
    return rows


def released_and_ours(args: argparse.Namespace) -> Rows:
    sides = {}
    if args.released:
        sides["released"] = [read_scene(path) for path in sorted(Path(args.released).rglob("*.csv"))]
    town = make_town(0)
    sides["ours, original maps"] = generate_scenes(town, args.runs, 0, 0.0)
    sides["ours, augmented maps"] = generate_scenes(town, args.runs, 0, 1.0)
    rows: Rows = []
    for side, scenes in sides.items():
        for name, values in statistics(scenes).items():
            cells = {f"{p} %": value for p, value in zip(PERCENTILES, values, strict=True)}
            rows.append({"scenes": f"{side} ({len(scenes)})", "what": name, **cells})
    return rows


def masks(args: argparse.Namespace) -> Rows:
    """One row a run of `trajectory_mae/quickstart` (a seed, with `--model.official_mask` true or false)."""
    import yaml

    rows: Rows = []
    for folder in map(Path, args.runs):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        row: dict[str, Any] = {
            "decoder mask": "released" if config["model"]["init_args"]["official_mask"] else "ours",
            "seed": config["seed_everything"],
        }
        for entry in json.loads((folder / "results.json").read_text(encoding="utf-8")):
            row[entry["name"]] = entry["value"]
            row[f"{entry['name']}, {entry['baseline_name']}"] = entry["baseline"]
        rows.append(row)
    return rows


def transfer(args: argparse.Namespace) -> Rows:
    """Forecasters from each run's encoder and from random ones, `seeds` times on the same few scenes: mean and range.

    `rank` is the effective rank (exponential of the entropy of the squared singular values) of the lanes' states
    before fine-tuning: how many directions the encoder tells lanes apart in. `lane_error` and `trajectory_error` in
    metres, of pre-training's held-out scenes, come with their own visible polylines and with those of another scene:
    no difference means that the decoder does not look at what the encoder says.
    """
    torch.set_num_threads(1)
    report = ForecastReport(args.epochs, 16, args.lr)
    few, held_out = DrivingDataModule(generated_size=args.town, unseen_train=args.scenes).unseen_scenes()
    probe = to_batch([few[i] for i in range(min(48, len(few)))])
    starts = {str(run): load(str(run)) for run in args.runs}
    data = DrivingDataModule(generated_size=args.town, batch_size=128)
    data.setup()
    whole = next(iter(data.val_dataloader()))
    shape = {key: next(iter(starts.values())).hparams[key] for key in ("width", "depth", "normalise")}
    rows: Rows = []
    for name, start in {**starts, "random": None}.items():
        found: dict[str, list[float]] = {}
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            model = TrajectoryForecaster(**shape)
            if start is not None:
                model.load_encoder(start.state_dict())
            with torch.no_grad():
                lanes = model.backbone(probe)[3][probe["lane_length"] > 0]
                share = torch.linalg.svdvals(lanes - lanes.mean(0)).square()
                share = share / share.sum()
            if args.frozen:
                model.backbone.requires_grad_(False)
            report.train(model, few, seed, args.lr)
            outcome = report.score(held_out, model.device, lambda batch, m=model: m.predict(batch)[0])
            outcome["rank"] = float((-(share * share.clamp_min(1e-12).log()).sum()).exp())
            for key, value in outcome.items():
                found.setdefault(key, []).append(value)
        row: dict[str, Any] = {"encoder from": name, "seeds": args.seeds}
        if start is not None:
            for shift, context in enumerate(("", ", other scene")):
                for key, value in rebuilt(start, whole, shift).items():
                    row[key + context] = value
        for key, values in found.items():
            row[key] = float(np.mean(values))
            row[f"{key} range"] = f"{min(values):.3g} to {max(values):.3g}"
        rows.append(row)
    return rows


@torch.no_grad()
def rebuilt(model: TrajectoryMAE, batch: dict[str, torch.Tensor], shift: int) -> dict[str, float]:
    """End-point errors of what is masked, when the decoders see the polylines of the scene `shift` rows on."""

    def move(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        queries, valid, context, context_valid = inputs
        return queries, valid, context.roll(shift, 0), context_valid.roll(shift, 0)

    # The two decoders have scenes of one kind each, so that a lane's decoder gets a scene with masked lanes, too.
    handles = [part.register_forward_pre_hook(move) for part in (model.map_decoder, model.traj_decoder)]
    errors = reconstruction_errors(model.reconstruct(batch, model.fixed_masks(batch, 0)))
    for handle in handles:
        handle.remove()
    return {key: float(value) for key, (value, count) in errors.items() if count and "straight" not in key}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("speed")
    mode.add_argument("--scenes", type=int, default=500)
    mode.add_argument("--users", type=int, default=12, help="road users a scene, as recorded scenes have about")
    mode.add_argument("--town", type=int, default=8, help="crossings a side")
    mode.add_argument("--batch", type=int, default=64)
    mode.add_argument("--width", type=int, default=128)
    mode.add_argument("--official", help="DenseTNT's src folder")
    mode = modes.add_parser("rules")
    mode.add_argument("--maps", type=int, default=1000)
    mode = modes.add_parser("statistics")
    mode.add_argument("--runs", type=int, default=200)
    mode.add_argument("--released", help="folder of the released scenes")
    mode = modes.add_parser("masks")
    mode.add_argument("--runs", nargs="+", required=True, help="run folders of the quickstart")
    mode = modes.add_parser("transfer")
    mode.add_argument("--runs", nargs="+", required=True, help="run folders of the quickstart")
    mode.add_argument("--scenes", type=int, default=64, help="to fine-tune on")
    mode.add_argument("--epochs", type=int, default=10)
    mode.add_argument("--lr", type=float, default=2e-3)
    mode.add_argument("--seeds", type=int, default=3)
    mode.add_argument("--town", type=int, default=8, help="crossings a side")
    mode.add_argument("--frozen", action="store_true", help="train the forecaster's decoder alone")
    for mode in modes.choices.values():
        mode.add_argument("--json")
    args = parser.parse_args()
    choices = {
        "speed": speed, "rules": rules, "statistics": released_and_ours, "masks": masks, "transfer": transfer,
    }  # fmt: skip
    rows = choices[args.mode](args)
    report = {
        "benchmark": f"trajectory_mae {args.mode}",
        "settings": {key: value for key, value in vars(args).items() if key not in ("mode", "json")},
        "machine": machine("cpu"),
        "rows": rows,
        "notes": [],
    }
    write_report(report, args.json)


if __name__ == "__main__":
    sys.exit(main())
