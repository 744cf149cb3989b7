"""Pictures that `zoo fractals render` wrote, as a data set: folders, or tar shards in WebDataset form."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from zoo.errors import ZooError

Source = tuple[Callable[[int], bytes], Sequence[str], list[list[int]]]
"""Encoded picture i, what to call it, and the labels of each."""


class RenderedFractals(Dataset):
    """Rendered pictures: `(uint8 (3, S, S), labels)` as the generating data sets give them.

    Args:
        source: see `open_rendered`.
        indices: which of its pictures, in this order.
        task: "multi_instance" gives labels (most labels of any picture,), the last one repeated and -1 for none;
            "multi_class" the one label.
        num_classes, image_size: what the pictures have to agree with.
    """

    num_redrawn = 0

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        task: Literal["multi_instance", "multi_class"],
        num_classes: int,
        image_size: int,
    ) -> None:
        self.read, self.names, self.labels = source
        self.indices, self.task, self.image_size = indices, task, image_size
        self.most = max(1, *(len(labels) for labels in self.labels))
        if task == "multi_class" and self.most > 1:
            raise ZooError(f"{self._first(2)} has several labels: set data.task to multi_instance.")
        largest = max(range(len(self.labels)), key=lambda index: max(self.labels[index], default=-1))
        if max(self.labels[largest], default=-1) >= num_classes:
            raise ZooError(
                f"{self.names[largest]} has the label {max(self.labels[largest])}, but there are {num_classes} "
                "classes: set data.num_classes to the number that was rendered."
            )
        empty = [index for index, labels in enumerate(self.labels) if not labels]
        if task == "multi_class" and empty:
            raise ZooError(f"{self.names[empty[0]]} has no label.")

    def _first(self, count: int) -> str:
        return next(name for name, labels in zip(self.names, self.labels, strict=True) if len(labels) >= count)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | int]:
        at = int(self.indices[index])
        labels = self.labels[at] or [-1]
        picture = torch.from_numpy(self._picture(at)).permute(2, 0, 1).contiguous()
        if self.task == "multi_class":
            return picture, labels[0]
        return picture, torch.tensor(labels + labels[-1:] * (self.most - len(labels)))

    def _picture(self, at: int) -> np.ndarray:
        try:
            image = Image.open(io.BytesIO(self.read(at)))
            picture = np.array(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise ZooError(f"Cannot read the picture {self.names[at]} ({str(error).split(':')[0]}).") from error
        if picture.shape[:2] != (self.image_size, self.image_size):
            size = "x".join(map(str, image.size))
            raise ZooError(f"{self.names[at]} has {size} pixels: set data.image_size to the size that was rendered.")
        return picture


def open_rendered(root: str | Path) -> Source:
    """What lies in a folder of rendered pictures.

    One of: `labels.csv` (columns file and labels, numbers apart by blanks) beside the pictures; tar shards of NAME.png
    with NAME.cls or NAME.json (`{"labels": [...]}`); one subfolder a class, named by its number.

    Raises:
        ZooError: nothing of that there, or it contradicts itself; names file and entry.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise ZooError(f"There is no folder {str(path)!r} of rendered fractals: make one with zoo fractals render.")
    if (path / "labels.csv").is_file():
        return _table(path)
    shards = sorted(path.glob("*.tar"))
    if shards:
        return _shards(shards)
    return _folders(path)


class _Files:
    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __call__(self, index: int) -> bytes:
        return Path(self.paths[index]).read_bytes()


class _Members:
    """Bytes of tar members by where they lie, so that any one is one read away."""

    def __init__(self, shards: Sequence[str], places: np.ndarray) -> None:
        self.shards, self.places = shards, places

    def __call__(self, index: int) -> bytes:
        shard, start, size = self.places[index].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(start)
            return file.read(size)


def _table(root: Path) -> Source:
    listing = root / "labels.csv"
    paths, labels = [], []
    with open(listing, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames is None or not {"file", "labels"} <= set(rows.fieldnames):
            raise ZooError(f"{listing} should have the columns file and labels.")
        for row in rows:
            where = f"{listing}, line {rows.line_num}"
            paths.append(str(root / str(row["file"])))
            labels.append([_number(label, where) for label in (row["labels"] or "").split()])
    if not paths:
        raise ZooError(f"{listing} lists no pictures.")
    if not Path(paths[0]).is_file():
        raise ZooError(f"{listing} lists {paths[0]}, which does not exist.")
    return _Files(paths), paths, labels


def _shards(shards: Sequence[Path]) -> Source:
    names, places, labels = [], [], []
    for number, shard in enumerate(shards):
        pictures: dict[str, tuple[int, int]] = {}
        found: dict[str, list[int]] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    name, _, suffix = member.name.partition(".")
                    where = f"{shard}, {member.name}"
                    if suffix == "png":
                        pictures[name] = (member.offset_data, member.size)
                    elif suffix in ("cls", "json"):
                        content = tar.extractfile(member)
                        assert content is not None
                        found[name] = _labels(content.read(), suffix, where)
        except tarfile.TarError as error:
            raise ZooError(f"{shard} is no tar file, or a damaged one ({error}).") from error
        if pictures.keys() != found.keys():
            lone = sorted(pictures.keys() ^ found.keys())[0]
            raise ZooError(f"{shard} holds {lone} without its {'labels' if lone in pictures else 'picture'}.")
        for name, (start, size) in pictures.items():
            names.append(f"{shard}, {name}.png")
            places.append((number, start, size))
            labels.append(found[name])
    if not names:
        raise ZooError(f"{shards[0].parent} has tar files but no .png in them.")
    return _Members([str(shard) for shard in shards], np.array(places, np.int64)), names, labels


def _labels(content: bytes, suffix: str, where: str) -> list[int]:
    if suffix == "cls":
        return [_number(content.decode("utf-8", "replace").strip(), where)]
    try:
        return [_number(str(label), where) for label in json.loads(content)["labels"]]
    except (ValueError, TypeError, KeyError):
        raise ZooError(f'{where} should read {{"labels": [1, 2]}}.') from None


def _folders(root: Path) -> Source:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    paths, labels = [], []
    for folder in folders:
        label = _number(folder.name, f"{root}, folder {folder.name}")
        for file in sorted(folder.glob("*.png")):
            paths.append(str(file))
            labels.append([label])
    if not paths:
        raise ZooError(f"{root} holds no rendered fractals: no labels.csv, no .tar, no class folders with .png files.")
    return _Files(paths), paths, labels


def _number(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ZooError(f"{where}: a class is a number from 0, not {text[:40]!r}.")
    return int(text)
