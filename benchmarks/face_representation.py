"""Speed of the face room: multi-crop beside the official pipeline, SwAV's step beside other code. See README.md."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing it

from benchmarks import common
from datamodules.faces.multicrop import MultiCrop
from datamodules.faces.renderer import FaceRenderer
from zoo.errors import ZooError

COUNT = 32


def encoded_faces(size: int) -> list[bytes]:
    """JPEGs (quality 90) of drawn faces, which have noise as photographs do."""
    from PIL import Image

    draw, blobs = FaceRenderer(size, COUNT), []
    for index in range(COUNT):
        out = io.BytesIO()
        Image.fromarray(draw(index).image).save(out, "JPEG", quality=90)
        blobs.append(out.getvalue())
    return blobs


def our_pipeline(blobs: list[bytes], apply: bool = True) -> Callable[[], Any]:
    """Bytes to normalised float crops of COUNT images; `apply=False` leaves colour and blur to the device."""
    from datamodules.base import normalize
    from datamodules.faces.sources import decode

    crops = MultiCrop(apply=apply)

    def run() -> list[torch.Tensor]:
        samples = [crops(decode(blob).convert("RGB"))[0] for blob in blobs]
        batch = [torch.stack(same) for same in zip(*samples, strict=True)]
        return [normalize(part.flatten(0, 1), (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)) for part in batch]

    return run


def official_pipeline(blobs: list[bytes], clone: str) -> Callable[[], Any]:
    """The official transform (PIL jitter, cv2 blur of 23 x 23) on the same bytes, batched."""
    import cv2
    from PIL import Image

    cv2.setNumThreads(1)
    path = Path(clone) / "flr" / "datasets" / "unsupervised_dataset.py"
    spec = importlib.util.spec_from_file_location("official_faces", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ZooError(f"There is no {path}: give a clone of the official code.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Faces(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(blobs)

        def __getitem__(self, index: int) -> Any:
            return Image.open(io.BytesIO(blobs[index])).convert("RGB"), 0

    data = module.MultiCropDataset(Faces(), [224, 96], [2, 6], [0.14, 0.05], [1.0, 0.14], pil_blur=False)

    def run() -> list[torch.Tensor]:
        samples = [data[index] for index in range(len(blobs))]
        return [torch.stack(crop) for crop in zip(*samples, strict=True)]

    return run


def bench_data(args: argparse.Namespace) -> common.Report:
    torch.set_num_threads(1)
    blobs = encoded_faces(args.size)
    sides = {"ours": our_pipeline(blobs), "ours, colour and blur on the device": our_pipeline(blobs, apply=False)}
    if args.official:
        sides["official"] = official_pipeline(blobs, args.official)
    rounds = common.alternate(sides, "cpu", args.rounds, min_seconds=0.5)
    rows = []
    for name in sides:
        time = common.median([each[name] for each in rounds])
        row: dict[str, Any] = {"side": name, "images/s": COUNT / time, "ms/image": 1e3 * time / COUNT}
        if args.official:
            row["x official"] = common.median([each["official"] / each[name] for each in rounds])
        rows.append(row)
    notes = ["One process, one thread: JPEG bytes in memory to normalised float crops, 2 x 224 and 6 x 96, batched."]
    return report("face_representation data", args, {"face": args.size, "rounds": args.rounds}, rows, notes)


def our_step(args: argparse.Namespace, crops: list[torch.Tensor]) -> Callable[[], float]:
    """Forward, loss, backward, LARC, as training does them (without the trainer around it)."""
    from zoo.papers.face_representation import SwAV
    from zoo.papers.face_representation.optim import LARC

    torch.manual_seed(0)
    model = SwAV(args.network, hidden_dim=2048).to(crops[0].device).train()
    optimizer = LARC(model.parameters(), lr=0.3, weight_decay=1e-6)

    def step() -> float:
        model.normalize_prototypes()
        with autocast(args):
            loss = model.swav_loss(crops)
        return descend(loss, optimizer)

    return step


def lightly_step(args: argparse.Namespace, crops: list[torch.Tensor]) -> Callable[[], float]:
    """lightly's projection head, prototypes and SwaVLoss on the same network, put together as its example does."""
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

    from zoo.papers.face_representation.network import build_resnet

    torch.manual_seed(0)
    backbone = build_resnet(args.network)
    parts = torch.nn.ModuleList([
        backbone, SwaVProjectionHead(backbone.num_features, 2048, 128), SwaVPrototypes(128, 3000)
    ]).to(crops[0].device)  # fmt: skip
    criterion = SwaVLoss()
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6)

    def step() -> float:
        parts[2].normalize()
        with autocast(args):
            scores = []
            for same in crops:
                for index in range(same.shape[1]):  # its example runs the network once a crop
                    features = parts[1](parts[0](same[:, index]))
                    scores.append(parts[2](torch.nn.functional.normalize(features, dim=1)))
            loss = criterion(scores[:2], scores[2:])
        return descend(loss, optimizer)

    return step


def official_step(args: argparse.Namespace, crops: list[torch.Tensor]) -> Callable[[], float]:
    """The official network and loss on our start weights. apex is not to be had: LARC is ours, autocast torch's."""
    import torch.distributed as dist

    from zoo.papers.face_representation import SwAV
    from zoo.papers.face_representation.optim import LARC

    path = Path(args.official).resolve() / "flr" / "models"
    if not (path / "swav_net.py").is_file():
        raise ZooError(f"There is no {path / 'swav_net.py'}: give a clone of the official code.")
    sys.path.insert(0, str(path))
    archs, swav_net = (importlib.import_module(name) for name in ("archs.resnet", "swav_net"))
    if args.device == "cpu":
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment] - it moves everything
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # it needs one
    torch.manual_seed(0)
    start = SwAV(args.network, hidden_dim=2048)
    model = swav_net.SwAVNet(getattr(archs, args.network)(), 2048, 128, num_prototypes=3000)
    model.load_state_dict(start.official_state_dict())
    model.to(args.device).train()
    settings = argparse.Namespace(
        dump_path="", rank=0, world_size=1, queue_length=0, batch_size=args.batch, epoch_queue_starts=15, feat_dim=128,
        crops_for_assign=[0, 1], nmb_crops=[2, 6], epsilon=0.05, temperature=0.1, sinkhorn_iterations=3,
        improve_numerical_stability=False,
    )  # fmt: skip
    trainer = swav_net.SwAV(argparse.Namespace(module=model), settings)
    trainer.model = Wrapped(model)
    trainer.on_epoch_start(0)
    optimizer = LARC(model.parameters(), lr=0.3, weight_decay=1e-6)
    inputs = [same[:, index].contiguous() for same in crops for index in range(same.shape[1])]

    def step() -> float:
        with autocast(args):
            loss = trainer(inputs)
        return descend(loss, optimizer)

    return step


class Wrapped:
    """What data-parallel wrapping looks like to the official loop."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, inputs: list[torch.Tensor]) -> Any:
        return self.module(inputs)


def autocast(args: argparse.Namespace) -> torch.autocast:
    return torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16")


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Backward pass and step; the loss before it, read back as every side's loop does."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


STEPS = {"ours": our_step, "official": official_step, "lightly": lightly_step}


def step_sides(args: argparse.Namespace) -> list[str]:
    there = {"official": bool(args.official), "lightly": importlib.util.find_spec("lightly") is not None}
    return [name for name in STEPS if there.get(name, True)]


def random_crops(args: argparse.Namespace) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(args.batch, n, 3, s, s, device=args.device) for n, s in ((2, 224), (6, 96))]


def peak_memory(args: argparse.Namespace) -> int:
    """Bytes at the peak of two steps of one side, alone in this process."""
    crops = random_crops(args)
    before = common.resident_bytes("VmRSS")
    step = STEPS[args.memory_of](args, crops)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated() if args.device == "cuda" else common.resident_bytes("VmHWM") - before


def bench_step(args: argparse.Namespace) -> common.Report:
    crops = random_crops(args)
    sides = {name: STEPS[name](args, crops) for name in step_sides(args)}
    first = {name: step() for name, step in sides.items()}
    notes = ["2 x 224 and 6 x 96 an image, random pixels; lightly's example takes plain SGD, the others LARC (ours)."]
    if "official" in first:
        difference = abs(first["ours"] - first["official"])
        if difference > 1e-3:
            raise ZooError(f"From the same weights our loss is {first['ours']:.5f}, theirs {first['official']:.5f}.")
        notes.append(f"Loss of the first step, same weights and crops: differs from the official by {difference:.1e}.")
    flops = common.matmul_flops(sides["ours"])
    square = 8192 if args.device == "cuda" else 2048
    products, product_flops = common.matmul_sides([(square,) * 3], common.DTYPES[args.precision], args.device)
    rounds = common.alternate(sides | products, args.device, args.rounds, min_seconds=0.3)
    peak = max(product_flops[name] / common.median([each[name] for each in rounds]) for name in products)
    notes.append(
        f"{flops / 1e9:.0f} GFLOP a step; a matrix product of {square} x {square} at {peak / 1e9:.0f} GFLOP/s."
    )
    rows = []
    for name in sides:
        time = common.median([each[name] for each in rounds])
        row: dict[str, Any] = {"side": name, "images/s": args.batch / time, "ms/step": time * 1e3,
                               "share of peak": flops / time / peak}  # fmt: skip
        for other in ("official", "lightly"):
            if other in sides:
                row[f"x {other}"] = common.median([each[other] / each[name] for each in rounds])
        if not args.no_memory:
            given = ["--network", args.network, "--batch", str(args.batch), "--precision", args.precision, "--device"]
            given += [args.device, "--threads", str(args.threads), "--memory-of", name]
            given += ["--official", args.official] if args.official else []
            row["peak MiB"] = round(common.in_own_process(__file__, "step", *given) / 2**20)
        rows.append(row)
    settings = {key: getattr(args, key) for key in ("network", "batch", "precision", "rounds")}
    return report("face_representation step", args, settings, rows, notes)


def report(name: str, args: argparse.Namespace, settings: dict, rows: list, notes: list) -> common.Report:
    return dict(benchmark=name, settings=settings, machine=common.machine(args.device), rows=rows, notes=notes)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("data", "step"))
    parser.add_argument("--official", metavar="DIR", help="clone of the official code, to run beside ours")
    parser.add_argument("--size", type=int, default=256, help="side of the faces in pixels (data; default: 256)")
    parser.add_argument("--network", default="resnet50", help="timm ResNet (step; default: resnet50)")
    parser.add_argument("--batch", type=int, default=8, help="images a step (default: 8)")
    parser.add_argument("--precision", choices=common.DTYPES, default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side gets its turn (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory of each side out (step)")
    parser.add_argument("--memory-of", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", help="write the report there too")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(peak_memory(args))
        return
    common.write_report((bench_data if args.command == "data" else bench_step)(args), args.json)


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        sys.exit(f"error: {error}")
