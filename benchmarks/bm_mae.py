"""Speed and memory of BM-MAE: the pre-training step and the loader, beside the official code. See README.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing it

from benchmarks import common
from datamodules.brain_cohort import write_cohort
from datamodules.brain_tumour import Rules, TumourDataset, scan
from zoo.errors import ZooError
from zoo.papers.bm_mae import BMMAE, weights
from zoo.papers.bm_mae.masking import masks_from
from zoo.papers.bm_mae.network import MODALITIES

Step = Callable[[], Any]


def load_official(folder: str) -> Any:
    """Classes and `patchify` of the official package; its `model.py` lacks the future import of annotations."""
    root = Path(folder) / "bmmae"
    if not root.is_dir():
        raise ZooError(f"{folder} is no clone of the official code: there is no folder bmmae in it.")
    parts: dict[str, Any] = {}
    for name in ("tokenizers", "decoders", "model"):
        module = types.ModuleType(f"official_{name}")
        source = (root / f"{name}.py").read_text(encoding="utf-8")
        exec(compile("from __future__ import annotations\n" + source, str(root / f"{name}.py"), "exec"), vars(module))
        parts |= vars(module)
    return types.SimpleNamespace(**parts)


def official_model(args: argparse.Namespace) -> torch.nn.Module:
    official = load_official(args.official)
    tokenizers = {
        name: official.MRITokenizer(patch_size=(16,) * 3, img_size=(args.image,) * 3, hidden_size=768)
        for name in MODALITIES
    }
    decoder = official.Decoder(384, 3, 1536, 0.1, 12, True, (args.image,) * 3, (16,) * 3)
    return official.BMMAE(MODALITIES, tokenizers, decoder)


def official_loss(outputs: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], volumes: Any) -> torch.Tensor:
    """As the official loop: patches of the whole volume, masked mean a sequence, summed."""
    total: Any = 0
    for name in MODALITIES:
        v = volumes[name]
        b, _, h, w, d = v.shape
        target = v.reshape(b, h // 16, 16, w // 16, 16, d // 16, 16).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, -1, 4096)
        error = ((outputs[name] - target) ** 2).mean(-1)
        total = total + (error * masks[name]).sum() / masks[name].sum()
    return total


def our_step(args: argparse.Namespace, volumes: Any, compiled: bool = False) -> Step:
    model = BMMAE(image_size=args.image).to(args.device).train()
    forward = torch.compile(model.restoration) if compiled else model.restoration
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = forward(volumes, model.draw_masks(args.batch)).loss
        loss.backward()
        optimizer.step()

    return step


def official_step(args: argparse.Namespace, volumes: Any) -> Step:
    model = official_model(args).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            outputs, masks = model(volumes)
            loss = official_loss(outputs, masks, volumes)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def check_same_loss(args: argparse.Namespace) -> float:
    """Difference of both losses for the same weights, volumes and masks; stops if it exceeds 1e-4."""
    theirs, ours = official_model(args).eval(), BMMAE(image_size=args.image).eval()
    ours.load_weights(theirs.state_dict(), "the official model")
    volumes = {name: torch.randn(1, 1, *[args.image] * 3) for name in MODALITIES}
    with torch.no_grad():
        outputs, masks = theirs(volumes)
        expected = float(official_loss(outputs, masks, volumes))
        stacked = torch.stack([masks[name] for name in MODALITIES], dim=1)
        found = float(ours.restoration(volumes, masks_from(stacked)).loss)
    assert weights.to_official(ours.state_dict()).keys() <= theirs.state_dict().keys()
    if not abs(found - expected) < 1e-4 * abs(expected):
        raise ZooError(f"The losses differ ({found} and {expected}): this would time different things.")
    return abs(found - expected)


def step_sides(args: argparse.Namespace) -> dict[str, Callable[[Any], Step]]:
    sides: dict[str, Callable[[Any], Step]] = {"ours": lambda volumes: our_step(args, volumes)}
    if args.official:
        sides["official"] = lambda volumes: official_step(args, volumes)
    if args.compile:
        sides["ours, compiled"] = lambda volumes: our_step(args, volumes, compiled=True)
    return sides


def make_volumes(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    return {name: torch.randn(args.batch, 1, *[args.image] * 3, device=args.device) for name in MODALITIES}


def peak_memory(args: argparse.Namespace) -> int:
    """Bytes at the peak of two steps of one side, alone in this process."""
    volumes = make_volumes(args)
    before = common.resident_bytes("VmRSS")
    step = step_sides(args)[args.memory_of](volumes)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated() if args.device == "cuda" else common.resident_bytes("VmHWM") - before


def bench_step(args: argparse.Namespace) -> common.Report:
    notes = ["Sides take turns; times are medians of the rounds, spread is (slowest - fastest) / median."]
    if args.official:
        notes.append(f"Loss of both sides, same weights and masks: differs by {check_same_loss(args):.1e}.")
    volumes = make_volumes(args)
    steps = {name: build(volumes) for name, build in step_sides(args).items()}
    flops = {name: common.matmul_flops(step) for name, step in steps.items() if "compiled" not in name}
    flops["ours, compiled"] = flops["ours"]
    square = 8192 if args.device == "cuda" else 2048
    products, product_flops = common.matmul_sides([(square,) * 3], common.DTYPES[args.precision], args.device)
    rounds = common.alternate(steps | products, args.device, args.rounds, min_seconds=0.3)
    times = {name: [each[name] for each in rounds] for name in rounds[0]}
    peak = max(product_flops[name] / common.median(times[name]) for name in products)
    notes.append(f"Peak: a matrix product of {square} x {square} at {peak / 1e9:.0f} GFLOP/s.")
    rows = []
    for name in steps:
        seconds = common.median(times[name])
        row = {
            "side": name, "samples/s": args.batch / seconds, "ms/step": seconds * 1e3,
            "spread": f"{(max(times[name]) - min(times[name])) / seconds:.0%}",
            "GFLOP/step": flops[name] / 1e9, "share of peak": flops[name] / seconds / peak,
        }  # fmt: skip
        if not args.no_memory:
            given = ["--batch", str(args.batch), "--image", str(args.image), "--precision", args.precision, "--device"]
            given += [args.device, "--threads", str(args.threads), "--memory-of", name] + ["--compile"] * args.compile
            given += ["--official", args.official] if args.official else []
            row["peak MiB"] = round(common.in_own_process(__file__, "step", *given) / 2**20)
        if args.official:
            row["x official"] = common.median([each["official"] / each[name] for each in rounds])
        rows.append(row)
    settings = {key: getattr(args, key) for key in ("batch", "image", "precision", "rounds")}
    return report("bm_mae step", args, settings, rows, notes)


def official_dataset(root: Path) -> Any:
    """The official training transform in MONAI's plain Dataset."""
    from monai.data import Dataset
    from monai.transforms import (
        CenterSpatialCropd,
        Compose,
        EnsureChannelFirstd,
        EnsureTyped,
        LoadImaged,
        NormalizeIntensityd,
        RandFlipd,
        RandScaleIntensityd,
        RandShiftIntensityd,
        Spacingd,
    )  # fmt: skip

    keys = list(MODALITIES)
    steps = [LoadImaged(keys), EnsureChannelFirstd(keys), EnsureTyped(keys), Spacingd(keys, pixdim=(1.0, 1.0, 1.0))]
    steps += [CenterSpatialCropd(keys, roi_size=[128] * 3)]
    steps += [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)]
    steps += [NormalizeIntensityd(keys, nonzero=True, channel_wise=True)]
    steps += [RandScaleIntensityd(keys, factors=0.1, prob=1.0), RandShiftIntensityd(keys, offsets=0.1, prob=1.0)]
    subjects = scan(root, Rules()).subjects
    files = [{name: str(path) for name, path in subject.sequences.items()} for subject in subjects]
    return Dataset(files, Compose(steps))


def bench_data(args: argparse.Namespace) -> common.Report:
    """Subjects a second of one process: volumes of 240x240x155, gzipped, made for the occasion unless --root."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.root) if args.root else write_cohort(Path(folder) / "cohort", args.subjects)
        subjects = scan(root, Rules()).subjects
        sides: dict[str, Any] = {
            "official": official_dataset(root),
            "ours, no cache": TumourDataset(subjects, Rules(), train=True),
            "ours, disk cache, first epoch": TumourDataset(subjects, Rules(), True, "disk", Path(folder) / "cache"),
            "ours, disk cache, later epochs": TumourDataset(subjects, Rules(), True, "disk", Path(folder) / "cache"),
        }
        for name, dataset in sides.items():
            start = time.perf_counter()
            for index in range(len(dataset)):
                dataset[index]
            rows.append({"side": name, "subjects/s": len(dataset) / (time.perf_counter() - start)})
    for row in rows:
        row["x official"] = row["subjects/s"] / rows[0]["subjects/s"]
    notes = ["One process, one thread, each side once over all subjects; files in the page cache."]
    return report("bm_mae data", args, {"subjects": len(subjects), "shape": "240x240x155"}, rows, notes)


def report(name: str, args: argparse.Namespace, settings: dict, rows: list, notes: list) -> common.Report:
    return dict(benchmark=name, settings=settings, machine=common.machine(args.device), rows=rows, notes=notes)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="the pre-training step")
    step.add_argument("--official", metavar="DIR", help="clone of the official code, to run beside ours")
    step.add_argument("--batch", type=int, default=1, help="subjects a step (default: 1)")
    step.add_argument("--image", type=int, default=128, help="side of the volumes (default: 128)")
    step.add_argument("--precision", choices=common.DTYPES, default="fp32", help="fp32, or autocast to bf16")
    step.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the step runs (default: cpu)")
    step.add_argument("--compile", action="store_true", help="time our step through torch.compile too")
    step.add_argument("--rounds", type=int, default=5, help="how often each side gets its turn (default: 5)")
    step.add_argument("--no-memory", action="store_true", help="skip peak memory, which takes one process a side")
    step.add_argument("--memory-of", help=argparse.SUPPRESS)
    data = commands.add_parser("data", help="the loader alone")
    data.add_argument("--root", help="BraTS folder; default: heads made for the occasion")
    data.add_argument("--subjects", type=int, default=6, help="how many to make (default: 6)")
    data.set_defaults(device="cpu", memory_of=None)
    for command in (step, data):
        command.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all)")
        command.add_argument("--json", metavar="FILE", help="write the report there")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory_of:
        print(json.dumps(peak_memory(args)))
        return
    common.write_report(bench_step(args) if args.command == "step" else bench_data(args), args.json)


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
