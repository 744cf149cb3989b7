"""Speed of CLIP2Point: the depth renderer beside the per-pixel method, and the training step.

    python benchmarks/clip2point.py render              # 32 clouds x 10 views x 224, 1,024 and 8,192 points
    python benchmarks/clip2point.py render --points 1024 --clouds 32
    python benchmarks/clip2point.py step                # share of rendering, with and without kept image features

The official renderer is PyTorch3D's `PointsRasterizer` with `bin_size=0`, which tests every pixel against every point.
Where PyTorch3D is installed it runs beside ours; the same method in plain torch always does, on as many maps as take
about a second, and is scaled to the whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common
import torch

from zoo.errors import ZooError
from zoo.nn.cameras import VIEWS
from zoo.papers.clip2point import CLIP2Point, DepthRenderer
from zoo.papers.clip2point.rendering import RADIUS, rasterize, view_points

ROWS = 2  # lines of pixels that the per-pixel method holds at once: they fit a core's cache


def clouds_of(count: int, points: int, device: str) -> torch.Tensor:
    """(count, points, 3) on random ellipsoids in the unit sphere."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(count, points, 3, generator=generator)
    cloud = cloud / cloud.norm(dim=-1, keepdim=True) * (0.3 + 0.7 * torch.rand(count, 1, 3, generator=generator))
    return (cloud / cloud.norm(dim=-1).amax(1)[:, None, None]).to(device)


def per_pixel(seen: torch.Tensor, size: int, radius: float) -> torch.Tensor:
    """The definition: for each pixel the nearest of all points within the radius. (R, N, 3) to (R, S, S)."""
    centre = 1 - (2 * torch.arange(size, device=seen.device) + 1).float() / size
    maps = []
    for points in seen:
        depth = torch.where(points[:, 2] >= 0, points[:, 2], torch.inf)
        dx2, dy2 = ((centre[:, None] - points[:, axis]).square() for axis in (0, 1))  # (S, N)
        found = []
        for rows in dy2.split(ROWS):
            hit = dx2 + rows[:, None] < radius * radius  # (ROWS, S, N)
            nearest, index = torch.where(hit, depth, torch.inf).min(dim=-1)
            found.append(torch.where(nearest.isfinite(), index, -1))
        maps.append(torch.cat(found))
    return torch.stack(maps)


def pytorch3d_side(clouds: torch.Tensor, size: int) -> Any:
    """One pass of PyTorch3D's rasteriser over all maps, or None where it is not installed."""
    try:
        from pytorch3d.renderer import FoVOrthographicCameras, PointsRasterizationSettings, PointsRasterizer
        from pytorch3d.structures import Pointclouds
    except ImportError:
        return None
    from zoo.nn.cameras import camera_rotation

    rotation = camera_rotation(*VIEWS[10].tensors()).to(clouds).repeat(len(clouds), 1, 1)
    shift = clouds.new_tensor([0.0, 0.0, 1.0]).expand(len(rotation), 3)
    cameras = FoVOrthographicCameras(R=rotation, T=shift, znear=0.01, device=clouds.device)
    settings = PointsRasterizationSettings(image_size=size, radius=RADIUS, points_per_pixel=1, bin_size=0)
    rasterizer = PointsRasterizer(cameras=cameras, raster_settings=settings)
    repeated = Pointclouds(points=clouds.repeat_interleave(10, dim=0))
    return lambda: rasterizer(repeated)


def bench_render(args: argparse.Namespace) -> common.Report:
    rows, notes = [], []
    for points in args.points:
        clouds = clouds_of(args.clouds, points, args.device)
        render = DepthRenderer(10, args.size).to(args.device)
        seen = view_points(clouds, render.elev, render.azim).flatten(0, 1)
        few = seen[: args.naive_maps]
        same = (rasterize(few, args.size).index == per_pixel(few, args.size, RADIUS)).float().mean().item()
        if same < 0.999:
            raise ZooError(f"The maps agree on {same:.2%} of the pixels only: this would time different things.")
        sides = {
            "ours": lambda clouds=clouds, render=render: render(clouds),
            "per pixel": lambda few=few: per_pixel(few, args.size, RADIUS),
        }
        peer = pytorch3d_side(clouds, args.size)
        if peer is not None:
            sides["pytorch3d"] = peer
        scale = {"per pixel": len(seen) / len(few)}
        rounds = common.alternate(sides, args.device, args.rounds, min_seconds=0.2)
        ours = common.median([each["ours"] for each in rounds])
        for side in sides:
            time_ = common.median([each[side] * scale.get(side, 1) for each in rounds])
            ratio = common.median([each[side] * scale.get(side, 1) / each["ours"] for each in rounds])
            row = {"points": points, "side": side, "s": time_, "ms/map": time_ / len(seen) * 1e3, "x ours": ratio}
            if side == "ours" and not args.no_memory:
                row["peak MiB"] = round(memory_of(args, points) / 2**20)
            rows.append(row)
        notes.append(f"{points} points: maps agree on {same:.3%} of the pixels; ours {len(seen) / ours:.0f} maps/s.")
    linear(args, notes)
    settings = {"clouds": args.clouds, "views": 10, "size": args.size, "rounds": args.rounds}
    notes.append(f"The per-pixel side ran {args.naive_maps} maps, scaled to all.")
    return report("clip2point render", args, settings, rows, notes)


def linear(args: argparse.Namespace, notes: list[str]) -> None:
    """How the time grows when points or clouds double, beyond what does not depend on them."""
    times = {}
    for clouds, points in ((8, 2048), (8, 4096), (8, 8192), (16, 2048), (32, 2048)):
        render = DepthRenderer(10, args.size).to(args.device)
        cloud = clouds_of(clouds, points, args.device)
        times[clouds, points] = min(common.seconds(lambda r=render, c=cloud: r(c), args.device) for _ in range(4))
    more_points = [times[8, n] / times[8, 2048] for n in (4096, 8192)]
    more_clouds = [times[n, 2048] / times[8, 2048] for n in (16, 32)]
    notes.append(f"2x, 4x the points take {more_points[0]:.2f}x, {more_points[1]:.2f}x as long;")
    notes.append(f"2x, 4x the maps take {more_clouds[0]:.2f}x, {more_clouds[1]:.2f}x as long.")


def memory_of(args: argparse.Namespace, points: int) -> int:
    given = ["--clouds", str(args.clouds), "--points", str(points), "--size", str(args.size), "--memory"]
    return common.in_own_process(__file__, "render", "--device", args.device, "--threads", str(args.threads), *given)


def peak_memory(args: argparse.Namespace) -> int:
    """Bytes at the peak of one rendering, inputs and output included, alone in this process."""
    before = common.resident_bytes("VmRSS")
    DepthRenderer(10, args.size).to(args.device)(clouds_of(args.clouds, args.points[0], args.device))
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return common.resident_bytes("VmHWM") - before


def bench_step(args: argparse.Namespace) -> common.Report:
    """The training step at ViT-B/32, or smaller, on pictures and on features that were kept."""
    model = CLIP2Point(depth=args.depth).to(args.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    clouds = clouds_of(args.batch, 1024, args.device)
    images = torch.randint(0, 256, (args.batch, 3, 224, 224), dtype=torch.uint8, device=args.device)
    view = torch.randint(0, 10, (args.batch, 1))
    elev, azim = (angle[view].to(args.device) for angle in VIEWS[10].tensors())
    distances = torch.ones(args.batch, 2, device=args.device)
    features = model.encode_images(images)

    def step(pictures: torch.Tensor) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = model.contrast(clouds, pictures, elev, azim).loss
        loss.backward()
        for parameter in trained:
            parameter.grad = None

    sides = {
        "step on pictures": lambda: step(images),
        "step on kept features": lambda: step(features),
        "rendering alone": lambda: model._render_pairs(clouds, elev.expand(-1, 2), azim.expand(-1, 2), distances),
    }
    rounds = common.alternate(sides, args.device, args.rounds, min_seconds=0.2)
    rows = []
    for side in sides:
        time_ = common.median([each[side] for each in rounds])
        share = common.median([each[side] / each["step on kept features"] for each in rounds])
        rows.append({"side": side, "ms": time_ * 1e3, "samples/s": args.batch / time_, "x kept": share})
    settings = {"batch": args.batch, "depth": args.depth, "precision": args.precision, "rounds": args.rounds}
    return report("clip2point step", args, settings, rows, ["Forward and backward; the optimiser is not counted."])


def report(name: str, args: argparse.Namespace, settings: dict, rows: list, notes: list) -> common.Report:
    return dict(benchmark=name, settings=settings, machine=common.machine(args.device), rows=rows, notes=notes)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs (default: cpu)")
    shared.add_argument("--rounds", type=int, default=5, help="how often each side gets its turn (default: 5)")
    shared.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all cores)")
    shared.add_argument("--json", metavar="FILE", help="write the report there")
    render = commands.add_parser("render", parents=[shared], help="the depth renderer")
    render.add_argument("--clouds", type=int, default=32, help="clouds at once (default: 32)")
    render.add_argument("--points", type=int, nargs="+", default=[1024, 8192], help="of a cloud (default: 1024 8192)")
    render.add_argument("--size", type=int, default=224, help="side of a map in pixels (default: 224)")
    render.add_argument("--naive-maps", type=int, default=4, help="maps that the per-pixel side makes (default: 4)")
    render.add_argument("--no-memory", action="store_true", help="skip peak memory, which takes a process of its own")
    render.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    step = commands.add_parser("step", parents=[shared], help="the training step")
    step.add_argument("--batch", type=int, default=16, help="objects a step (default: 16; published 256)")
    step.add_argument("--depth", type=int, default=12, help="blocks of the towers (default: 12)")
    step.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="fp32, or autocast to bf16")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if getattr(args, "memory", False):
        print(json.dumps(peak_memory(args)))
        return
    bench = {"render": bench_render, "step": bench_step}[args.command]
    common.write_report(bench(args), Path(args.json) if args.json else None)


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
