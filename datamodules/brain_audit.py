"""What `zoo check` says of brain MRI: sequences, spacings, labels, unusable subjects, files on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamodules.audit import Audit, file_key, most_common, opened
from zoo.errors import ZooError
from zoo.nn import mri
from zoo.nn.subjects import SEQUENCES, Subject, count_names, find_subjects

if TYPE_CHECKING:
    from datamodules.brain_tumour import TumourDataModule


def audit_subjects(data: TumourDataModule, read: bool) -> Audit:
    """Everything below the root: `data.setup` stops at the first subject that breaks a rule, this goes on."""
    found = Audit()
    subjects, strays = find_subjects(data.root)
    patients = len({subject.patient for subject in subjects})
    names = ", ".join(f"{name} {count}" for name, count in count_names(subjects).items())
    found.facts["subjects"] = f"{len(subjects)} of {patients} patients (named as {names})"
    if strays:
        found.warnings.append(
            f"{len(strays)} NIfTI files have names that say nothing and are passed over, such as {strays[0].name}."
        )
    _sequences(found, data, subjects)
    if read:
        _files(found, data, subjects)
    try:
        data.setup()
    except ZooError as error:
        if str(error) not in " ".join(found.problems):
            found.problems.append(str(error))
        return found
    assert data.train_data is not None
    assert data.val_data is not None
    sides = {"training": data.train_data.subjects, "validation": data.val_data.subjects}
    found.sides({side: len(part) for side, part in sides.items()}, "subjects used")
    if few := [side for side, part in sides.items() if len(part) < 5]:
        found.warnings.append(f"Fewer than five subjects for {' and '.join(few)}: scores will hang on single ones.")
    if dropped := [entry for cohort in data.cohorts for entry in cohort.dropped]:
        found.warnings.append(f"{len(dropped)} subjects are left out, such as {dropped[0][0]} ({dropped[0][1]}).")
    if read:
        keys = {
            side: {
                str(path): file_key(path) for subject in part for path in subject.sequences.values() if path.is_file()
            }
            for side, part in sides.items()
        }
        found.leaks(keys, "files")
    return found


def _sequences(found: Audit, data: TumourDataModule, subjects: list[Subject]) -> None:
    rows = [[name, sum(name in s.sequences for s in subjects), "yes" if name in data.rules.modalities else "no"]
            for name in SEQUENCES]  # fmt: skip
    rows.append(["segmentation", sum(s.seg is not None for s in subjects), "yes" if data.rules.seg else "no"])
    found.tables.append(("sequences", ["", "subjects that have it", "used"], rows))
    whole = [s for s in subjects if all(name in s.sequences for name in data.rules.modalities)]
    if len(whole) < len(subjects):
        lacking = next(s for s in subjects if s not in whole)
        missing = [name for name in data.rules.modalities if name not in lacking.sequences]
        text = (
            f"{len(subjects) - len(whole)} subjects lack a sequence that is used, such as {lacking.id} "
            f"({', '.join(missing)}): take it out of model.modalities, or set data.on_missing to drop or use."
        )
        (found.problems if data.rules.on_missing == "error" else found.warnings).append(text)


def _files(found: Audit, data: TumourDataModule, subjects: list[Subject]) -> None:
    """Opens every file that is used: headers, voxels, labels."""
    errors: list[str] = []
    spacings, shapes, labelled, empty = [], [], [], []
    for index in opened(found, len(subjects), "subjects"):
        subject = subjects[index]
        files = {name: subject.sequences[name] for name in data.rules.modalities if name in subject.sequences}
        try:
            headers = {name: mri.read_header(path, subject.id) for name, path in files.items()}
            if data.rules.seg and subject.seg is not None:
                headers["seg"] = mri.read_header(subject.seg, subject.id)
            if not headers:
                continue
            mri.check_geometry(subject.id, headers)
            shape, affine = next(iter(headers.values()))
            shapes.append(shape)
            spacings.append(tuple(round(side, 2) for side in mri.spacing_of(affine)))
            for path in files.values():
                mri.read_volume(Path(path), subject.id)
            if data.rules.seg and subject.seg is not None:
                voxels = np.asarray(mri.read_labels(subject.seg, subject.id, data.rules.label_set(subject)))
                labelled.append([int((voxels == value).sum()) for value in (1, 2, 4)])
                if not labelled[-1] or not any(labelled[-1]):
                    empty.append(subject.id)
        except ZooError as error:
            errors.append(str(error))
    found.unreadable(errors, "subjects", data.rules.on_bad_subject == "skip")
    found.facts["voxels, mm"] = most_common(" x ".join(f"{side:g}" for side in spacing) for spacing in spacings)
    found.facts["axes, voxels"] = most_common(" x ".join(map(str, shape)) for shape in shapes)
    if other := sum(spacing != (1.0, 1.0, 1.0) for spacing in spacings):
        found.warnings.append(f"{other} subjects have voxels of another size than 1 mm: they are resampled.")
    if labelled:
        for name, column in zip(("core", "oedema", "enhancing tumour"), np.array(labelled).T, strict=True):
            found.facts[f"voxels of {name}"] = (
                f"in {int((column > 0).sum())} subjects, median {int(np.median(column)):,}"
            )
    if empty:
        found.warnings.append(f"{len(empty)} segmentations mark nothing, such as that of {empty[0]}.")
