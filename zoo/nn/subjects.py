"""Brain-tumour MRI on disk: which files are which sequence of which subject, by the names that public data sets use.

| names | sequences | segmentation |
|---|---|---|
| `brats`: BraTS 2018-2021 | `<ID>_{t1,t1ce,t2,flair}` | `<ID>_seg`, labels 1 2 4, enhancing tumour 4 |
| `brats-gli`: BraTS 2023 and 2024 glioma | `<ID>-{t1n,t1c,t2w,t2f}` | `<ID>-seg`, enhancing tumour 3 |
| `upenn`: UPenn-GBM | `<ID>_{T1,T1GD,T2,FLAIR}` | `<ID>_segm`, else `<ID>_automated_approx_segm`; labels 1 2 4 |

All as `.nii` or `.nii.gz`, in any folders below the root. Only the standard library is needed here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from zoo.errors import ZooError

SEQUENCES = ("t1", "t1ce", "t2", "flair")

# (names, what stands before the kind, {spelling: kind}); the spellings are compared as they are written.
_NAMES = (
    ("brats", "_", {"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"}),
    ("brats-gli", "-", {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair", "seg": "seg"}),
    (
        "upenn", "_",
        {"T1": "t1", "T1GD": "t1ce", "T2": "t2", "FLAIR": "flair", "segm": "seg", "automated_approx_segm": "approx"},
    ),
)  # fmt: skip
_VISIT = {"brats": re.compile(r"$^"), "brats-gli": re.compile(r"-\d{3}$"), "upenn": re.compile(r"_\d{2}$")}
_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_MISNAMED = re.compile(r"[_-]segm?\.nii(\.gz)?$", re.IGNORECASE)


@dataclass
class Subject:
    """Files of one examination.

    Attributes:
        id: as in the file names.
        names: which naming convention, a row of the table above.
        sequences: {t1, t1ce, t2, flair: path}, those that there are.
        seg: path of the segmentation, if there is one.
    """

    id: str
    names: str
    sequences: dict[str, Path] = field(default_factory=dict)
    seg: Path | None = None

    @property
    def patient(self) -> str:
        """The id without the number of the visit: what must not be on both sides of a split."""
        return _VISIT[self.names].sub("", self.id)

    @property
    def missing(self) -> list[str]:
        return [name for name in SEQUENCES if name not in self.sequences]


def parse_name(file: str | Path) -> tuple[str, str, str] | None:
    """(subject id, naming convention, kind) of a file name; None if it is none of the conventions.

    The kind is a sequence, "seg" or "approx" (an automatic segmentation).
    """
    name = Path(file).name
    match = _NIFTI.search(name)
    if match is None:
        return None
    stem = name[: match.start()]
    for names, separator, spellings in _NAMES:
        for spelling, kind in sorted(spellings.items(), key=lambda item: -len(item[0])):
            if stem.endswith(separator + spelling) and len(stem) > len(spelling) + 1:
                return stem[: -len(spelling) - 1], names, kind
    return None


def group_files(files: Iterable[Path]) -> tuple[list[Subject], list[Path]]:
    """Subjects sorted by id, and the NIfTI files that no convention knows.

    One such file is taken all the same: the only `..._Segm` or `..._seg` beside the files of a subject that lacks its
    segmentation. BraTS 2020 has one (subject 355: `W39_1998.09.19_Segm.nii`).

    Raises `ZooError` where two files claim the same place of a subject.
    """
    subjects: dict[str, Subject] = {}
    approximate: dict[str, Path] = {}
    strays: list[Path] = []
    for file in sorted(files):
        if not _NIFTI.search(file.name):
            continue
        parsed = parse_name(file)
        if parsed is None:
            strays.append(file)
            continue
        name, names, kind = parsed
        if kind == "approx":
            approximate[name] = file
            continue
        subject = subjects.setdefault(name, Subject(name, names))
        there = subject.seg if kind == "seg" else subject.sequences.get(kind)
        if there is not None:
            raise ZooError(f"{name}: two files claim to be its {kind}, {there} and {file}: remove one.")
        if kind == "seg":
            subject.seg = file
        else:
            subject.sequences[kind] = file
            subject.names = names
    for name, file in approximate.items():
        subject = subjects.setdefault(name, Subject(name, "upenn"))
        subject.seg = subject.seg or file
    strays = _adopt(subjects.values(), strays)
    for subject in subjects.values():
        subject.sequences = {name: subject.sequences[name] for name in SEQUENCES if name in subject.sequences}
    return [subjects[name] for name in sorted(subjects)], strays


def _adopt(subjects: Iterable[Subject], strays: list[Path]) -> list[Path]:
    """Gives misnamed segmentations to the subjects in whose folders they lie; returns the strays that are left."""
    inhabitants: dict[Path, list[Subject]] = {}
    for subject in subjects:
        for folder in {path.parent for path in subject.sequences.values()}:
            inhabitants.setdefault(folder, []).append(subject)
    masks: dict[Path, list[Path]] = {}
    for file in strays:
        if _MISNAMED.search(file.name):
            masks.setdefault(file.parent, []).append(file)
    taken = set()
    for folder, files in masks.items():
        living = inhabitants.get(folder, [])
        if len(files) == len(living) == 1 and living[0].seg is None:
            living[0].seg = files[0]
            taken.add(files[0])
    return [file for file in strays if file not in taken]


def find_subjects(root: str | Path) -> tuple[list[Subject], list[Path]]:
    """`group_files` of all files below `root`. Raises `ZooError` if there is no such folder or no subject in it."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ZooError(f"There is no folder {folder} with MRI in it.")
    subjects, strays = group_files(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    if not any(subject.sequences for subject in subjects):
        seen = f"; it has {len(strays)} NIfTI files of other names, such as {strays[0].name}" if strays else ""
        raise ZooError(
            f"{folder} holds no MRI named as in BraTS (ID_t1.nii.gz, ID-t1n.nii.gz) or UPenn-GBM "
            f"(ID_T1GD.nii.gz){seen}."
        )
    return subjects, strays


def one_subject(raw: object) -> Subject:
    """The subject that a folder, a file or {sequence: path} means. Raises `ZooError` unless it is exactly one."""
    if isinstance(raw, Subject):
        return raw
    if isinstance(raw, dict):
        unknown = [name for name in raw if name not in SEQUENCES]
        if unknown or not raw:
            raise ZooError(f"Sequences are one or more of {', '.join(SEQUENCES)}, not {', '.join(unknown) or 'none'}.")
        files = {name: Path(str(raw[name])) for name in SEQUENCES if name in raw}
        for file in files.values():
            if not file.is_file():
                raise ZooError(f"There is no file {file}.")
        first = next(iter(files.values()))
        parsed = parse_name(first)
        return Subject(parsed[0] if parsed else _NIFTI.sub("", first.name), parsed[1] if parsed else "brats", files)
    path = Path(str(raw)).expanduser()
    if path.is_file():
        parsed = parse_name(path)
        if parsed is None or parsed[2] not in SEQUENCES:
            raise ZooError(
                f"{path.name} does not say which sequence it is: name it as in BraTS (ID_t1ce.nii.gz, ID-t1c.nii.gz) "
                "or give {'t1ce': path}."
            )
        return Subject(parsed[0], parsed[1], {parsed[2]: path})
    subjects, _ = find_subjects(path)
    subjects = [subject for subject in subjects if subject.sequences]
    if len(subjects) != 1:
        ids = ", ".join(subject.id for subject in subjects[:3])
        raise ZooError(f"{path} holds {len(subjects)} subjects ({ids} ...): give the folder of one.")
    return subjects[0]


def count_names(subjects: Iterable[Subject]) -> dict[str, int]:
    """How many subjects follow each naming convention."""
    return dict(Counter(subject.names for subject in subjects))
