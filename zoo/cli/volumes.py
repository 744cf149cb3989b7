"""MRI in, MRI out, as NIfTI: missing sequences and tumour masks. Used by `zoo reconstruct` and `zoo segment`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.errors import ZooError

ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="A model, manifest, .ckpt or run folder.")]
SubjectArgument = Annotated[Path, typer.Argument(metavar="SUBJECT_DIR", help="Folder of one subject, or of several.")]
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
PadOption = Annotated[bool, typer.Option("--pad", help="Fill up volumes smaller than the model's crop with zeros.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]


def reconstruct(
    name: ModelArgument,
    subject_dir: SubjectArgument,
    output: OutputOption,
    sequences: Annotated[
        str | None,
        typer.Option(help="Predict only these, comma-separated (t1,t1ce,t2,flair); default: the missing ones."),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Look at only these, comma-separated; default: all that are there.")
    ] = None,
    device: DeviceOption = "auto",
    pad: PadOption = False,
    force: ForceOption = False,
) -> None:
    """Predict the missing MRI sequences of a subject, and write them as NIfTI over its own voxels.

    Values are z-scores (standard deviations of the brain's intensity): what a scanner would have shown is not known.
    Outside the brain, and outside the model's field of view (128 mm around the centre), they are 0.
    """
    from zoo.cli.embed import pick_device
    from zoo.loading import load
    from zoo.nn.subjects import SEQUENCES, find_subjects

    given, wanted = (_sequences(value) for value in (from_, sequences))
    model = load(name)
    if not hasattr(model, "reconstruct"):
        raise ZooError(f"{type(model).__name__} does not reconstruct sequences: give a pre-training model.")
    model = model.to(pick_device(device))
    subjects = [subject for subject in find_subjects(subject_dir)[0] if subject.sequences]
    complete = 0
    for subject in subjects:
        there = [key for key in SEQUENCES if key in subject.sequences and (given is None or key in given)]
        if not there:
            raise ZooError(f"{subject.id}: there is none of {', '.join(given or SEQUENCES)}.")
        predict = wanted if wanted is not None else [key for key in SEQUENCES if key not in there]
        predict = [key for key in predict if key not in there]
        if not predict:
            complete += 1
            if complete < len(subjects):
                print(f"{subject.id}: nothing is missing", file=sys.stderr)
                continue
            which = (
                f"{subject.id}: all four sequences are there" if len(subjects) == 1 else "No subject lacks a sequence"
            )
            raise ZooError(f"{which}; say which to predict from the others: --sequences t1 --from t1ce,t2,flair.")
        paths = {key: output / subject.id / f"{subject.id}_{key}_reconstructed.nii.gz" for key in predict}
        _refuse_existing(paths.values(), force)
        for key, file in _reconstruct(model, subject, there, predict, paths, pad).items():
            print(f"{key}\t{file}")


def segment(
    name: ModelArgument,
    subject_dir: SubjectArgument,
    output: OutputOption,
    device: DeviceOption = "auto",
    pad: PadOption = False,
    force: ForceOption = False,
) -> None:
    """Segment the tumour of one or more subjects with a fine-tuned model; masks overlay the subject's own files.

    Labels: 1 necrotic core, 2 oedema, 4 enhancing tumour (3 where files are named as in BraTS 2023).
    """
    import numpy as np

    from zoo.cli.embed import pick_device
    from zoo.loading import load
    from zoo.nn.mri import write_nifti
    from zoo.nn.subjects import find_subjects

    model = load(name)
    if not hasattr(model, "segment"):
        raise ZooError(
            f"{type(model).__name__} does not segment: fine-tune it with lightning run bm_mae/finetune_segmentation."
        )
    model = model.to(pick_device(device))
    subjects, _ = find_subjects(subject_dir)
    for subject in (subject for subject in subjects if subject.sequences):
        path = output / f"{subject.id}_seg.nii.gz"
        _refuse_existing([path], force)
        labels, affine, like = model.segment(subject, pad=pad)
        write_nifti(path, labels, affine, dtype=np.uint8, like=like)
        counts = ", ".join(f"{int((labels == value).sum())} of {value}" for value in labels.unique().tolist() if value)
        print(f"{path}\t{counts or 'no tumour'} (voxels of label)")


def _reconstruct(
    model: Any, subject: Any, there: list[str], predict: list[str], paths: dict[str, Path], pad: bool
) -> dict[str, Path]:
    import torch

    from zoo.nn.mri import load_subject, put_back, write_nifti

    volumes, originals = load_subject(subject, model.hparams["image_size"], pad, tuple(there))
    batch = {key: volume.as_tensor().unsqueeze(0).to(model.device) for key, volume in volumes.items()}
    found = model.reconstruct(batch, sequences=predict)
    first = there[0]
    brain = torch.stack([original.as_tensor() != 0 for original in originals.values()]).any(0)
    for key, volume in found.items():
        whole = put_back(volume[0].cpu(), originals[first], model.hparams["image_size"], pad).as_tensor()
        write_nifti(paths[key], whole * brain, originals[first].affine, like=subject.sequences[first])
    return paths


def _sequences(value: str | None) -> list[str] | None:
    from zoo.nn.subjects import SEQUENCES

    if value is None:
        return None
    names = [part.strip() for part in value.split(",") if part.strip()]
    unknown = [name for name in names if name not in SEQUENCES]
    if unknown or not names:
        raise ZooError(f"Sequences are one or more of {', '.join(SEQUENCES)}, not {', '.join(unknown) or 'none'}.")
    return names


def _refuse_existing(paths: Any, force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise ZooError(f"{path} exists already: choose another folder, or overwrite it with --force.")
