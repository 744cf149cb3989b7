"""Brain-tumour MRI in the layouts of BraTS and UPenn-GBM: finding, checking, caching, splitting, augmenting."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.audit import Audit
from datamodules.base import ZooDataModule
from datamodules.brain_cohort import write_cohort
from datamodules.folds import check_fold, held_out_by_fold
from zoo.errors import ZooError
from zoo.extras import require
from zoo.nn import mri
from zoo.nn.subjects import SEQUENCES, Subject, find_subjects
from zoo.paths import cache_dir as zoo_cache

Item = dict[str, Any]
PREPARATION = 2
"""Raise when `prepare_item` gives other voxels for the same file: cached ones of before are then left alone."""


@dataclass(frozen=True)
class Rules:
    """What a subject must be to be used, and how its volumes are prepared.

    Attributes:
        size: side of the central crop in voxels of 1 mm; None keeps whole volumes.
        modalities: the sequences wanted.
        pad: fill up axes shorter than `size` with zeros instead of refusing them.
        seg: whether the segmentation is needed.
        labels: how it numbers its labels, a key of `zoo.nn.mri.LABELS`, or "auto" (by the files' names).
        on_missing: "error", "drop" the subject, or "use" it with what it has.
        on_bad_subject: "error", or "skip" and count.
    """

    size: int | None = 128
    modalities: tuple[str, ...] = SEQUENCES
    pad: bool = False
    seg: bool = False
    labels: str = "auto"
    on_missing: Literal["error", "drop", "use"] = "error"
    on_bad_subject: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("on_missing", self.on_missing, ("error", "drop", "use")),
            ("on_bad_subject", self.on_bad_subject, ("error", "skip")),
            ("labels", self.labels, ("auto", *mri.LABELS)),
        ):
            if value not in choices:
                raise ZooError(f"{name} is {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}.")
        unknown = [name for name in self.modalities if name not in SEQUENCES]
        if unknown or not self.modalities or len(set(self.modalities)) != len(self.modalities):
            listed = ", ".join(self.modalities) or "none"
            raise ZooError(f"Sequences are one or more of {', '.join(SEQUENCES)}, each once; not {listed}.")

    def label_set(self, subject: Subject) -> str:
        if self.labels != "auto":
            return self.labels
        return "brats2023" if subject.names == "brats-gli" else "brats"


@dataclass
class Cohort:
    """Subjects that fit the rules, and what was seen on the way.

    Attributes:
        subjects: sorted by id.
        dropped: (id, why) of those left out by `on_missing: drop`.
        bad: the errors of those left out by `on_bad_subject: skip`.
        strays: NIfTI files whose names say nothing.
        resampled: how many have voxels of another size than 1 mm.
    """

    subjects: list[Subject]
    dropped: list[tuple[str, str]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)
    resampled: int = 0


def scan(root: str | Path, rules: Rules, exclude: Sequence[str] = ()) -> Cohort:
    """Finds and checks all subjects below `root` by their files' names and headers; no voxel is read.

    Raises `ZooError`, one line with the subject's id, for the first that breaks the rules.
    """
    require("nibabel", "monai", extra="medical", why="MRI is read with nibabel and MONAI")
    found, strays = find_subjects(root)
    cohort = Cohort([], strays=strays)
    excluded = set(exclude)
    for subject in found:
        if subject.id in excluded or subject.patient in excluded:
            cohort.dropped.append((subject.id, "on the list of excluded subjects"))
            continue
        try:
            why = _check(subject, rules, cohort)
        except ZooError as error:
            if rules.on_bad_subject == "error":
                raise
            cohort.bad.append(str(error))
            continue
        if why:
            cohort.dropped.append((subject.id, why))
        else:
            cohort.subjects.append(subject)
    if not cohort.subjects:
        reasons = cohort.bad[:1] or [f"{name}: {why}" for name, why in cohort.dropped[:1]]
        raise ZooError(f"None of the {len(found)} subjects in {root} can be used; the first: {reasons[0]}")
    return cohort


def _check(subject: Subject, rules: Rules, cohort: Cohort) -> str | None:
    """Why a subject is dropped, or None. Raises `ZooError` for what is wrong with it."""
    there = [name for name in rules.modalities if name in subject.sequences]
    lacking = [name for name in rules.modalities if name not in subject.sequences]
    if not there:
        raise ZooError(f"{subject.id}: there is no usable sequence, none of {', '.join(rules.modalities)}.")
    if lacking and rules.on_missing != "use":
        if rules.on_missing == "drop":
            return f"no {', '.join(lacking)}"
        raise ZooError(
            f"{subject.id}: {', '.join(lacking)} is missing. data.on_missing: drop leaves such subjects out, use takes "
            "them with what they have."
        )
    if rules.seg and subject.seg is None:
        if rules.on_missing == "drop":
            return "no segmentation"
        raise ZooError(f"{subject.id}: there is no segmentation. data.on_missing: drop leaves such subjects out.")
    files = {name: subject.sequences[name] for name in there}
    if rules.seg and subject.seg is not None:
        files["seg"] = subject.seg
    headers = {name: mri.read_header(path, subject.id) for name, path in files.items()}
    mri.check_geometry(subject.id, headers)
    shape, affine = next(iter(headers.values()))
    sides = [round(side * spacing) for side, spacing in zip(shape, mri.spacing_of(affine), strict=True)]
    if rules.size is not None and not rules.pad and min(sides) < rules.size:
        raise ZooError(
            f"{subject.id}: an axis has {min(sides)} voxels of 1 mm, fewer than the {rules.size} of the crop, and "
            "nothing is padded unless you ask for it (data.pad: true)."
        )
    cohort.resampled += not mri.is_isotropic_1mm(affine)
    return None


# ---------------------------------------------------------------------- voxels


def prepare_item(item: Item) -> Item:
    """Reads and prepares a subject: everything that no random draw touches, hence what is cached.

    Gives `voxels` (M, S, S, S), as int16 where that loses nothing, `mean` and `deviation` (M,) over non-zero voxels,
    and `labels` (1, S, S, S) uint8 if wanted.
    """
    subject, size, pad = item["subject"], item["size"], item["pad"]
    volumes = []
    for path in item["files"].values():
        volume = mri.prepare(mri.read_volume(Path(path), subject), size, subject, pad)
        volumes.append(volume.as_tensor()[0])
    voxels = torch.stack(volumes)
    statistics = []
    for name, volume in zip(item["files"], voxels, strict=True):
        inside = volume[volume != 0]
        if not len(inside) or inside.min() == inside.max():
            raise ZooError(f"{subject}: {name} is constant in the part of the volume that is used.")
        statistics.append((inside.mean(), inside.std(correction=0)))
    mean, deviation = torch.tensor(statistics).unbind(1)
    whole = bool((voxels == voxels.round()).all()) and float(voxels.abs().max()) < 32768
    result = {"voxels": voxels.to(torch.int16) if whole else voxels, "mean": mean, "deviation": deviation}
    if item["seg"]:
        labels = mri.read_labels(Path(item["seg"]), subject, item["labels"])
        result["labels"] = mri.prepare(labels, size, subject, pad, nearest=True).as_tensor()
    return result


def _transform(keep_errors: bool = False) -> Any:
    from monai.transforms import Transform

    class Prepare(Transform):
        def __call__(self, data: Item) -> Item:
            try:
                return prepare_item(data)
            except ZooError as error:
                if keep_errors:
                    return {"error": str(error)}
                raise

    return Prepare()


def _cached(items: list[Item], cache: str, folder: Path | None, skip: bool) -> Any:
    """MONAI's dataset for the kind of cache: none, in memory (filled beforehand), or on disk (filled as it goes).

    With `skip`, a damaged subject does not stop the filling: its item is {"error": why}.
    """
    from monai.data import CacheDataset, PersistentDataset
    from monai.data import Dataset as PlainDataset

    if cache == "memory":
        try:
            return CacheDataset(items, _transform(keep_errors=skip), copy_cache=False, num_workers=None)
        except RuntimeError as error:
            raise _zoo_error(error) or error from None
    if cache == "none" or folder is None:
        return PlainDataset(items, _transform())

    class Persistent(PersistentDataset):
        def _cachecheck(self, item: Item) -> Item:
            try:
                return super()._cachecheck(item)
            except (RuntimeError, EOFError, OSError) as error:  # a file cut short, by a full disk say
                if found := _zoo_error(error):
                    raise found from None
                name = self.hash_func(item).decode() + self.transform_hash
                file = Path(self.cache_dir) / f"{name}.pt"
                if not file.is_file():
                    raise ZooError(f"Cannot write to the cache {self.cache_dir}: {error}.") from error
                file.unlink()
                return super()._cachecheck(item)

    try:
        return Persistent(items, _transform(), folder)
    except OSError as error:
        raise ZooError(f"Cannot keep a cache in {folder}: {error.strerror or error}.") from error


def augment(volumes: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The official augmentation, one draw for all sequences of a subject, from torch's global generator.

    Each axis flipped with probability 1/2, then z-scores scaled by 0.9 to 1.1 and shifted by -0.1 to 0.1, background
    included.
    """
    draws = torch.rand(5)
    axes = [axis + 1 for axis in range(3) if draws[axis] < 0.5]
    scale, shift = 1 + 0.1 * (2 * draws[3] - 1), 0.1 * (2 * draws[4] - 1)
    volumes = torch.flip(volumes, axes) if axes else volumes
    return volumes * scale + shift, torch.flip(labels, axes) if labels is not None and axes else labels


class TumourDataset(Dataset):
    """Subjects as {"subject": id, t1 ...: (1, S, S, S) z-scored, "present": (M,) bool}, on demand "seg" (3, S, S, S).

    Absent sequences are zeros. `extra` adds what a table says of each subject.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        rules: Rules,
        train: bool = False,
        cache: str = "none",
        cache_dir: str | Path | None = None,
        extra: Sequence[Item] | None = None,
    ) -> None:
        require("nibabel", "monai", extra="medical", why="MRI is read with nibabel and MONAI")
        self.subjects, self.rules, self.train, self.extra = list(subjects), rules, train, extra
        items = [self._item(subject) for subject in self.subjects]
        settings = hashlib.sha256(repr((PREPARATION, rules.size, rules.pad)).encode()).hexdigest()[:12]
        folder = Path(cache_dir).expanduser() / settings if cache_dir else None
        self.prepared = _cached(items, cache, folder, rules.on_bad_subject == "skip")
        self._skipped = torch.zeros((), dtype=torch.long).share_memory_()  # worker processes add to it

    def _item(self, subject: Subject) -> Item:
        rules = self.rules
        files = {name: subject.sequences[name] for name in rules.modalities if name in subject.sequences}
        seg = subject.seg if rules.seg else None
        stats = [path.stat() for path in (*files.values(), *([seg] if seg else []))]
        return {
            "subject": subject.id,
            "files": {name: str(path.resolve()) for name, path in files.items()},
            "seg": str(seg.resolve()) if seg else "",
            "labels": rules.label_set(subject),
            "size": rules.size,
            "pad": rules.pad,
            # A file that changes gets a cache entry of its own.
            "versions": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
            "preparation": PREPARATION,
        }

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def num_skipped(self) -> int:
        """How often a damaged subject was passed over, all workers together."""
        return int(self._skipped)

    def __getitem__(self, index: int) -> Item:
        if index >= len(self):
            raise IndexError(index)  # ends a plain `for` over the dataset
        for attempt in range(len(self)):
            at = (index + attempt) % len(self)
            try:
                return self._load(at)
            except Exception as caught:
                error = _zoo_error(caught)
                if error is None:
                    raise
                if self.rules.on_bad_subject == "error":
                    raise error from None
                self._skipped += 1
                warnings.warn(f"skipped: {error}", stacklevel=1)
        raise ZooError("None of the subjects can be read.")

    def _load(self, index: int) -> Item:
        prepared, subject = self.prepared[index], self.subjects[index]
        if "error" in prepared:
            raise ZooError(prepared["error"])
        voxels = torch.as_tensor(prepared["voxels"])
        mean, deviation = (torch.as_tensor(prepared[key])[:, None, None, None] for key in ("mean", "deviation"))
        volumes = torch.where(voxels != 0, (voxels - mean) / deviation, 0.0)
        labels = torch.as_tensor(prepared["labels"]) if "labels" in prepared else None
        if self.train:
            volumes, labels = augment(volumes, labels)
        names = [name for name in self.rules.modalities if name in subject.sequences]
        item: Item = {"subject": subject.id, "present": torch.tensor([n in names for n in self.rules.modalities])}
        for name in self.rules.modalities:
            item[name] = volumes[names.index(name)].unsqueeze(0) if name in names else torch.zeros_like(volumes[:1])
        if labels is not None:
            item["seg"] = mri.regions(labels)
        if self.extra is not None:
            item |= self.extra[index]
        return item


def _zoo_error(error: BaseException | None) -> ZooError | None:
    """MONAI wraps what a transform raises."""
    while error is not None and not isinstance(error, ZooError):
        error = error.__cause__ or error.__context__
    return error


# ---------------------------------------------------------------------- splits


def split_by_patient(
    subjects: Sequence[Subject], val_fraction: float, seed: int
) -> tuple[list[Subject], list[Subject]]:
    """Training and held-out subjects; all visits of a patient are on one side."""
    if not 0 < val_fraction < 1:
        raise ZooError(f"val_fraction is a share between 0 and 1, not {val_fraction}.")
    patients = sorted({subject.patient for subject in subjects})
    if len(patients) < 2:
        raise ZooError("There is one patient only: nobody can be held out for validation.")
    order = np.random.default_rng(seed).permutation(len(patients))
    count = min(max(1, round(len(patients) * val_fraction)), len(patients) - 1)
    held_out = {patients[index] for index in order[:count]}
    return [s for s in subjects if s.patient not in held_out], [s for s in subjects if s.patient in held_out]


def read_ids(path: str | Path) -> list[str]:
    """Subject ids of a text file (one a line) or of the first column of a CSV; a path stands for its last part."""
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ZooError(f"Cannot read the list of subjects {file}: {error.strerror or error}.") from error
    return [line.split(",")[0].strip().rstrip("/").rsplit("/", 1)[-1] for line in lines if line.strip()]


# ---------------------------------------------------------------------- the data module


class TumourDataModule(ZooDataModule):
    """Brain-tumour MRI in batches {"subject": ids, t1 ...: (B, 1, S, S, S), "present": (B, M), "seg": (B, 3, S, S, S)}.

    Args:
        root: a folder in any layout of BraTS or UPenn-GBM (`zoo.nn.subjects` has the names); two folders in it called
            archive or train and val are the two sides of the split. Or "synthetic": a made-up cohort is written
            (`datamodules.brain_cohort`).
        image_size: side of the central crop in voxels of 1 mm.
        batch_size: subjects of one step on one device.
        modalities: the sequences to load; None takes those of the model, all four if it does not say.
        segmentation: load the tumour's regions TC, WT, ET too.
        whole_val: validate on whole volumes, one at a time, instead of the crop (for sliding windows).
        augment: flips, scale and shift in training.
        cache: "disk" keeps prepared subjects in `cache_dir` (16 MiB each at 128^3 x 4), "memory" in this process, or
            "none".
        cache_dir: for "disk"; entries are keyed by files, their dates and the preparation.
        labels: how segmentations number their labels: "auto" (by the names), "brats", "brats2023", "brats2024".
        on_missing: a subject that lacks a sequence is an "error", is left out ("drop"), or used as it is ("use").
        on_bad_subject: "error" names a damaged subject and stops; "skip" passes over it and counts.
        pad: fill up volumes smaller than the crop with zeros instead of refusing them.
        exclude: a list of ids (text, or a CSV's first column) to leave out.
        train_subjects: use only so many training subjects, drawn by `seed`; a smaller number lies within a larger.
        val_fraction, seed: the held-out share of patients and its draw.
        folds, fold: hold out part `fold` of `folds` of the patients to train on instead (`zoo kfold`);
            None for the usual split.
        synthetic_subjects, synthetic_shape, synthetic_seed: the made-up cohort.
        num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 128,
        batch_size: int = 6,
        modalities: Sequence[str] | None = None,
        segmentation: bool = False,
        whole_val: bool = False,
        augment: bool = True,
        cache: Literal["disk", "memory", "none"] = "none",
        cache_dir: str | None = None,
        labels: Literal["auto", "brats", "brats2023", "brats2024"] = "auto",
        on_missing: Literal["error", "drop", "use"] = "error",
        on_bad_subject: Literal["error", "skip"] = "error",
        pad: bool = False,
        exclude: str | None = None,
        train_subjects: int | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        synthetic_subjects: int = 24,
        synthetic_shape: tuple[int, int, int] = (240, 240, 155),
        synthetic_seed: int = 0,
        num_workers: int = 8,
        pin_memory: bool | None = None,
    ) -> None:
        # By name, since a subclass hides arguments that are used here from Lightning's own search.
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__(batch_size, num_workers, pin_memory)
        self.save_hyperparameters(given, logger=False)
        check_fold(folds, fold)
        if cache not in ("disk", "memory", "none"):
            raise ZooError(f"cache is disk, memory or none, not {cache!r}.")
        if cache != "disk" and cache_dir is not None:
            raise ZooError(
                f"data.cache_dir {cache_dir} is for data.cache disk, not {cache}: set one of them otherwise."
            )
        if cache == "disk" and cache_dir is None:
            raise ZooError("A cache on disk needs a place: set data.cache_dir, or data.cache to memory or none.")
        self.rules = self._rules(SEQUENCES if modalities is None else modalities)
        self.cohorts: list[Cohort] = []
        self.train_data: TumourDataset | None = None
        self.val_data: TumourDataset | None = None

    def _rules(self, modalities: Sequence[str]) -> Rules:
        h = self.hparams
        ordered = tuple(name for name in SEQUENCES if name in modalities)
        wanted = ordered if len(ordered) == len(modalities) else tuple(modalities)
        return Rules(h.image_size, wanted, h.pad, h.segmentation, h.labels, h.on_missing, h.on_bad_subject)

    def _follow_model(self) -> None:
        """Loads what the model works on, and refuses another size of volume than it takes."""
        model = getattr(getattr(self, "trainer", None), "lightning_module", None)
        wanted = getattr(model, "modalities", None)
        if self.hparams.modalities is None and wanted:
            self.rules = self._rules(wanted)
        needed = getattr(model, "image_size", None) or (model.hparams.get("image_size") if model is not None else None)
        if needed is not None and needed != self.hparams.image_size:
            raise ZooError(
                f"The model takes volumes of {needed}^3 voxels, the data gives {self.hparams.image_size}^3: set "
                f"data.image_size to {needed}."
            )

    @property
    def root(self) -> Path:
        h = self.hparams
        if str(h.root) != "synthetic":
            return Path(h.root).expanduser()
        shape = "x".join(map(str, h.synthetic_shape))
        return zoo_cache() / "cohorts" / f"{h.synthetic_subjects}-of-{shape}-seed{h.synthetic_seed}"

    def prepare_data(self) -> None:
        h = self.hparams
        if str(h.root) == "synthetic":
            write_cohort(self.root, h.synthetic_subjects, tuple(h.synthetic_shape), seed=h.synthetic_seed)

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is not None:
            return
        self._follow_model()
        self.prepare_data()
        train, val = self.split()
        if self.hparams.train_subjects is not None:
            order = np.random.default_rng(self.hparams.seed).permutation(len(train))[: self.hparams.train_subjects]
            train = [train[index] for index in sorted(order)]
        self.train_data, self.val_data = self.dataset(train, True), self.dataset(val, False)
        if getattr(self, "trainer", None) is None or self.trainer.is_global_zero:
            self.report(len(train), len(val))

    def scan(self, folder: Path) -> list[Subject]:
        exclude = read_ids(self.hparams.exclude) if self.hparams.exclude else []
        cohort = scan(folder, self.rules, exclude)
        self.cohorts.append(cohort)
        return cohort.subjects

    def split(self) -> tuple[list[Subject], list[Subject]]:
        """Training and held-out subjects."""
        val = self.root / "val"
        train = next((self.root / name for name in ("archive", "train") if (self.root / name).is_dir()), None)
        if self.hparams.folds is not None:
            subjects = self.scan(train if train is not None and val.is_dir() else self.root)
            patients = [subject.patient for subject in subjects]
            out = held_out_by_fold(
                [0] * len(subjects), self.hparams.folds, self.hparams.fold, self.hparams.seed, groups=patients
            )
            kept = [subject for subject, held in zip(subjects, out, strict=True) if not held]
            return kept, [subject for subject, held in zip(subjects, out, strict=True) if held]
        if train is not None and val.is_dir():
            sides = self.scan(train), self.scan(val)
            shared = {subject.patient for subject in sides[0]} & {subject.patient for subject in sides[1]}
            if shared:
                raise ZooError(f"{sorted(shared)[0]} is in {train.name} and in val: a patient belongs on one side.")
            return sides
        return split_by_patient(self.scan(self.root), self.hparams.val_fraction, self.hparams.seed)

    def dataset(
        self, subjects: Sequence[Subject], train: bool, whole: bool | None = None, extra: Sequence[Item] | None = None
    ) -> TumourDataset:
        """A dataset of these subjects with the settings of this module; `whole` keeps volumes uncropped."""
        h = self.hparams
        whole = (h.whole_val and not train) if whole is None else whole
        rules = Rules(**{**vars(self.rules), "size": None}) if whole else self.rules
        return TumourDataset(subjects, rules, train and h.augment, h.cache, h.cache_dir, extra)

    def audit(self, read: bool = True) -> Audit:
        from datamodules.brain_audit import audit_subjects

        self._follow_model()
        self.prepare_data()
        return audit_subjects(self, read)

    def report(self, train: int, val: int) -> None:
        """Prints one table of what was found."""
        from datamodules.brain_report import print_found

        print_found(self, train, val)

    @property
    def num_skipped(self) -> int:
        return super().num_skipped + sum(len(cohort.bad) for cohort in self.cohorts)

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.train_data, train=True)

    def val_dataloader(self) -> DataLoader:
        if not self.hparams.whole_val:
            return self.loader(self.val_data, train=False)
        return DataLoader(self.val_data, batch_size=1, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()
