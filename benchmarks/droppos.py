"""Speed and memory of DropPos: the training step and the data pipeline, beside the official code. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing it

from benchmarks import common
from benchmarks.droppos_official import load_official
from datamodules.droppos import DropPosDataModule
from zoo.errors import ZooError
from zoo.papers.droppos import DropPos, weights

SIZES = {  # the encoder, and the model's name in the official code
    "vits16": (dict(embed_dim=384, depth=12, num_heads=6), "DropPos_mae_vit_small_patch16_dec512d2b"),
    "vitb16": (dict(embed_dim=768, depth=12, num_heads=12), "DropPos_mae_vit_base_patch16_dec512d2b"),
    "vitl16": (dict(embed_dim=1024, depth=24, num_heads=16), "DropPos_mae_vit_large_patch16_dec512d2b"),
}
RATIOS = dict(mask_ratio=0.75, pos_mask_ratio=0.75)
# The released code's switches, so that both sides compute the same loss and clip alike; they cost what the paper's do.
SWITCHES = dict(
    smoothing_distance="squared", smoothing_normalize="column", smoothing_grid="official", clip_mode="per_tensor"
)
PHOTOS = {"500x375": (500, 375), "1600x1200": (1600, 1200)}  # ImageNet's usual size, a phone's
Step = Callable[[], Any]


# ---------------------------------------------------------------------- the training step


def our_step(args: argparse.Namespace, images: torch.Tensor, guide: bool = True, compiled: bool = False) -> Step:
    """Forward, backward, clip, fused AdamW, as `lightning run` does them (without the trainer around it)."""
    from timm.optim import param_groups_weight_decay

    size, _ = SIZES[args.size]
    model = DropPos(**size, **RATIOS, **SWITCHES, attn_guide=guide).to(images.device).train()
    forward = torch.compile(model.position_task) if compiled else model.position_task
    groups = param_groups_weight_decay(model, 0.05)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = forward(images).loss
        loss.backward()
        model.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    return step


def official_step(args: argparse.Namespace, images: torch.Tensor) -> Step:
    """The body of the official training loop. Its mixed precision is float16 with loss scaling, on a GPU alone."""
    official, device = load_official(args.official, args.timm), images.device.type
    model = getattr(official.models, SIZES[args.size][1])(attn_guide=True).to(images.device).train()
    smooth = official.smoothing_map(16**2, 1.0)  # 16: the script's (224 // 14)
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [  # timm's add_weight_decay: vectors undecayed
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in params if p.ndim > 1], "weight_decay": 0.05},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    half = torch.float16 if device == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(device, enabled=args.precision == "bf16" and device == "cuda")

    def step() -> None:
        with torch.autocast(device, half, enabled=args.precision == "bf16"):
            _, loss = model(images, **RATIOS, smooth=smooth)
        if not math.isfinite(loss.item()):
            raise RuntimeError("the official loss is not finite")
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        official.utils.clip_gradients(model, 5.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()  # as its loop does

    return step


def check_same_loss(args: argparse.Namespace) -> float:
    """Difference of the two losses for the same weights, images and draws, in float32; stops if it exceeds 1e-4."""
    official = load_official(args.official, args.timm)
    size, name = SIZES[args.size]
    ours = DropPos(**size, **RATIOS, **SWITCHES).eval()
    theirs = getattr(official.models, name)(attn_guide=True).eval()
    theirs.load_state_dict(weights.to_official(ours.state_dict()))
    images, losses = torch.randn(2, 3, 224, 224), []
    with torch.no_grad():
        for forward in (
            lambda: ours.position_task(images).loss,
            lambda: theirs(images, **RATIOS, smooth=official.smoothing_map(16**2, 1.0))[1],
        ):
            torch.manual_seed(1)  # both draw patch noise, then position noise
            losses.append(forward().item())
    difference = abs(losses[0] - losses[1])
    if not difference < 1e-4:
        raise ZooError(f"The losses differ by {difference:.2e}: this would time different things.")
    return difference


def step_sides(args: argparse.Namespace) -> dict[str, Callable[[torch.Tensor], Step]]:
    """What to time, in the order of the rounds."""
    sides: dict[str, Callable[[torch.Tensor], Step]] = {"ours": lambda images: our_step(args, images)}
    if args.official:
        sides["official"] = lambda images: official_step(args, images)
    if args.compile:
        sides["ours, compiled"] = lambda images: our_step(args, images, compiled=True)
    if not args.no_guide:
        sides["ours, no guidance"] = lambda images: our_step(args, images, guide=False)
    return sides


def peak_memory(args: argparse.Namespace) -> int:
    """Bytes at the peak of three steps of one side, alone in this process: weights, gradients, moments, activations.

    On a GPU what PyTorch had allocated; on a CPU the growth of the process's resident memory since before the model.
    """
    images = torch.randn(args.batch, 3, 224, 224, device=args.device)
    before = common.resident_bytes("VmRSS")
    step = step_sides(args)[args.memory_of](images)
    for _ in range(3):
        step()
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return common.resident_bytes("VmHWM") - before


def bench_step(args: argparse.Namespace) -> common.Report:
    notes = ["Sides take turns; times are medians of the rounds, spread is (slowest - fastest) / median."]
    if args.official:
        notes.append(f"Loss of both sides in float32, same weights and draws: differs by {check_same_loss(args):.1e}.")
        notes.append(f"The official side runs on timm {load_official(args.official, args.timm).timm}.")
        if args.precision == "bf16":
            half = "float16 with loss scaling, its own" if args.device == "cuda" else "bfloat16; it has none of its own"
            notes.append(f"Mixed precision of the official side: {half}.")
    images = torch.randn(args.batch, 3, 224, 224, device=args.device)
    steps = {name: build(images) for name, build in step_sides(args).items()}
    # Compiled or not, a side's matrix products are the same.
    flops = {name: common.matmul_flops(step) for name, step in steps.items() if "compiled" not in name}
    flops["ours, compiled"] = flops["ours"]

    dim, dtype = SIZES[args.size][0]["embed_dim"], common.DTYPES[args.precision]
    visible, full = args.batch * 50, args.batch * 197
    square = 8192 if args.device == "cuda" else 2048
    shapes = [(square, square, square), (visible, dim, 4 * dim), (visible, 4 * dim, dim)]
    shapes += [(full, dim, 3 * dim), (full, dim, 4 * dim), (full, 4 * dim, dim)]
    products, product_flops = common.matmul_sides(shapes, dtype, args.device)
    rounds = common.alternate(steps | products, args.device, args.rounds, min_seconds=0.3)
    times = {name: [each[name] for each in rounds] for name in rounds[0]}
    rates = {name: product_flops[name] / common.median(times[name]) for name in products}
    best = max(rates, key=rates.get)
    notes.append(f"Peak: {best} at {rates[best] / 1e9:.0f} GFLOP/s, the best of {len(rates)} shapes.")

    rows = []
    for name in steps:
        time = common.median(times[name])
        row = {
            "side": name,
            "samples/s": args.batch / time,
            "ms/step": time * 1e3,
            "spread": f"{(max(times[name]) - min(times[name])) / time:.0%}",
            "GFLOP/step": flops[name] / 1e9,
            "GFLOP/s": flops[name] / time / 1e9,
            "share of peak": flops[name] / time / rates[best],
        }
        if not args.no_memory:
            row["peak MiB"] = round(memory_of(args, name) / 2**20)
        if args.official:
            row["x official"] = common.median([each["official"] / each[name] for each in rounds])
        rows.append(row)
    if "ours, no guidance" in steps:
        ratio = common.median([each["ours"] / each["ours, no guidance"] for each in rounds])
        notes.append(f"Guidance makes the step {ratio:.2f} times as long (asked for: under 2.2 at ViT-B).")
    settings = {key: getattr(args, key) for key in ("size", "batch", "precision", "rounds")} | {"image": 224}
    return report("droppos step", args, settings, rows, notes)


def memory_of(args: argparse.Namespace, side: str) -> int:
    given = ["--size", args.size, "--batch", str(args.batch), "--precision", args.precision, "--device", args.device]
    given += ["--threads", str(args.threads), "--memory-of", side] + ["--compile"] * args.compile
    for option in ("official", "timm"):
        given += [f"--{option}", getattr(args, option)] if getattr(args, option) else []
    return common.in_own_process(__file__, "step", *given)


# ---------------------------------------------------------------------- the data pipeline


def make_photos(root: Path, size: tuple[int, int], count: int = 48) -> None:
    """JPEGs (quality 90) like a camera's: crops of scikit-learn's two photographs at `size`, with sensor noise."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    generator = np.random.default_rng(0)
    folder = root / "train" / "photo"
    folder.mkdir(parents=True)
    (root / "val").symlink_to(root / "train", target_is_directory=True)
    for index in range(count):
        photo = photos[index % 2]
        width = int(generator.uniform(0.6, 1.0) * photo.width)
        height = min(photo.height, width * size[1] // size[0])
        left, top = generator.integers(photo.width - width + 1), generator.integers(photo.height - height + 1)
        image = photo.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
        noisy = np.asarray(image) + generator.normal(0, 8, (size[1], size[0], 3))
        Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)


def our_loader(root: Path, fast_decode: bool = True) -> Iterator[Any]:
    """Files to normalised float batches: decode, crop, flip, batch as bytes, normalise the batch."""
    data = DropPosDataModule(str(root), batch_size=16, num_workers=0, pin_memory=False, fast_decode=fast_decode)
    data.setup()
    while True:
        for batch in data.train_dataloader():
            yield data.on_after_batch_transfer(batch, 0)


def official_loader(root: Path, clone: str | None, timm: str | None) -> Iterator[Any]:
    """The official transform, which also draws a mask; without a clone the same transforms from torchvision."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    if clone:
        arguments = types.SimpleNamespace(input_size=224, token_size=14, mask_ratio=0.75)
        transform = load_official(clone, timm).mask_transform.MaskTransform(arguments)
    else:
        crop = transforms.RandomResizedCrop(224, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC)
        normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize])
    data = ImageFolder(root / "train" if (root / "train").is_dir() else root, transform)
    while True:
        yield from torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, drop_last=True)


def bench_data(args: argparse.Namespace) -> common.Report:
    torch.set_num_threads(1)
    theirs = "official" if args.official else "torchvision"
    rows, notes = [], ["One process, one thread: files (in the page cache) to normalised float batches of 16."]
    with contextlib.ExitStack() as stack:
        if args.root == "synthetic":
            roots = {}
            for name, size in PHOTOS.items():
                roots[name] = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                make_photos(roots[name], size)
        else:
            roots = {Path(args.root).name: Path(args.root)}
        for name, root in roots.items():
            loaders = {
                "ours": our_loader(root),
                "ours, full decode": our_loader(root, fast_decode=False),
                theirs: official_loader(root, args.official, args.timm),
            }
            steps = {side: lambda loader=loader: next(loader) for side, loader in loaders.items()}
            rounds = common.alternate(steps, "cpu", args.rounds, min_seconds=0.5)
            for side in loaders:
                time = common.median([each[side] for each in rounds])
                gain = common.median([each[theirs] / each[side] for each in rounds])
                rows.append({"photos": name, "side": side, "images/s per core": 16 / time, f"x {theirs}": gain})
    return report("droppos data", args, {"root": args.root, "rounds": args.rounds}, rows, notes)


# ---------------------------------------------------------------------- command line


def report(name: str, args: argparse.Namespace, settings: dict, rows: list, notes: list) -> common.Report:
    return dict(benchmark=name, settings=settings, machine=common.machine(args.device), rows=rows, notes=notes)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--official", metavar="DIR", help="clone of the official code, to run beside ours")
    shared.add_argument("--timm", metavar="DIR", help="folder with timm 0.3.2 for it; without, stand-ins are used")
    shared.add_argument("--rounds", type=int, default=7, help="how often each side gets its turn (default: 7)")
    shared.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all cores)")
    step = argparse.ArgumentParser(add_help=False)
    step.add_argument("--size", choices=SIZES, default="vits16", help="the encoder (default: vits16)")
    step.add_argument("--batch", type=int, default=32, help="images a step (default: 32)")
    step.add_argument("--precision", choices=common.DTYPES, default="fp32", help="fp32, or autocast to bf16")
    step.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the step runs (default: cpu)")
    step.add_argument("--compile", action="store_true", help="time our step through torch.compile too")
    step.add_argument("--no-guide", action="store_true", help="leave out the side without attentive reconstruction")
    step.add_argument("--no-memory", action="store_true", help="skip peak memory, which takes one process a side")
    step.add_argument("--memory-of", help=argparse.SUPPRESS)
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--root", default="synthetic", help="image folder; default: photographs made for the occasion")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("--json", metavar="FILE", help="write the report there")
    commands.add_parser("step", parents=[shared, step, one], help="the training step")
    commands.add_parser("data", parents=[shared, data, one], help="the data pipeline alone").set_defaults(device="cpu")
    both = commands.add_parser("all", parents=[shared, step, data], help="both, at their defaults under ten minutes")
    both.add_argument("--json-dir", metavar="DIR", help="write droppos-step.json and droppos-data.json there")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if getattr(args, "memory_of", None):
        print(json.dumps(peak_memory(args)))
        return
    for name, bench in (("step", bench_step), ("data", bench_data)):
        if args.command == name:
            common.write_report(bench(args), args.json)
        elif args.command == "all":
            path = Path(args.json_dir) / f"droppos-{name}.json" if args.json_dir else None
            common.write_report(bench(args), path)


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
