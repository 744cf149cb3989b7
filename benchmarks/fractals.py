"""Fractal pictures per second on one core, beside the official numba renderer, and whether ours are the same fractals.

    python benchmarks/fractals.py speed --official OFFICIAL_CLONE --json out.json
    python benchmarks/fractals.py same --systems 300
    python benchmarks/fractals.py scaling
    python benchmarks/fractals.py device --device cuda
    python benchmarks/fractals.py device --device cpu --batch 8 --ahead 4 --window 64 --rounds 2 --systems 20

`speed` alternates the official code and both of our modes on the same systems within one process and one thread, and
counts seconds of computing, so that neighbours on the machine matter less.
`same` compares the fast renderer with the exact one over many systems. `scaling`: time beside points, pictures and
classes, each size in a process of its own for its memory. `device`: pictures made on the training device from loaders'
draws (`data.renderer device`), whether they are as the CPU's, and on a GPU how long a ResNet-50 waits for them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, in_own_process, machine, median, resident_bytes, write_report
from lightning.fabric.utilities import move_data_to_device

from datamodules.fractals import FractalsDataModule
from datamodules.fractals.colour import draw_background
from datamodules.fractals.draws import DrawnPictures
from datamodules.fractals.pictures import LayoutRule, Material, SingleInstance, compose
from datamodules.fractals.rendering import Renderer, chaos_game, count_points, draw_choices, fast_chaos_game
from datamodules.fractals.systems import SeededSystems
from datamodules.fractals.torch_renderer import Systems, TorchRenderer, pack_systems

SIZE, STEPS, SYSTEMS = 224, 100_000, 64
ROWS = ("chaos game", "background", "single instance", "multi-instance, new system each", "multi-instance, cache only",
        "multi-instance, period 2")  # fmt: skip


def load_official(clone: str) -> tuple[Any, Any, Any]:
    """The official `ifs`, `diamondsquare` and `generator` modules of a clone, without the rest of its imports."""
    sys.path.insert(0, clone)
    from fractal_learning.fractals import diamondsquare, ifs  # type: ignore[import-not-found]

    path = Path(clone) / "fractal_learning/training/datamodule/datasets/generator.py"
    spec = importlib.util.spec_from_file_location("official_generator", path)
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    return ifs, diamondsquare, generator


class _Turn:
    """The systems one after the other, over and over."""

    def __init__(self) -> None:
        drawn = SeededSystems(SYSTEMS)
        self.systems, self.at = [drawn(index) for index in range(SYSTEMS)], 0

    def __call__(self) -> np.ndarray:
        self.at = (self.at + 1) % SYSTEMS
        return self.systems[self.at].copy()


def official_sides(clone: str) -> dict[str, Callable[[], Any]]:
    ifs, diamondsquare, generator = load_official(clone)
    turn, single, multi = _Turn(), generator.IFSGenerator(SIZE), generator.MultiGenerator(SIZE)
    for label in range(SYSTEMS):
        multi.add_sample(turn(), label)
    count = iter(range(10**12))
    return {
        "chaos game": lambda: ifs.iterate(turn(), STEPS),
        "background": lambda: diamondsquare.colorized_ds(SIZE),
        "single instance": lambda: single(turn()),
        "multi-instance, new system each": lambda: multi(turn(), 0, True),
        "multi-instance, cache only": lambda: multi(turn(), 0, False),
        "multi-instance, period 2": lambda: multi(turn(), 0, next(count) % 2 == 0),
    }


def our_sides(mode: str) -> dict[str, Callable[[], Any]]:
    turn, rng = _Turn(), np.random.default_rng(0)
    renderer = Renderer(STEPS, mode)  # type: ignore[arg-type]
    single, material, rule = SingleInstance(SIZE, renderer), Material(SIZE, SIZE // 2, renderer), LayoutRule(SIZE)
    ring = [material(turn(), rng) for _ in range(SYSTEMS)]
    count, calls = iter(range(10**12)), iter(range(10**12))

    def new() -> None:
        ring[next(count) % SYSTEMS] = material(turn(), rng)

    def show() -> np.ndarray:
        return compose(rule.draw(rng, SYSTEMS), lambda i: ring[i][0], lambda i: ring[i][1], mode == "exact")

    def new_and_show() -> np.ndarray:
        new()
        return show()

    def every_other() -> np.ndarray:
        if next(calls) % 2:
            new()
        return show()

    return {
        "chaos game": lambda: renderer.points(turn(), rng),
        "background": lambda: draw_background(SIZE, rng, mode),  # type: ignore[arg-type]
        "single instance": lambda: single(turn(), rng),
        "multi-instance, new system each": new_and_show,
        "multi-instance, cache only": show,
        "multi-instance, period 2": every_other,
    }


def cpu_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of this process's own computing for one `run()`: what neighbours take does not count."""
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def take_turns(sides: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> list[dict[str, float]]:
    """As `common.alternate`, in seconds of computing; one dict a round, after a warm-up."""
    for run in sides.values():
        cpu_seconds(run, 3)
    return [{name: cpu_seconds(run, repeats) for name, run in sides.items()} for _ in range(rounds)]


def loader_rate(task: str) -> tuple[float, float]:
    """Pictures a second of the data set itself, seeding and all, once its window is full; MiB that it grew by then."""
    data = FractalsDataModule(task, streams=1, window=64, num_workers=0, val_images=1)  # type: ignore[arg-type]
    data.setup()
    for index in range(300):
        data.train_data[(0, index)]
    at, before = iter(range(300, 10**9)), resident_bytes("VmRSS")
    rate = 1 / cpu_seconds(lambda: data.train_data[(0, next(at))], 600)
    return rate, (resident_bytes("VmRSS") - before) / 2**20


def speed(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    sides = {("fast", row): run for row, run in our_sides("fast").items()}
    sides |= {("exact", row): run for row, run in our_sides("exact").items()}
    if args.official:
        sides |= {("official", row): run for row, run in official_sides(args.official).items()}
    rounds = take_turns({f"{a}|{b}": run for (a, b), run in sides.items()}, args.rounds, args.repeats)
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        line: dict[str, Any] = {"what": row}
        for side in ("official", "exact", "fast"):
            key = f"{side}|{row}"
            if key in rounds[0]:
                line[f"{side} /s"] = 1 / median([r[key] for r in rounds])
        for side in ("exact", "fast"):
            if args.official:
                line[f"{side} x official"] = median([r[f"official|{row}"] / r[f"{side}|{row}"] for r in rounds])
        rows.append(line)
    growth = []
    for task in ("multi_instance", "multi_class"):
        rate, grown = loader_rate(task)
        rows.append({"what": f"data set {task}", "fast /s": rate})
        growth.append(f"{grown:.1f} MiB ({task})")
    notes = [
        f"memory grown over 600 pictures of a data set whose window is full: {', '.join(growth)}",
        f"peak memory of this process, both codes and PyTorch: {resident_bytes('VmHWM') / 2**20:.0f} MiB",
        "period 2 and the data sets are the paper's recipes: a new system for every other picture",
    ]
    settings = {"size": SIZE, "points": STEPS, "systems": SYSTEMS, "rounds": args.rounds}
    report = dict(benchmark="fractals speed", settings=settings, machine=machine("cpu"), rows=rows, notes=notes)
    write_report(report, args.json)


def same(args: argparse.Namespace) -> None:
    """Fast beside exact over many systems: distance of the counts, lit cells, histogram of counts.

    Lit cells and counts are those of each run's own box, as pictures show them. A few systems have maps that are hardly
    ever taken and reach far out, so that the boxes of two exact runs differ as well: ranks (Wilcoxon's signed-rank
    test) are not led astray by those few, and the mean leaves out the outer twentieth.
    """
    from scipy.stats import trim_mean, wilcoxon

    systems, side = SeededSystems(args.systems, seed=1), 112
    apart, between, lit, levels = [], [], [], []
    for index in range(args.systems):
        system = systems(index)
        runs = [chaos_game(system, draw_choices(system, STEPS, np.random.default_rng([index, k]))) for k in range(2)]
        runs.append(fast_chaos_game(system, STEPS, index))
        shares = [count_points(run, side, runs[0].bounds)[1:-1, 1:-1] for run in runs]
        shares = [grid / grid.sum() for grid in shares]
        between.append(np.abs(shares[0] - shares[1]).sum() / 2)
        apart.append(np.abs(shares[0] - shares[2]).sum() / 2)
        grids = [count_points(run, side)[1:-1, 1:-1] for run in runs]
        lit.append([(grid > 0).sum() for grid in grids])
        levels.append([np.quantile(grid[grid > 0], 0.95) for grid in grids])
    rows = []
    for name, k, distance in (("exact, another seed", 1, between), ("fast", 2, apart)):
        row: dict[str, Any] = {"beside exact": name, "total variation": float(np.mean(distance))}
        for title, values in (("lit cells", np.array(lit, float)), ("95 % count", np.array(levels, float))):
            ratio = np.log(values[:, k] / values[:, 0])
            row[title] = float(np.exp(trim_mean(ratio, 0.05)))
            row[f"p of {title}"] = float(wilcoxon(ratio).pvalue)
        rows.append(row)
    worst = float(np.max(np.array(apart) / np.array(between)))
    notes = [f"largest ratio of the two distances over all systems: {worst:.3f}"]
    settings = {"systems": args.systems, "points": STEPS, "side": side}
    report = dict(benchmark="fractals same", settings=settings, machine=machine("cpu"), rows=rows, notes=notes)
    write_report(report, args.json)


def scaling(args: argparse.Namespace) -> None:
    """Ten times the points or pictures should take ten times as long, a thousand times the classes no more memory."""
    sizes = [(1000, 300, points) for points in (10_000, 100_000, 1_000_000)]
    sizes += [(1000, 3000, 100_000), (1_000_000, 300, 100_000)]
    rows = [in_own_process(__file__, "one-size", "--size", *map(str, size)) for size in sizes]
    report = dict(benchmark="fractals scaling", settings={"size": SIZE, "task": "multi_instance"},
                  machine=machine("cpu"), rows=rows, notes=[])  # fmt: skip
    write_report(report, args.json)


def one_size(args: argparse.Namespace) -> None:
    """Prints the row of one size as JSON: seconds of computing of `pictures`, once window and caches are full."""
    torch.set_num_threads(1)
    classes, pictures, points = args.size
    data = FractalsDataModule(num_classes=classes, points=points, streams=1, window=64, num_workers=0, val_images=1)
    data.setup()
    for index in range(64):
        data.train_data[(0, index)]
    at = iter(range(64, 10**9))
    seconds = cpu_seconds(lambda: data.train_data[(0, next(at))], pictures) * pictures
    row = {"classes": classes, "pictures": pictures, "points": points, "seconds": seconds}
    print(json.dumps(row | {"ms a picture": 1000 * seconds / pictures, "peak MiB": resident_bytes("VmHWM") / 2**20}))


class _Stream:
    """Batches of draws, on the device, one after the other; the first ones fill the window before anything is timed."""

    def __init__(self, task: str, batch: int, device: str, count: int, window: int) -> None:
        self.data = FractalsDataModule(
            task,  # type: ignore[arg-type]
            batch_size=batch, renderer="device", streams=1, window=window, num_workers=0, val_images=1,
        )  # fmt: skip
        self.data.setup()
        self.drawn = DrawnPictures(self.data.train_data)
        warm = -(-window * self.data.hparams.period // batch)
        self._batch(0, 4)  # compiles what draws
        start = time.process_time()
        batches = [self._batch(k, batch) for k in range(warm + count)]
        self.draws_rate = len(batches) * batch / (time.process_time() - start)
        self.batches = [move_data_to_device(one, torch.device(device)) for one in batches]
        for one in self.batches[:warm]:
            self.data.on_after_batch_transfer(one, 0)
        self.ring = self.data._device["train"].ring
        self.full = self.ring.holds.copy(), {name: kept.clone() for name, kept in self.ring.kept.items()}
        self.warm = self.at = warm

    def _batch(self, number: int, size: int) -> Any:
        return self.drawn.collate([self.drawn[(0, number * size + k)] for k in range(size)])

    def __call__(self) -> Any:
        """Normalised pictures and what comes with them, with half a new fractal for each."""
        if self.at == len(self.batches):  # again from where the ring was full
            self.at = self.warm
            self.ring.holds[:] = self.full[0]
            for name, kept in self.full[1].items():
                self.ring.kept[name].copy_(kept)
        self.at += 1
        return self.data.on_after_batch_transfer(self.batches[self.at - 1], 0)


def device(args: argparse.Namespace) -> None:
    """What the training device makes of draws; the ring is full, so half a fractal comes with a picture."""
    torch.set_num_threads(args.threads)
    rows, notes = [], []
    for size in args.batch:
        for task in ("multi_instance", "multi_class", "views"):
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            stream = _Stream(task, size, args.device, args.ahead, args.window)
            sides: dict[str, Callable[[], Any]] = {"pictures": stream}
            if args.device == "cuda" and task != "views":
                sides |= _resnet(stream, size, args.device)
            if args.device == "cuda":
                rounds = alternate(sides, args.device, args.rounds, args.seconds)
            else:
                rounds = take_turns(sides, args.rounds, args.ahead)
            taken = {name: median([r[name] for r in rounds]) for name in sides}
            many = 2 if task == "views" else 1
            row = {"task": task, "batch": size, "pictures /s": many * size / taken["pictures"]}
            row["draws /s and core"] = stream.draws_rate
            if "step" in taken:
                row["ResNet-50 step, pictures /s"] = size / taken["step"]
                row["both, pictures /s"] = size / taken["both"]
                row["share that it waits"] = 1 - taken["step"] / taken["both"]
            peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident_bytes("VmHWM")
            row["peak MiB"] = peak / 2**20
            rows.append(row)
            del stream, sides
    notes.append(_same_on(args.device, args.systems))
    if args.device == "cpu":
        notes.append("seconds of computing; peak MiB is the process's highest so far, PyTorch and all")
    settings = {"size": SIZE, "points": STEPS, "window": args.window, "threads": args.threads}
    report = dict(benchmark="fractals device", settings=settings, machine=machine(args.device), rows=rows, notes=notes)
    write_report(report, args.json)


def _resnet(stream: _Stream, size: int, device: str) -> dict[str, Callable[[], Any]]:
    """A bf16 training step on pictures that are there, and on pictures that have to be made."""
    from torchvision.models import resnet50

    model = resnet50().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    ready = torch.rand(size, 3, SIZE, SIZE, device=device)

    def step(images: torch.Tensor) -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = model(images.contiguous(memory_format=torch.channels_last)).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"step": lambda: step(ready), "both": lambda: step(stream()[0])}


def _same_on(device: str, count: int) -> str:
    """Counts and lit cells of the device's fractals beside the exact renderer's, as `same` compares the fast one."""
    from scipy.stats import trim_mean

    systems, side, renderer = SeededSystems(count, seed=1), 112, TorchRenderer(STEPS)
    apart, between, lit = [], [], []
    for index in range(count):
        system = systems(index)
        runs = [chaos_game(system, draw_choices(system, STEPS, np.random.default_rng([index, k]))) for k in range(2)]
        packed = Systems(*(torch.from_numpy(part).to(device) for part in pack_systems([system], [index])))
        box = torch.tensor(runs[0].bounds, dtype=torch.float32, device=device)[None]
        in_box, own = (
            renderer.counts(packed, side, show)[0][0, 1:-1, 1:-1].cpu() for show in (lambda _, b=box: b, None)
        )
        grids = [count_points(run, side, runs[0].bounds)[1:-1, 1:-1] for run in runs] + [in_box.numpy()]
        shares = [grid / grid.sum() for grid in grids]
        between.append(np.abs(shares[0] - shares[1]).sum() / 2)
        apart.append(np.abs(shares[0] - shares[2]).sum() / 2)
        exact = count_points(runs[0], side)[1:-1, 1:-1]
        lit.append(float((own > 0).sum() / (exact > 0).sum()))
    ratio = float(np.exp(trim_mean(np.log(lit), 0.05)))
    return (
        f"{count} systems beside the exact renderer: total variation {np.mean(apart):.4f} (two exact runs "
        f"{np.mean(between):.4f}), lit cells {ratio:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "same", "scaling", "one-size", "device"])
    parser.add_argument("--official", metavar="CLONE", help="clone of the official repository, for speed")
    parser.add_argument("--systems", type=int, default=300, help="for same and device")
    parser.add_argument("--size", type=int, nargs=3, metavar=("CLASSES", "PICTURES", "POINTS"), help="for one-size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=30, help="for speed: runs of one measurement")
    parser.add_argument("--seconds", type=float, default=0.3, help="for device: least time of one measurement")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256], help="for device")
    parser.add_argument("--ahead", type=int, default=16, help="for device: batches that take turns")
    parser.add_argument("--window", type=int, default=512, help="for device")
    parser.add_argument("--threads", type=int, default=1, help="for device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="for device")
    parser.add_argument("--json")
    args = parser.parse_args()
    runs = {"speed": speed, "same": same, "scaling": scaling, "one-size": one_size, "device": device}
    runs[args.what](args)


if __name__ == "__main__":
    main()
