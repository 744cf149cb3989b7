"""A table of subjects beside their MRI: labels or survival times, in stratified folds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from datamodules.audit import Audit
from datamodules.brain_tumour import TumourDataModule
from zoo.errors import ZooError, did_you_mean
from zoo.nn.subjects import Subject
from zoo.nn.survival import discretise, quantile_cuts

Row = dict[str, str]
ID_COLUMNS = ("subject", "id", "MRI", "BraTS21ID", "Subject", "ID")


def read_table(path: str | Path, columns: Sequence[str], id_column: str | None = None) -> list[Row]:
    """Rows of a CSV in their order, those with an empty cell in `columns` left out; the id is under "subject".

    An id may be a path: its last part counts. Raises `ZooError` for a missing file or column, or an id in two rows.
    """
    file = Path(path).expanduser()
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            found, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"Cannot read the table {file}: {error}.") from error
    name = id_column or next((column for column in ID_COLUMNS if column in found), None)
    if name is None:
        raise ZooError(f"{file} has no column of subject ids (such as {ID_COLUMNS[0]}): set data.id_column.")
    for column in (name, *columns):
        if column not in found:
            raise ZooError(f"{file} has no column {column!r}; it has {', '.join(found)}.{did_you_mean(column, found)}")
    kept = []
    for row in rows:
        values = [(row[column] or "").strip() for column in (name, *columns)]
        if all(value and value.lower() not in ("nan", "na") for value in values):
            kept.append(
                {"subject": values[0].rstrip("/").rsplit("/", 1)[-1]} | dict(zip(columns, values[1:], strict=True))
            )
    ids = [row["subject"] for row in kept]
    doubled = next((value for value in ids if ids.count(value) > 1), None)
    if doubled:
        raise ZooError(f"{file} has {doubled} in two rows.")
    if not kept:
        raise ZooError(f"{file} has no row with a value in {', '.join(columns)}.")
    return kept


class TumourTableDataModule(TumourDataModule):
    """MRI with what a CSV says of each subject: a label of two values, or a survival time.

    Batches are those of `TumourDataModule` with "label" (B,), or "time", "event_seen" (as in the table), "time_index"
    and "event" (as discretised).

    Args:
        table: the CSV; one row a subject. Rows without a value in the columns used are left out.
        label: its column of labels. Class 0 is the value met first in the file, as in the official code.
        time, event: instead of `label`: its columns of follow-up times and of events (1 death, 0 censored).
        id_column: its column of subject ids, or paths that end in them; None looks for the usual names.
        bins: time bins, by quantiles of the Kaplan-Meier curve.
        cuts_from: fit the bins' limits on the "train" subjects, or on "all", held-out ones included (official).
        folds, fold, fold_seed: scikit-learn's StratifiedKFold(folds, shuffle=True, random_state=fold_seed) over the
            table's rows, by label or time bin; `fold` is the one held out.
        others: see `TumourDataModule`; subjects without a row are left out, rows without MRI are an error unless
            on_missing is "drop".
    """

    def __init__(
        self,
        root: str,
        table: str,
        label: str | None = None,
        time: str | None = None,
        event: str | None = None,
        id_column: str | None = None,
        bins: int = 10,
        cuts_from: Literal["train", "all"] = "train",
        folds: int = 5,
        fold: int = 0,
        fold_seed: int = 1999,
        image_size: int = 128,
        batch_size: int = 2,
        modalities: Sequence[str] | None = None,
        augment: bool = True,
        cache: Literal["disk", "memory", "none"] = "none",
        cache_dir: str | None = None,
        on_missing: Literal["error", "drop", "use"] = "error",
        on_bad_subject: Literal["error", "skip"] = "error",
        pad: bool = False,
        synthetic_subjects: int = 24,
        synthetic_shape: tuple[int, int, int] = (240, 240, 155),
        synthetic_seed: int = 0,
        num_workers: int = 8,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(
            root, image_size=image_size, batch_size=batch_size, modalities=modalities, augment=augment, cache=cache,
            cache_dir=cache_dir, on_missing=on_missing, on_bad_subject=on_bad_subject, pad=pad,
            synthetic_subjects=synthetic_subjects, synthetic_shape=synthetic_shape, synthetic_seed=synthetic_seed,
            num_workers=num_workers, pin_memory=pin_memory,
        )  # fmt: skip
        self.save_hyperparameters(logger=False)
        if (label is None) == (time is None) or (time is None) != (event is None):
            raise ZooError("Give data.label, or data.time together with data.event.")
        if cuts_from not in ("train", "all"):
            raise ZooError(f"cuts_from is train or all, not {cuts_from!r}.")
        if folds < 2 or not 0 <= fold < folds:
            raise ZooError(f"fold is one of 0 to {folds - 1} with {folds} folds (two or more), not {fold}.")
        self.classes: list[str] = []
        self.cuts: np.ndarray | None = None
        self._extra: dict[str, dict[str, Any]] = {}

    def class_counts(self) -> list[int] | None:
        if self.train_data is None or not self.classes:
            return None
        labels = [self._extra[subject.id]["label"] for subject in self.train_data.subjects]
        return np.bincount(labels, minlength=len(self.classes)).tolist()

    def audit(self, read: bool = True) -> Audit:
        found = super().audit(read)
        if self.train_data is None or self.val_data is None:
            return found
        sides = {"training": self.train_data.subjects, "validation": self.val_data.subjects}
        if self.classes:
            labels = {side: [self._extra[s.id]["label"] for s in part] for side, part in sides.items()}
            found.class_counts(labels, self.classes)
        else:
            for side, part in sides.items():
                events = sum(self._extra[s.id]["event_seen"] for s in part)
                found.facts[f"events, {side}"] = f"{events} of {len(part)}, the others are censored"
                found.spread(f"times, {side}", [round(float(self._extra[s.id]["time"]), 2) for s in part])
        return found

    def split(self) -> tuple[list[Subject], list[Subject]]:
        h = self.hparams
        table = self.root / "subjects.csv" if str(h.root) == "synthetic" and h.table == "synthetic" else h.table
        columns = [h.label] if h.label else [h.time, h.event]
        rows = read_table(table, columns, h.id_column)
        found = {subject.id: subject for subject in self.scan(self.root)}
        absent = [row["subject"] for row in rows if row["subject"] not in found]
        if absent and h.on_missing == "error":
            raise ZooError(
                f"{absent[0]} is in the table, but there is no usable MRI of it in {self.root} "
                f"({len(absent)} of {len(rows)} rows); data.on_missing: drop leaves them out."
            )
        rows = [row for row in rows if row["subject"] in found]
        if not rows:
            raise ZooError(f"None of the subjects in {table} has MRI in {self.root}.")
        train, val = self._label(rows) if h.label else self._times(rows)
        return [found[rows[i]["subject"]] for i in train], [found[rows[i]["subject"]] for i in val]

    def _label(self, rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
        name = self.hparams.label
        self.classes = list(dict.fromkeys(row[name] for row in rows))
        if len(self.classes) != 2:
            shown = ", ".join(self.classes[:5])
            raise ZooError(f"Column {name} should hold two different values, not {len(self.classes)} ({shown}).")
        labels = np.array([self.classes.index(row[name]) for row in rows])
        self._extra = {row["subject"]: {"label": int(label)} for row, label in zip(rows, labels, strict=True)}
        return self._fold(labels)

    def _times(self, rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
        h = self.hparams
        try:
            time = np.array([float(row[h.time]) for row in rows])
            event = np.array([float(row[h.event]) for row in rows])
        except ValueError as error:
            raise ZooError(f"Columns {h.time} and {h.event} hold numbers: {error}.") from error
        if not set(event.tolist()) <= {0.0, 1.0}:
            raise ZooError(f"Column {h.event} holds 1 (death) and 0 (censored) only.")
        all_cuts = quantile_cuts(time, event, h.bins)
        # Folds are stratified by the bins of everybody, as official; what the model learns from need not be.
        train, val = self._fold(discretise(time, event, all_cuts)[0])
        self.cuts = all_cuts if h.cuts_from == "all" else quantile_cuts(time[train], event[train], h.bins)
        index, seen = discretise(time, event, self.cuts)
        self._extra = {
            row["subject"]: {
                "time": torch.tensor(time[i], dtype=torch.float64),
                "event_seen": int(event[i]),
                "time_index": int(index[i]),
                "event": torch.tensor(float(seen[i])),
            }
            for i, row in enumerate(rows)
        }
        return train, val

    def _fold(self, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return fold_indices(strata, self.hparams.folds, self.hparams.fold, self.hparams.fold_seed)

    def dataset(self, subjects: Sequence[Subject], train: bool, whole: bool | None = None, extra: Any = None) -> Any:
        extra = [self._extra[subject.id] for subject in subjects] if extra is None else extra
        return super().dataset(subjects, train, whole, extra)


def fold_indices(strata: np.ndarray, folds: int, fold: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One fold of scikit-learn's StratifiedKFold(folds, shuffle=True, random_state=seed): training, held-out rows."""
    import warnings

    from sklearn.model_selection import StratifiedKFold

    if len(strata) < folds or np.bincount(strata).max() < folds:
        raise ZooError(f"There are too few subjects of each kind for {folds} folds: lower data.folds.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a time bin may have fewer members than there are folds
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(strata)), strata))
    return splits[fold]
