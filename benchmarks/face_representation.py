"""Speed of the face room: multi-crop beside the official pipeline, SwAV's step beside lightly's. See README.md."""

from __future__ import annotations

import argparse
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


def our_step(args: argparse.Namespace, crops: list[torch.Tensor]) -> Callable[[], Any]:
    """Forward, loss, backward, LARC, as training does them (without the trainer around it)."""
    from zoo.papers.face_representation import SwAV
    from zoo.papers.face_representation.optim import LARC

    torch.manual_seed(0)
    model = SwAV(args.network, hidden_dim=2048).to(crops[0].device).train()
    optimizer = LARC(model.parameters(), lr=0.3, weight_decay=1e-6)

    def step() -> None:
        model.normalize_prototypes()
        with torch.autocast(crops[0].device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = model.swav_loss(crops)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_step(args: argparse.Namespace, crops: list[torch.Tensor]) -> Callable[[], Any]:
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

    def step() -> None:
        parts[2].normalize()
        with torch.autocast(crops[0].device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            scores = []
            for same in crops:
                for index in range(same.shape[1]):  # its example runs the network once a crop
                    features = parts[1](parts[0](same[:, index]))
                    scores.append(parts[2](torch.nn.functional.normalize(features, dim=1)))
            loss = criterion(scores[:2], scores[2:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bench_step(args: argparse.Namespace) -> common.Report:
    torch.manual_seed(0)
    crops = [torch.randn(args.batch, n, 3, s, s, device=args.device) for n, s in ((2, 224), (6, 96))]
    sides = {"ours": our_step(args, crops)}
    if importlib.util.find_spec("lightly") is not None:
        sides["lightly"] = lightly_step(args, crops)
    rounds = common.alternate(sides, args.device, args.rounds, min_seconds=0.3)
    rows = []
    for name in sides:
        time = common.median([each[name] for each in rounds])
        row: dict[str, Any] = {"side": name, "images/s": args.batch / time, "ms/step": time * 1e3}
        if "lightly" in sides:
            row["x lightly"] = common.median([each["lightly"] / each[name] for each in rounds])
        rows.append(row)
    notes = [
        "2 x 224 and 6 x 96 a image, random pixels. lightly is timed where it is installed; plain SGD there, LARC here."
    ]
    settings = {key: getattr(args, key) for key in ("network", "batch", "precision", "rounds")}
    return report("face_representation step", args, settings, rows, notes)


def report(name: str, args: argparse.Namespace, settings: dict, rows: list, notes: list) -> common.Report:
    return dict(benchmark=name, settings=settings, machine=common.machine(args.device), rows=rows, notes=notes)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("data", "step"))
    parser.add_argument("--official", metavar="DIR", help="clone of the official code, to run beside ours (data)")
    parser.add_argument("--size", type=int, default=256, help="side of the faces in pixels (data; default: 256)")
    parser.add_argument("--network", default="resnet50", help="timm ResNet (step; default: resnet50)")
    parser.add_argument("--batch", type=int, default=8, help="images a step (default: 8)")
    parser.add_argument("--precision", choices=common.DTYPES, default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side gets its turn (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", metavar="FILE", help="write the report there too")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    common.write_report((bench_data if args.command == "data" else bench_step)(args), args.json)


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        sys.exit(f"error: {error}")
