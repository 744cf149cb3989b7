"""What a fine-tuned model says of pictures, MRI, shapes and scenes. Used by `zoo predict`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.cli.predict_text import write
from zoo.errors import ZooError

Rows = Iterator[tuple[str, list[Any]]]


def predict_files(
    model: Any,
    files: Sequence[Path],
    output: Path,
    *,
    batch_size: int,
    skip_bad: bool,
    force: bool,
    map_dir: Path | None,
    thresholds: dict[str, float] | float = 0.5,
) -> bool:
    """Writes what `model` says of `files` to `output`; False if it is a model of another kind.

    Classes, points, numbers and embeddings go to a CSV (one row a file or subject), masks to a folder (PNG beside PNG,
    NIfTI over NIfTI), forecasts to JSON. A label is there from its threshold on.
    """
    from zoo.tasks import ImageSegmentation, VolumeClassification, VolumeSegmentation, VolumeSurvival
    from zoo.tasks.evaluation import ImageClassifier

    if isinstance(model, VolumeSegmentation):
        _volume_masks(model, files, output, force)
    elif isinstance(model, ImageSegmentation):
        _picture_masks(model, files, output, skip_bad, force)
    elif hasattr(model, "forecast"):
        _forecasts(model, files, output, skip_bad, map_dir)
    elif isinstance(model, VolumeClassification | VolumeSurvival):
        header, step = _volume_columns(model)
        _table(output, header, _subjects(model, files, step, skip_bad), "subjects")
    elif isinstance(model, ImageClassifier) or (hasattr(model, "encoder") and hasattr(model, "head")):
        header, step = _picture_columns(model, thresholds)
        _table(output, ["file", *header], _pictures(model, files, step, batch_size, skip_bad), "pictures")
    elif hasattr(model, "logits") and hasattr(model, "class_names"):
        names = model.class_names()
        _table(output, ["file", "label", *names], _shapes(model, files, names, skip_bad), "shapes")
    else:
        return False
    return True


# ---------------------------------------------------------------------- tables


def _picture_columns(
    model: Any, thresholds: dict[str, float] | float
) -> tuple[list[str], Callable[[Tensor, Sequence[Path]], list[list[Any]]]]:
    """Header and what a batch of preprocessed pictures gives under it."""
    from zoo.tasks.evaluation import ImageClassifier

    if isinstance(model, ImageClassifier) and model.columns is not None:
        return _many_columns(model, thresholds)
    task = None if isinstance(model, ImageClassifier) else model.hparams.task
    if task in (None, "attributes"):
        names = model.class_names()

        def classes(images: Tensor, files: Sequence[Path]) -> list[list[Any]]:
            found = (model.classify(images) if task is None else model(images)).float().softmax(-1)
            return [[names[int(row.argmax())], *_numbers(row)] for row in found.cpu()]

        return ["label", *names], classes
    if task == "landmarks":

        def points(images: Tensor, files: Sequence[Path]) -> list[list[Any]]:
            return [_numbers(_in_picture(row, file)) for row, file in zip(model(images).cpu(), files, strict=True)]

        return [f"{axis}{k}" for k in range(model.outputs) for axis in "xy"], points

    def values(images: Tensor, files: Sequence[Path]) -> list[list[Any]]:
        return [_numbers(row) for row in model(images).float().cpu().flatten(1)]

    if task == "valence_arousal":
        return ["valence", "arousal"], values
    # No classes: as many columns as come out.
    width = model(torch.zeros(1, 3, *(model.image_size or 224,) * 2, device=model.device)).numel()
    return [f"value{k}" for k in range(width)], values


def _many_columns(
    model: Any, thresholds: dict[str, float] | float
) -> tuple[list[str], Callable[[Tensor, Sequence[Path]], list[list[Any]]]]:
    """Labels: those that are there, and the probability of each; numbers: a column each."""
    names = model.class_names()
    if model.targets == "numbers":
        return list(names), lambda images, files: [_numbers(row) for row in model.predict_step(images, 0).cpu()]
    limits = thresholds if isinstance(thresholds, dict) else dict.fromkeys(names, thresholds)

    def labels(images: Tensor, files: Sequence[Path]) -> list[list[Any]]:
        rows = []
        for found in model.predict_step(images, 0).cpu():
            there = [name for name, p in zip(names, found.tolist(), strict=True) if p >= limits.get(name, 0.5)]
            rows.append([";".join(there), *_numbers(found)])
        return rows

    return ["labels", *names], labels


def _in_picture(points: Tensor, file: Path) -> Tensor:
    """Points (K, 2) of the square that `preprocess` cuts out, from 0 to 1, in pixels of the picture."""
    from PIL import Image

    with Image.open(file) as image:
        width, height = image.size
    side = min(width, height)
    return points.float() * side + torch.tensor([(width - side) / 2, (height - side) / 2]) - 0.5


def _pictures(
    model: Any, files: Sequence[Path], step: Callable[..., list[list[Any]]], batch_size: int, skip_bad: bool
) -> Rows:
    from zoo.cli.embed import expand

    every = expand(list(files))
    for start in range(0, len(every), batch_size):
        good, images = [], []
        for file in every[start : start + batch_size]:
            image = _try(lambda file=file: model.preprocess(file), skip_bad)
            if image is not None:
                good.append(file)
                images.append(image)
        if good:
            with torch.inference_mode():
                rows = step(torch.cat(images).to(model.device), good)
            yield from ((str(file), row) for file, row in zip(good, rows, strict=True))


def _shapes(model: Any, files: Sequence[Path], names: list[str], skip_bad: bool) -> Rows:
    from zoo.cli.embed import expand

    for file in expand(list(files)):
        cloud = _try(lambda file=file: model.preprocess(file), skip_bad)
        if cloud is not None:
            with torch.inference_mode():
                found = model.logits(cloud.to(model.device))[0].float().softmax(-1).cpu()
            yield str(file), [names[int(found.argmax())], *_numbers(found)]


def _volume_columns(model: Any) -> tuple[list[str], Callable[[dict[str, Tensor]], list[Any]]]:
    from zoo.tasks import VolumeClassification

    if isinstance(model, VolumeClassification):
        names = model.class_names()

        def classes(volumes: dict[str, Tensor]) -> list[Any]:
            score = float(model(volumes)[0, 0].sigmoid())
            return [names[int(score > 0.5)], *_numbers(torch.tensor([1 - score, score]))]

        return ["subject", "label", *names], classes
    from zoo.nn.survival import risk_score, survival_curve

    def survival(volumes: dict[str, Tensor]) -> list[Any]:
        logits = model(volumes).float()
        return _numbers(torch.cat([risk_score(logits), survival_curve(logits)[0]]).cpu())

    times = model.times() or range(model.hparams.bins)  # a checkpoint of before its times were kept: the bins' numbers
    return ["subject", "risk", *(f"survives_{time:.4g}" for time in times)], survival


def _subjects(model: Any, files: Sequence[Path], step: Callable[[Any], list[Any]], skip_bad: bool) -> Rows:
    for subject in _find_subjects(files):
        volumes = _try(lambda subject=subject: model.preprocess(subject), skip_bad)
        if volumes is not None:
            with torch.inference_mode():
                yield subject.id, step({name: volume.to(model.device) for name, volume in volumes.items()})


def _find_subjects(files: Sequence[Path]) -> list[Any]:
    from zoo.nn.subjects import find_subjects, one_subject

    found = []
    for file in files:
        found += [s for s in find_subjects(file)[0] if s.sequences] if file.is_dir() else [one_subject(file)]
    return found


def _table(output: Path, header: list[str], rows: Rows, what: str) -> None:
    if output.suffix not in (".csv", ".tsv"):
        raise ZooError(f"This model writes a table: give a .csv or .tsv, not {output}.")
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if output.suffix == ".tsv" else ",", lineterminator="\n")
    writer.writerow(header)
    count = 0
    for name, values in rows:
        writer.writerow([name, *values])
        count += 1
    if not count:
        raise ZooError(f"None of the {what} could be read.")
    write(output, text.getvalue())
    print(f"{output}: {count} {what}")


# ---------------------------------------------------------------------- masks and forecasts


def _picture_masks(model: Any, files: Sequence[Path], output: Path, skip_bad: bool, force: bool) -> None:
    from zoo.cli.embed import expand
    from zoo.nn.images import _open

    every = expand(list(files))
    targets = [output / f"{file.stem}_mask.png" for file in every]
    double = next((t for n, t in enumerate(targets) if t in targets[:n]), None)
    if double is not None:
        raise ZooError(f"Two pictures would be written to {double}: give them different names.")
    _refuse(targets, force)
    for file, target in zip(every, targets, strict=True):
        picture = _try(lambda file=file: _open(file), skip_bad)
        if picture is None:
            continue
        labels = model.segment(picture).numpy()
        mask = _mask_image(labels, model.num_classes)
        _save(target, lambda path, mask=mask: mask.save(path, "PNG"))
        names = model.class_names()
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        if model.num_classes == 1:
            print(f"{target}\t{shares[1]:.1%} marked")
        else:
            print(f"{target}\t{', '.join(f'{names[k]} {shares[k]:.1%}' for k in np.argsort(-shares)[:5] if shares[k])}")


def _mask_image(labels: np.ndarray, classes: int) -> Any:
    """One kind of thing as 0 and 255; several as a palette PNG, whose pixels are the classes' numbers."""
    from PIL import Image

    from zoo.tasks.segmentation_figures import palette

    if classes == 1:
        return Image.fromarray(labels * np.uint8(255))
    image = Image.fromarray(labels)
    image.putpalette(palette(256).ravel().tolist())
    return image


def _volume_masks(model: Any, files: Sequence[Path], output: Path, force: bool) -> None:
    from zoo.nn.mri import write_nifti

    for subject in _find_subjects(files):
        target = output / f"{subject.id}_seg.nii.gz"
        _refuse([target], force)
        labels, affine, like = model.segment(subject)
        write_nifti(target, labels, affine, dtype=np.uint8, like=like)
        counts = ", ".join(f"{int((labels == value).sum())} of {value}" for value in labels.unique().tolist() if value)
        print(f"{target}\t{counts or 'no tumour'} (voxels of label)")


def _forecasts(model: Any, files: Sequence[Path], output: Path, skip_bad: bool, map_dir: Path | None) -> None:
    from lightning.fabric.utilities import move_data_to_device

    from zoo.cli.embed import expand
    from zoo.driving.argoverse2 import scenario_files

    if output.suffix != ".json":
        raise ZooError(f"Forecasts are a .json file, not {output}.")
    found = {}
    # Argoverse 2 has a folder for each scenario.
    scenarios = {path: scenario_files(path) for path in files if path.is_dir()}
    rest = [path for path in files if not scenarios.get(path)]
    for file in [one for inside in scenarios.values() for one in inside] + (expand(rest, "*.csv") if rest else []):
        raw = file if map_dir is None else {"scene": file, "map": map_dir}
        batch = _try(lambda raw=raw: model.preprocess(raw), skip_bad)
        if batch is None:
            continue
        with torch.inference_mode():
            step = model.predict_step(move_data_to_device(batch, model.device), 0)
        found[str(file)] = {
            "trajectories": step["trajectories"][0].round(3).tolist(),
            "probabilities": step["probabilities"][0].round(5).tolist(),
        }
    if not found:
        raise ZooError("None of the scenes could be read.")
    write(output, json.dumps(found, indent=1) + "\n")
    print(f"{output}: {len(found)} scenes, {model.hparams.modes} trajectories each (metres, city frame, 0.1 s apart)")


# ---------------------------------------------------------------------- parts


def _try(read: Callable[[], Any], skip_bad: bool) -> Any:
    """What `read` gives; with `skip_bad` None where it cannot be read, which is said."""
    try:
        return read()
    except ZooError as error:
        if not skip_bad:
            raise ZooError(f"{str(error).rstrip('.')}. --skip-bad leaves such files out.") from error
        print(f"skipped: {error}", file=sys.stderr)
        return None


def _numbers(row: Tensor) -> list[str]:
    return [f"{value:.5f}" for value in row.flatten().tolist()]


def _refuse(paths: Sequence[Path], force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise ZooError(f"{path} exists already: choose another folder, or overwrite it with --force.")


def _save(path: Path, save: Callable[[Path], None]) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(new)
        new.replace(path)
    except OSError as error:
        raise ZooError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        new.unlink(missing_ok=True)
