"""`zoo faces`: drawn faces, few-shot index files, the five-task benchmark, verification reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.errors import ZooError

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(
    help="Draw schematic faces, make few-shot index files, compare encoders over five tasks, verify identities.",
    epilog="Example: zoo faces benchmark -e RUN_FOLDER -e random:resnet50 -o OUT",
    no_args_is_help=True,
)
OutOption = Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, mps; auto takes a GPU if there is one.")]


@app.command("sheet", epilog="Example: zoo faces sheet sheet.png --identities 10 --pictures 6")
def sheet(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The picture to write (.png).")],
    identities: Annotated[int, typer.Option(min=1, help="People, a column each.")] = 10,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of each.")] = 6,
    size: Annotated[int, typer.Option(min=16, help="Side of a picture in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Same seed, same people.")] = 0,
) -> None:
    """Draw a sheet of schematic faces."""
    import numpy as np
    from PIL import Image

    from datamodules.faces.renderer import FaceRenderer

    draw = FaceRenderer(size, identities, seed)
    rows = [np.concatenate([draw(row * identities + i).image for i in range(identities)], 1) for row in range(pictures)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(out)
    except (OSError, ValueError) as error:
        raise ZooError(f"Cannot write {out}: {error}.") from error
    print(out)


@app.command("shots", epilog="Example: zoo faces shots landmarks 300w ROOT -o shots.json --shot 50 --shot 0.1 --shot 1")
def shots(
    task: Annotated[str, typer.Argument(metavar="TASK", help="recognition, landmarks, action_units, ...")],
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The layout: 300w, wflw, disfa, affectnet, ...")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the data set.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The index file to write (.json).")],
    shot: Annotated[list[str], typer.Option(help="A number of samples, or a share with a point in it. Repeatable.")],
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    basis: Annotated[Path | None, typer.Option(help="Face model (.npz) for 3dmm.")] = None,
) -> None:
    """Write nested few-shot subsets of a training set (ours: the paper's were never released)."""
    from datamodules.faces.shots import few_shot, write_index_file

    wanted = [_shot(text) for text in shot]
    data = _task_data(task, dataset, root, 64, basis)
    assert data.data is not None
    count, subjects = len(data.data["train"]), data.data["subjects"]
    subsets = few_shot(count, wanted, seed, subjects, whole_subjects=task == "recognition")
    write_index_file(output, subsets, dataset=dataset, seed=seed, count=count)
    print(f"{output}: " + ", ".join(f"{name}: {len(chosen)} samples" for name, chosen in subsets.items()))


@app.command(
    "benchmark",
    epilog="Example: zoo faces benchmark -e RUN_FOLDER -e timm:resnet18 -o OUT --data landmarks=300w:ROOT",
)
def benchmark(
    output: OutOption,
    encoder: Annotated[list[str], typer.Option("-e", "--encoder", help="A zoo model, checkpoint, run folder; timm:NAME "
                                               "with timm's weights; random:NAME without any. Repeatable.")],
    data: Annotated[list[str] | None, typer.Option(help="TASK=DATASET:ROOT; else a task runs on drawn faces.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks. Repeatable.")] = None,
    shot: Annotated[list[str] | None, typer.Option(help="Numbers of labels, or shares with a point.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; each draws labels, heads and random networks.")] = None,
    mode: Annotated[str, typer.Option(help="frozen: heads alone; finetune: everything.")] = "frozen",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a head.")] = 200,
    image_size: Annotated[int, typer.Option(min=32, help="Side of the pictures in pixels.")] = 64,
    grid: Annotated[int, typer.Option(min=0, help="All but landmarks are read from the middle stages' maps, "
                                      "so many fields a side; 0: from the pooled features.")] = 4,
    basis: Annotated[Path | None, typer.Option(help="Face model (.npz) for 3dmm.")] = None,
    drawn: Annotated[int, typer.Option(min=20, help="Drawn training pictures of a task; half as many test.")] = 1000,
    device: DeviceOption = "auto",
) -> None:  # fmt: skip
    """Run encoders over all tasks and shots: a table (benchmark.md), every number (benchmark.json), curves (.png)."""
    import torch

    from datamodules.face_representation import FaceRepresentationDataModule
    from zoo.cli.embed import pick_device
    from zoo.cli.faces_benchmark import benchmark_encoders
    from zoo.papers.face_representation.report import print_scores
    from zoo.papers.face_representation.tasks import TASKS

    where = dict(_place(text) for text in data or ())
    chosen = list(dict.fromkeys(task or TASKS))
    for name in (*chosen, *where):
        if name not in TASKS:
            raise ZooError(f"There is no task {name!r}: they are {', '.join(TASKS)}.")
        if name not in chosen:
            raise ZooError(f"--data gives {name}, which --task leaves out.")
    wanted, seeds = [_shot(text) for text in shot or ("50", "500")], list(seed or (0, 1, 2))
    given = FaceRepresentationDataModule(rendered_size=image_size, task_train=drawn, task_test=max(10, drawn // 2),
                                         task_identities=max(4, min(50, drawn // 10)))  # fmt: skip
    drawn_tasks = given.face_tasks() if set(chosen) - set(where) else {}
    tasks: dict[str, Any] = {}
    for name in chosen:
        tasks[name] = dict(_task_data(name, *where[name], image_size, basis).data if name in where
                           else drawn_tasks[name])  # fmt: skip
        if name != "landmarks":
            tasks[name]["options"] = {**tasks[name]["options"], "grid": grid}
    facts = {"mode": mode, "steps": steps, "seeds": seeds, "image_size": image_size, "grid": grid,
             "torch": torch.__version__,
             "data": {name: where.get(name, ("rendered", ""))[0] for name in chosen}}  # fmt: skip
    scores = benchmark_encoders(
        encoder, tasks, wanted, seeds, output, mode=mode, steps=steps, image_size=image_size,
        normalize=given.normalize, device=pick_device(device), facts=facts,
    )  # fmt: skip
    print_scores(scores, f"Five tasks, {mode}, mean and spread of {len(seeds)} seeds")
    print("\n".join(str(output / f"benchmark.{kind}") for kind in ("md", "json", "png")))


@app.command("pairs", epilog="Example: zoo faces pairs face-resnet50-vggface LFW_FOLDER -o OUT")
def pairs(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A zoo name, a checkpoint or a run folder.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Pictures, name/name_0001.jpg, and pairs.txt.")],
    output: OutOption,
    listing: Annotated[
        Path | None, typer.Option("--pairs", help="The list, where it is not pairs.txt in ROOT.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 64,
    device: DeviceOption = "auto",
) -> None:
    """Compare faces pair by pair: accuracy as LFW counts it, TAR at FAR, a histogram."""
    import numpy as np

    from datamodules.faces.identities import read_pairs

    found = read_pairs(root, listing)
    features = _embed(model, found.images, batch_size, device)
    similarity = (features[found.pairs[:, 0]] * features[found.pairs[:, 1]]).sum(axis=1)
    _verification(similarity, found.pairs[:, 2].astype(bool), output, (1e-1, 1e-2, 1e-3))
    np.savez(output / "pairs.npz", similarity=similarity, same=found.pairs[:, 2])


@app.command("templates", epilog="Example: zoo faces templates my-model IJBC_FOLDER -o OUT --name ijbc")
def templates(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A zoo name, a checkpoint or a run folder.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The IJB folder: meta lists and loose_crop.")],
    output: OutOption,
    name: Annotated[str, typer.Option(help="ijbb or ijbc: how the lists begin.")] = "ijbc",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 64,
    device: DeviceOption = "auto",
) -> None:
    """1:1 verification of templates (IJB-B, IJB-C): TAR at FAR 1e-4, 1e-5, 1e-6."""
    import numpy as np

    from datamodules.faces.identities import read_ijb
    from zoo.papers.face_representation.metrics import pool_templates

    found = read_ijb(root, name)
    features = _embed(model, found.images, batch_size, device)
    numbers, pooled = pool_templates(features, found.templates, found.media)
    first, second = (np.searchsorted(numbers, found.pairs[:, column]) for column in (0, 1))
    similarity = np.concatenate([
        (pooled[first[start : start + 100_000]] * pooled[second[start : start + 100_000]]).sum(axis=1)
        for start in range(0, len(first), 100_000)
    ])  # fmt: skip
    _verification(similarity, found.pairs[:, 2].astype(bool), output, (1e-4, 1e-5, 1e-6))


@app.command("scans", epilog="Example: zoo faces scans RUN_FOLDER FLORENCE -o OUT --basis FACE_MODEL.npz")
def scans(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint or run of reconstruction3d.")],
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="A folder a person: scan, its landmarks, cropped faces.")
    ],
    output: OutOption,
    basis: Annotated[
        Path | None, typer.Option(help="The model's face model (.npz); else its first 68 vertices are the landmarks.")
    ] = None,
    radius: Annotated[float, typer.Option(min=1e-6, help="Around the tip of the nose, in the scans' unit.")] = 95.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 64,
    device: DeviceOption = "auto",
) -> None:
    """Measure reconstructed faces against 3D scans (MICC Florence): point and point-to-plane error after alignment."""
    from zoo.cli.faces_scans import evaluate_scans

    found = evaluate_scans(model, root, output, basis, radius, batch_size, device)
    print(f"{found['pictures']} pictures of {found['people']} people: {found['point']:.2f} % of the outer eye corners' "
          f"distance to the nearest point, {found['plane']:.2f} % to its plane")  # fmt: skip
    print(f"{output / 'scans.json'}\n{output / 'scans.png'}")


# ---------------------------------------------------------------------- helpers


def _shot(text: str) -> int | float:
    try:
        return float(text) if "." in text or "e" in text else (1.0 if text == "1" else int(text))
    except ValueError as error:
        raise ZooError(f"A shot is a number of samples (50) or a share with a point (0.1), not {text!r}.") from error


def _place(text: str) -> tuple[str, tuple[str, Path]]:
    task, _, rest = text.partition("=")
    dataset, _, root = rest.partition(":")
    if not (task and dataset and root):
        raise ZooError(f"--data takes TASK=DATASET:ROOT, as in landmarks=300w:DIR, not {text!r}.")
    return task, (dataset, Path(root))


def _task_data(task: str, dataset: str, root: Path, size: int, basis: Path | None) -> Any:
    from datamodules.faces.tasks import DATASETS, FaceTaskDataModule

    if task not in DATASETS:
        raise ZooError(f"There is no task {task!r}: they are {', '.join(DATASETS)}.")
    data = FaceTaskDataModule(
        task=task,
        dataset=dataset,
        root=str(root),
        image_size=size,
        basis=str(basis) if basis else None,  # type: ignore[arg-type]
    )
    data.setup()
    return data


def _embed(model: str, images: list[Path], batch_size: int, device: str) -> np.ndarray:
    """Unit-length features (n, D)."""
    import numpy as np

    from zoo.cli.embed import embed_files
    from zoo.tasks.start import start_model

    _, features, _ = embed_files(start_model(model), images, batch_size=batch_size, device=device)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _verification(similarity: np.ndarray, same: np.ndarray, output: Path, rates: tuple[float, ...]) -> None:
    from matplotlib import pyplot as plt

    from zoo.papers.face_representation.metrics import pair_accuracy, tar_at_far

    rows = {f"TAR at FAR {rate:g}": value for rate, value in tar_at_far(similarity, same, rates).items()}
    accuracy, spread = pair_accuracy(similarity, same)
    report = {"pairs": len(same), "same": int(same.sum()), "accuracy": accuracy, "accuracy_spread": spread, **rows}
    output.mkdir(parents=True, exist_ok=True)
    (output / "verification.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    figure, axis = plt.subplots(figsize=(5, 3))
    for label, values in (("same person", similarity[same]), ("different people", similarity[~same])):
        axis.hist(values, bins=40, density=True, alpha=0.6, label=label)
    axis.set_xlabel("cosine of the features")
    axis.legend()
    figure.tight_layout()
    figure.savefig(output / "verification.png", dpi=150)
    plt.close(figure)
    print(
        f"{len(same)} pairs, accuracy {accuracy:.1%} ± {spread:.1%}; "
        + ", ".join(f"{k} {v:.1%}" for k, v in rows.items())
    )
    print(f"{output / 'verification.json'}\n{output / 'verification.png'}")
