"""What the pixels of a mask file mean: numbers of classes, a palette's numbers, or colours."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.masks import open_picture
from zoo.errors import ZooError
from zoo.nn.segmentation import IGNORE

_COLOURS = (("red", "green", "blue"), ("r", "g", "b"))


class MaskReader:
    """A mask file to its labels, uint8 (H, W) with `IGNORE` where a pixel does not count.

    Grey and palette files hold the labels themselves. Where `colours` are given, all files are read by colour.

    Args:
        classes: their names, whose place is their label; None takes labels as they come.
        colours: (C, 3) of the classes. ignore_index: the label of pixels that do not count, if there is one.

    Attributes:
        marked: masks are 0 and 255, which is then class 1.
    """

    def __init__(
        self, classes: Sequence[str] | None, colours: np.ndarray | None = None, ignore_index: int | None = 255
    ) -> None:
        self.classes, self.colours, self.ignore_index, self.marked = classes, colours, ignore_index, False

    def __call__(self, path: Path) -> np.ndarray:
        if self.colours is not None:
            return self._by_colour(path)
        labels = raw_labels(path)
        if self.marked:
            labels = np.where(labels == 255, 1, labels)
        if not self.marked and self.ignore_index is not None and self.ignore_index != IGNORE:
            if (labels == IGNORE).any():
                raise self._stray(path, IGNORE)
            labels = np.where(labels == self.ignore_index, IGNORE, labels)
        allowed = IGNORE if self.classes is None else len(self.classes)
        stray = (labels >= allowed) & ((labels != IGNORE) | (self.ignore_index is None))
        if stray.any():
            raise self._stray(path, int(labels[stray].min()))
        return labels.astype(np.uint8)

    def _stray(self, path: Path, label: int) -> ZooError:
        known = "254" if self.classes is None else f"{len(self.classes) - 1} ({len(self.classes)} classes)"
        beside = "" if self.ignore_index is None else f", and {self.ignore_index} for pixels that do not count"
        return ZooError(
            f"{path} holds the label {label}: labels are 0 to {known}{beside}. Mend the mask, name the class in "
            "classes.txt, or set data.ignore_index."
        )

    def _by_colour(self, path: Path) -> np.ndarray:
        assert self.colours is not None
        pixels = np.asarray(open_picture(path).convert("RGB")).astype(np.int64)
        keys = pixels @ [65536, 256, 1]
        known = self.colours.astype(np.int64) @ [65536, 256, 1]
        order = np.argsort(known)
        place = np.clip(np.searchsorted(known[order], keys), 0, len(known) - 1)
        stray = known[order][place] != keys
        if stray.any():
            colour = tuple(int(v) for v in pixels[stray][0])
            raise ZooError(
                f"{path} has the colour {colour} in {int(stray.sum())} pixels, which classes.csv does not name. "
                "(A JPEG blurs colours: save masks as PNG.)"
            )
        labels = order[place].astype(np.uint8)
        return labels if self.ignore_index is None else np.where(labels == self.ignore_index, IGNORE, labels)


def raw_labels(path: Path) -> np.ndarray:
    """The numbers in a grey, palette or one-bit file. Raises `ZooError` for colours that are no grey."""
    mask = open_picture(path)
    labels = np.asarray(mask)
    if labels.ndim == 3:
        if mask.mode not in ("RGB", "RGBA") or (labels[..., :3] != labels[..., :1]).any():
            raise ZooError(
                f"{path} is a colour picture: give a grey or palette PNG whose pixels are class numbers, or name the "
                "colours in classes.csv (columns name, red, green, blue)."
            )
        labels = labels[..., 0]
    if labels.dtype.kind == "f":
        raise ZooError(f"{path} holds fractions, not class numbers.")
    return labels.astype(np.int64)


def looks_marked(masks: Sequence[Path], most: int = 50) -> bool:
    """Whether some masks, of all an even spread, hold 0 and 255 alone: one thing, marked as pictures show it."""
    seen: set[int] = set()
    for index in sorted(set(np.linspace(0, len(masks) - 1, min(most, len(masks))).astype(int).tolist())):
        try:
            seen |= set(np.unique(raw_labels(masks[index])).tolist())
        except ZooError:
            continue  # the check names such files
        if seen - {0, 255}:
            return False
    return 255 in seen


def find_classes(root: Path) -> tuple[list[str] | None, np.ndarray | None]:
    """Names and colours (C, 3) of the classes that `root`/classes.csv or classes.txt gives; None for what it does not.

    The text file has a name a line, the first for label 0. The table has a column `name` and maybe `red`, `green` and
    `blue` (0 to 255), by which masks are then read; its first row is label 0.
    """
    listing, table = root / "classes.txt", root / "classes.csv"
    if table.is_file():
        return _read_table(table)
    if not listing.is_file():
        return None, None
    names = [line.strip() for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return _checked(names, listing), None


def _read_table(table: Path) -> tuple[list[str], np.ndarray | None]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = [
            {str(key).strip().lower(): str(value).strip() for key, value in row.items()} for row in csv.DictReader(file)
        ]
    if not rows or "name" not in rows[0]:
        raise ZooError(f"{table} has no column name: it has a row a class, with name and maybe red, green, blue.")
    names = _checked([row["name"] for row in rows], table)
    columns = next((keys for keys in _COLOURS if set(keys) <= set(rows[0])), None)
    if columns is None:
        return names, None
    try:
        colours = np.array([[int(row[key]) for key in columns] for row in rows])
    except ValueError as error:
        raise ZooError(f"{table}: red, green and blue are whole numbers from 0 to 255 ({error}).") from error
    if colours.min() < 0 or colours.max() > 255 or len(np.unique(colours, axis=0)) < len(colours):
        raise ZooError(f"{table}: colours lie between 0 and 255, and each class has another one.")
    return names, colours


def _checked(names: list[str], path: Path) -> list[str]:
    if not 2 <= len(names) <= IGNORE or len(set(names)) < len(names):
        raise ZooError(f"{path} names {len(names)} classes: there are 2 to {IGNORE}, each with a name of its own.")
    return names
