"""Pictures whose labels or numbers stand in a table: a row a picture.

file,cat,dog,outdoors            file,labels               file,age
a.jpg,1,0,1                      a.jpg,cat;outdoors        a.jpg,34.5
b.jpg,0,,0                       b.jpg,                    b.jpg,61
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from datamodules.audit import Audit
from datamodules.folds import held_out_by_fold
from datamodules.image_classification import ImageClassificationDataModule
from datamodules.images import IMAGE_SUFFIXES, ImageDataset, _FileReader
from zoo.errors import ZooError

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_UNKNOWN = ("", "na", "nan", "n/a", "?")


@dataclass
class Table:
    """What stands in a table.

    Attributes:
        files: a path for each row. values: (n, L), NaN where unknown. columns: their names.
        lines: where each row stands. split: "train" or "val" of each row, or None. groups: of each row, or None.
    """

    files: list[Path]
    values: np.ndarray
    columns: list[str]
    lines: list[int]
    split: list[str] | None
    groups: list[str] | None


class ImageTableDataModule(ImageClassificationDataModule):
    """Batches `(images, targets float (B, L))` of pictures with labels or numbers, NaN where one is not known.

    Args:
        root: folder with the table; its files are named from there, or from its folder `images`.
        table: the table, .csv or .tsv, in `root` or elsewhere.
        targets: "labels" (0 or 1, true or false, yes or no in a column each, or one column `labels` with names
            separated by semicolons), or "numbers".
        columns: the ones to learn; None takes all but `file_column`, `split_column` and `group_column`.
        file_column: the pictures. split_column: "train" or "val" (also "test"), if the table has it; else a share is
            held out. group_column: rows of a group (a patient, a person) stay on one side.
        val_fraction, seed, folds, fold: as in `ImageClassificationDataModule`; rows with rare labels, and low and high
            numbers, are spread evenly.
        others: as in `ImageClassificationDataModule`.
    """

    def __init__(
        self,
        root: str,
        table: str = "labels.csv",
        targets: Literal["labels", "numbers"] = "labels",
        columns: list[str] | None = None,
        file_column: str = "file",
        split_column: str = "split",
        group_column: str | None = None,
        image_size: int = 224,
        batch_size: int = 32,
        train_augment: Literal["finetune", "crop", "none"] = "crop",
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        random_erase: float = 0.25,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.5,
        eval_crop_pct: float = 1.0,
        on_bad_image: Literal["error", "skip"] = "error",
        val_fraction: float = 0.2,
        seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        num_workers: int = 8,
        pin_memory: bool | None = None,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__(
            root, image_size, batch_size, train_augment, auto_augment, random_erase, crop_scale, flip,
            eval_crop_pct=eval_crop_pct, on_bad_image=on_bad_image, val_fraction=val_fraction, seed=seed, folds=folds,
            fold=fold, num_workers=num_workers, pin_memory=pin_memory, mean=mean, std=std,
        )  # fmt: skip
        if targets not in ("labels", "numbers"):
            raise ZooError(f"data.targets is labels or numbers, not {targets!r}.")
        if not 0 < val_fraction <= 0.5:
            raise ZooError(f"val_fraction lies above 0 and up to 0.5, not at {val_fraction}.")
        self.targets = targets
        self._notes: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is not None:
            return
        h = self.hparams
        root = Path(h.root).expanduser()
        if not root.is_dir():
            raise ZooError(f"There is no data folder {str(root)!r}: give one with --data.root.")
        path = next((p for p in (root / h.table, Path(h.table).expanduser()) if p.is_file()), None)
        if path is None:
            raise ZooError(f"There is no table {h.table} in {root}: give one with --data.table.")
        table = read_table(
            path, root, self.targets, columns=h.columns, file_column=h.file_column, split_column=h.split_column,
            group_column=h.group_column,
        )  # fmt: skip
        missing = [n for n, file in enumerate(table.files) if not file.is_file()]
        if missing:
            raise ZooError(
                f"{len(missing)} of {len(table.files)} files of {path} do not exist, the first "
                f"{table.files[missing[0]]} (line {table.lines[missing[0]]}): names count from {root} or its folder "
                "images."
            )
        held_out = self._held_out(table)
        train = ~held_out if table.split is None else ~held_out & (np.array(table.split) == "train")
        for side, name, transform in ((train, "train_data", self.augment), (held_out, "val_data", self.view)):
            rows = np.flatnonzero(side)
            if not len(rows):
                raise ZooError(f"{path} leaves no picture {'to train on' if name == 'train_data' else 'held out'}.")
            files = [str(table.files[row]) for row in rows]
            labels: Any = list(table.values[rows].astype(np.float32))
            data = ImageDataset(_FileReader(files), files, labels, table.columns, transform, h.on_bad_image)
            setattr(self, name, data)
        self._note(table, root)

    def _held_out(self, table: Table) -> np.ndarray:
        h = self.hparams
        if table.split is not None and h.folds is None:
            return np.array([side == "val" for side in table.split])
        chosen = np.arange(len(table.files))
        if table.split is not None:  # folds share out the training side
            chosen = np.flatnonzero([side == "train" for side in table.split])
        folds, fold = (h.folds, h.fold) if h.folds is not None else (round(1 / h.val_fraction), 0)
        groups = None if table.groups is None else [table.groups[row] for row in chosen]
        strata = _strata(table.values[chosen], self.targets)
        out = np.zeros(len(table.files), dtype=bool)
        out[chosen] = held_out_by_fold(strata, folds, fold, seed=h.seed, groups=groups)
        return out

    def _note(self, table: Table, root: Path) -> None:
        """What the table says that a person should know."""
        empty = int(np.isnan(table.values).all(1).sum())
        if empty:
            self._notes.append(f"{empty} rows have no value at all: they teach nothing.")
        double = len(table.files) - len(set(table.files))
        if double:
            self._notes.append(f"{double} files stand in the table more than once.")
        folder = root / "images" if (root / "images").is_dir() else root
        known = {file.resolve() for file in table.files}
        loose = [f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.resolve() not in known]
        if loose:
            self._notes.append(f"{len(loose)} pictures in {folder} stand in no row, such as {loose[0].name}.")

    def values(self, side: str = "train") -> np.ndarray:
        """(n, L) targets of a side, "train" or "val"."""
        self.setup()
        data = self.train_data if side == "train" else self.val_data
        assert data is not None
        return np.stack(data.labels)  # type: ignore[call-overload]

    def class_counts(self) -> list[int] | None:
        """None: columns are no classes."""
        return None

    def label_counts(self) -> list[tuple[int, int]]:
        """(positive, negative) training pictures of each label."""
        values = self.values()
        return [(int((column == 1).sum()), int((column == 0).sum())) for column in values.T]

    def target_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each column over the training pictures; 1 where nothing varies."""
        values = self.values()
        spread = np.nanstd(values, axis=0)
        return np.nanmean(values, axis=0).astype(np.float32), np.where(spread > 0, spread, 1).astype(np.float32)

    def _count(self, found: Audit) -> None:
        found.warnings += self._notes
        sides = {"training": self.values("train"), "validation": self.values("val")}
        if self.targets == "numbers":
            rows = []
            for k, name in enumerate(self.classes):
                known = [part[np.isfinite(part[:, k]), k] for part in sides.values()]
                unknown = sum(int(np.isnan(part[:, k]).sum()) for part in sides.values())
                rows.append([name, *(_spread(part) for part in known), unknown])
                if len(known[0]) and known[0].std() == 0:
                    found.problems.append(
                        f"{name} is {known[0][0]:g} in every training row: there is nothing to learn."
                    )
            found.tables.append(("Numbers: least to largest (mean)", ["column", *sides, "not known"], rows))
            return
        rows = []
        for k, name in enumerate(self.classes):
            positive = {side: int((values[:, k] == 1).sum()) for side, values in sides.items()}
            known = {side: int(np.isfinite(values[:, k]).sum()) for side, values in sides.items()}
            shares = [f"{positive[side] / max(1, known[side]):.1%}" for side in sides]
            rows.append([name, *positive.values(), *shares, sum(map(len, sides.values())) - sum(known.values())])
            if not positive["training"] or positive["training"] == known["training"]:
                which = "no" if not positive["training"] else "only"
                found.problems.append(f"There are {which} training pictures with {name}: there is nothing to learn.")
            elif positive["training"] < 10:
                found.warnings.append(f"{positive['training']} training pictures have {name}: that is few.")
            if not positive["validation"]:
                found.warnings.append(f"No held-out picture has {name}: how well it is found stays unknown.")
        header = ["label", "training", "validation", "share, training", "share, validation", "not known"]
        found.tables.append((f"{len(rows)} labels: pictures that have them", header, rows))
        none = sum(int((np.nan_to_num(values) == 0).all(1).sum()) for values in sides.values())
        found.facts["pictures without any label"] = f"{none:,}"


def read_table(
    path: Path, root: Path, targets: str, *, columns: Sequence[str] | None = None, file_column: str = "file",
    split_column: str = "split", group_column: str | None = None,
) -> Table:  # fmt: skip
    """Reads a .csv or .tsv. Raises `ZooError` that names the line of a value that is no label or number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader if any(str(v or "").strip() for v in row.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"Cannot read the table {path}: {error}.") from error
    for name in (file_column, *([group_column] if group_column else []), *(columns or ())):
        if name not in header:
            raise ZooError(f"{path} has no column {name!r}; it has {', '.join(header) or 'none'}.")
    special = {file_column, split_column, group_column}
    chosen = list(columns) if columns else [name for name in header if name not in special]
    if not rows or not chosen:
        raise ZooError(f"{path} has {len(rows)} rows and the columns {', '.join(header)}: there is nothing to learn.")
    cells = [[str(row.get(name) or "").strip() for name in chosen] for _, row in rows]
    if targets == "labels" and chosen == ["labels"]:
        chosen, values = _named_labels([cell[0] for cell in cells])
    else:
        values = np.array([
            [_value(cell, targets, f"{path}, line {line}, {name}") for cell, name in zip(row, chosen, strict=True)]
            for (line, _), row in zip(rows, cells, strict=True)
        ])  # fmt: skip
    split = None
    if split_column in header:
        split = []
        for line, row in rows:
            side = _SPLITS.get(str(row[split_column] or "").strip().lower())
            if side is None:
                raise ZooError(f"{path}, line {line}: {split_column} is train or val, not {row[split_column]!r}.")
            split.append(side)
    below = root / "images"
    files = []
    for _, row in rows:
        name = str(row[file_column] or "").strip()
        files.append(below / name if not (root / name).is_file() and (below / name).is_file() else root / name)
    groups = [str(row[group_column]) for _, row in rows] if group_column else None
    return Table(files, values, chosen, [line for line, _ in rows], split, groups)


def _value(cell: str, targets: str, where: str) -> float:
    if cell.lower() in _UNKNOWN:
        return float("nan")
    try:
        value = _WORDS[cell.lower()] if targets == "labels" and cell.lower() in _WORDS else float(cell)
    except ValueError:
        value = float("inf")
    if targets == "labels":
        value = {-1.0: 0.0}.get(value, value)  # CelebA's way
        if value not in (0.0, 1.0):
            raise ZooError(
                f"{where}: a label is 0 or 1 (true or false, yes or no) or empty, not {cell!r}. Name the columns "
                "to learn with data.columns if this is none."
            )
    elif not np.isfinite(value):
        raise ZooError(f"{where}: {cell!r} is no number. Leave cells without a value empty.")
    return value


def _named_labels(cells: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Cells such as "cat;outdoors" to the labels' names, sorted, and 1 or 0 for each."""
    sets = [{name.strip() for name in cell.split(";") if name.strip()} for cell in cells]
    names = sorted(set.union(*sets))
    if not names:
        raise ZooError("The column labels names no label in any row.")
    return names, np.array([[float(name in found) for name in names] for found in sets])


def _strata(values: np.ndarray, targets: str) -> list[Any]:
    """What is spread evenly over folds: a row's rarest label, or the tenth of the first column that it is in."""
    if targets == "numbers":
        column = np.nan_to_num(values[:, 0], nan=np.nanmedian(values[:, 0]) if np.isfinite(values[:, 0]).any() else 0)
        return np.searchsorted(np.quantile(column, np.linspace(0.1, 0.9, 9)), column).tolist()
    counts = np.where(values == 1, (values == 1).sum(0), np.inf)
    return [int(row.argmin()) if np.isfinite(row).any() else -1 for row in counts]


def _spread(values: np.ndarray) -> str:
    return f"{values.min():g} to {values.max():g} ({values.mean():.3g})" if len(values) else "none"
