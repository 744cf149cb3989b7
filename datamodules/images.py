"""Labelled images from where users have them: an ImageFolder tree, Parquet as Hugging Face stores images, or digits.

`open_images` decides by looking, and says in one line what is wrong with what it finds.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from datamodules.folds import held_out_by_fold
from zoo.errors import ZooError
from zoo.pixels import to_rgb

Split = Literal["train", "val"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "test")}


class ImageDataset(Dataset):
    """Images of one split: item i is `(transform(PIL RGB image), label)`.

    Args:
        read: gives image i, in any PIL mode; raises `OSError` for a file that cannot be read.
        names: what to call each image in an error (usually its path).
        labels: class index of each image.
        classes: class names.
        transform: applied to the RGB image; None gives the PIL image itself.
        on_bad_image: "error" stops with a message that names the image; "skip" takes the next one instead, warns once
            for each, and counts them in `num_skipped`.
    """

    def __init__(
        self,
        read: Callable[[int], Image.Image],
        names: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        transform: Callable[[Image.Image], Any] | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        if on_bad_image not in ("error", "skip"):
            raise ZooError(f"on_bad_image is 'error' or 'skip', not {on_bad_image!r}.")
        self.read, self.names, self.labels, self.classes = read, names, list(labels), list(classes)
        self.transform, self.on_bad_image = transform, on_bad_image
        self._skipped = torch.zeros((), dtype=torch.long).share_memory_()  # worker processes add to it

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_skipped(self) -> int:
        """How often an unreadable image was passed over, all workers together."""
        return int(self._skipped)

    def image(self, index: int) -> Image.Image:
        """Image `index` in RGB. Raises `ZooError` that names a file that is missing, truncated or no image."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # corrupt EXIF and palette transparency say nothing about the pixels
                return to_rgb(self.read(index))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise self.unreadable(index, error) from error

    def unreadable(self, index: int, error: Exception) -> ZooError:
        """What to say of image `index`, which cannot be read because of `error`."""
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).split(":")[0]
        return ZooError(
            f"Cannot read the image {self.names[index]} ({reason}). Repair or remove it, or pass over such files "
            "with --data.on_bad_image skip."
        )

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} images, none at {index}")  # also what ends a for loop over them
        for attempt in range(len(self)):
            at = (index + attempt) % len(self)
            try:
                image = self.image(at)
                # Inside the try: a JPEG is decoded only here, so this is where a truncated one shows.
                item = image if self.transform is None else self.transform(image)
            except (ZooError, OSError) as caught:
                error = caught if isinstance(caught, ZooError) else self.unreadable(at, caught)
                if self.on_bad_image == "error":
                    raise error from caught
                self._skipped += 1
                warnings.warn(f"skipped: {error}", stacklevel=1)
                continue
            return item, self.labels[at]
        raise ZooError("None of the images can be read.")


def open_images(
    root: str | Path,
    split: Split,
    *,
    transform: Callable[[Image.Image], Any] | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    val_fraction: float = 0.1,
    seed: int = 0,
    fold: tuple[int, int] | None = None,
) -> ImageDataset:
    """Opens the images of a split.

    Args:
        root: one of
            - a folder with `train/` and `val/` (or `validation/`, `test/`), each with one subfolder a class;
            - the same with the official ImageNet lists `train.txt` and `val.txt`, `relative/path label` a line;
            - a folder with one subfolder a class: a stratified share `val_fraction` is held out, by `seed`;
            - a folder with `train.parquet` and `test.parquet` (or `val`, `validation`), columns `image` and `label`;
            - the word `digits`: scikit-learn's handwritten digits, 8x8 pixels, split like a folder without splits.
        split: "train" or "val".
        transform, on_bad_image: see `ImageDataset`.
        fold: (folds, fold): of the training images that part is held out, whatever split there is.

    Raises:
        ZooError: nothing there, no class subfolders, no images, or lists and tables that do not fit.
    """
    if split not in _SPLIT_NAMES:
        raise ZooError(f"split is 'train' or 'val', not {split!r}.")
    if str(root) == "digits":
        read, names, labels, classes = _digits()
        return _held_out((read, names, labels, classes), split, val_fraction, seed, transform, on_bad_image, fold)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise ZooError(f"There is no data folder {str(path)!r}: give one with --data.root.")
    if fold is not None:
        return _held_out(_training_side(path), split, val_fraction, seed, transform, on_bad_image, fold)
    if any(path.glob("*.parquet")):
        return ImageDataset(*_parquet(path, split), transform, on_bad_image)
    if (path / f"{split}.txt").is_file():
        return ImageDataset(*_listed(path, split), transform, on_bad_image)
    if (path / "train").is_dir():
        folder = next((path / name for name in _SPLIT_NAMES[split] if (path / name).is_dir()), None)
        if folder is None:
            raise ZooError(f"{path} has a folder train but none named {' or '.join(_SPLIT_NAMES[split])}.")
        source = _class_folders(folder)
        train_classes = _subfolders(path / "train")
        if source[3] != train_classes and not set(source[3]) <= set(train_classes):
            extra = sorted(set(source[3]) - set(train_classes))[:3]
            raise ZooError(f"{folder} has classes that {path / 'train'} lacks: {', '.join(extra)}.")
        remap = [train_classes.index(name) for name in source[3]]
        labels = [remap[label] for label in source[2]]
        return ImageDataset(source[0], source[1], labels, train_classes, transform, on_bad_image)
    return _held_out(_class_folders(path), split, val_fraction, seed, transform, on_bad_image)


def _training_side(path: Path) -> _Source:
    """The training images of any layout; all there are where it has no split."""
    if any(path.glob("*.parquet")):
        return _parquet(path, "train")
    if (path / "train.txt").is_file():
        return _listed(path, "train")
    return _class_folders(path / "train" if (path / "train").is_dir() else path)


def few_label_subset(labels: Sequence[int], fraction: float, seed: int = 0) -> np.ndarray:
    """Indices of a stratified share of the labels, at least one a class; a smaller share lies within a larger one."""
    if not 0 < fraction <= 1:
        raise ZooError(f"A share of labels lies above 0 and at most at 1, not {fraction}.")
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(len(members) * fraction))])
    return np.sort(np.concatenate(chosen))


_Source = tuple[Callable[[int], Image.Image], Sequence[str], list[int], list[str]]


class _FileReader:
    """Opens image files by index; a class, so that worker processes can receive it."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __call__(self, index: int) -> Image.Image:
        with open(self.paths[index], "rb") as file:
            image = Image.open(io.BytesIO(file.read()))
        # Leave JPEGs undecoded: a transform may ask for a cheaper decode first (datamodules.transforms).
        if image.format != "JPEG" or image.mode != "RGB":
            image.load()
        return image


class _ArrowReader:
    """Decodes images from a column of encoded bytes."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __call__(self, index: int) -> Image.Image:
        data = self.column[index].as_py()
        if not data:
            raise OSError("the table holds no bytes for it")
        image = Image.open(io.BytesIO(data))
        image.load()
        return image


class _ArrayReader:
    def __init__(self, arrays: np.ndarray) -> None:
        self.arrays = arrays

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.arrays[index])


class _Subset:
    def __init__(self, read: Callable[[int], Image.Image], indices: np.ndarray) -> None:
        self.read, self.indices = read, indices

    def __call__(self, index: int) -> Image.Image:
        return self.read(int(self.indices[index]))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(folder: Path) -> _Source:
    classes = _subfolders(folder)
    if not classes:
        loose = sum(1 for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
        found = f"{loose} images directly in it" if loose else "nothing in it"
        raise ZooError(
            f"{folder} has no class subfolders ({found}). Put images into one subfolder a class, as in "
            f"{folder.name}/cat/1.jpg; without classes, one subfolder for all will do."
        )
    paths, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted((folder / name).rglob("*")):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                paths.append(str(file))
                labels.append(label)
    if not paths:
        raise ZooError(f"No images under {folder} (looked for {', '.join(IMAGE_SUFFIXES)}).")
    empty = [name for label, name in enumerate(classes) if label not in set(labels)]
    if empty:
        warnings.warn(f"{folder}: no images of class {', '.join(empty[:5])}", stacklevel=2)
    return _FileReader(paths), paths, labels, classes


def _listed(root: Path, split: Split) -> _Source:
    """Official ImageNet lists: `relative/path label`, parsed from the right, since names may hold blanks."""
    listing = root / f"{split}.txt"
    paths, labels = [], []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdigit():
            raise ZooError(f"{listing}, line {number}: expected 'relative/path label', found {line.strip()[:80]!r}.")
        path = root / split / name
        paths.append(str(path))
        labels.append(int(label))
    if not paths:
        raise ZooError(f"{listing} is empty.")
    if not Path(paths[0]).is_file():
        raise ZooError(f"{listing}, line 1: there is no file {paths[0]}.")
    classes = [str(label) for label in range(max(labels) + 1)]
    return _FileReader(paths), paths, labels, classes


def _parquet(root: Path, split: Split) -> _Source:
    import pyarrow.parquet as pq

    names = _SPLIT_NAMES[split]
    path = next((root / f"{name}.parquet" for name in names if (root / f"{name}.parquet").is_file()), None)
    if path is None:
        raise ZooError(f"{root} has Parquet files but none named {' or '.join(f'{name}.parquet' for name in names)}.")
    table = pq.read_table(path)
    for column in ("image", "label"):
        if column not in table.column_names:
            raise ZooError(f"{path} has no column {column!r}; it has {', '.join(table.column_names)}.")
    image = table.column("image").combine_chunks()
    encoded = image.field("bytes") if hasattr(image, "field") and image.type.num_fields else image
    labels = [int(label) for label in table.column("label").to_pylist()]
    classes = [str(label) for label in range(max(labels) + 1)]
    return _ArrowReader(encoded), _RowNames(path, len(labels)), labels, classes


class _RowNames(Sequence[str]):
    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        return f"{self.path}, row {index}"


def _digits() -> _Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    arrays = np.round(digits.images * (255 / 16)).astype(np.uint8)
    names = [f"digit {index}" for index in range(len(arrays))]
    return _ArrayReader(arrays), names, digits.target.tolist(), [str(name) for name in digits.target_names]


def _held_out(
    source: _Source,
    split: Split,
    val_fraction: float,
    seed: int,
    transform: Any,
    on_bad_image: Any,
    fold: tuple[int, int] | None = None,
) -> ImageDataset:
    """One side of a stratified split; every class with two images or more is on both sides."""
    read, names, labels, classes = source
    if not 0 < val_fraction < 1:
        raise ZooError(f"val_fraction is a share between 0 and 1, not {val_fraction}.")
    all_labels = np.asarray(labels)
    if fold is not None:
        held_out = held_out_by_fold(labels, *fold, seed=seed)
    else:
        generator = np.random.default_rng(seed)
        held_out = np.zeros(len(all_labels), dtype=bool)
        for label in np.unique(all_labels):
            members = generator.permutation(np.flatnonzero(all_labels == label))
            count = min(max(1, round(len(members) * val_fraction)), len(members) - 1)
            held_out[members[:count]] = True
    indices = np.flatnonzero(held_out if split == "val" else ~held_out)
    if not len(indices):
        raise ZooError("There are too few images to hold any out for validation.")
    chosen_names = [names[index] for index in indices]
    return ImageDataset(
        _Subset(read, indices), chosen_names, all_labels[indices].tolist(), classes, transform, on_bad_image
    )
