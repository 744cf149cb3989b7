"""Pictures with label masks: `images/` and `masks/`, classes by number or by colour.

classes.csv  images/a.jpg  masks/a.png        or train/images, train/masks, val/images, val/masks
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from datamodules.audit import Audit, both_sides, file_key, most_common, read_all
from datamodules.base import ZooDataModule
from datamodules.folds import check_fold, held_out_by_fold
from datamodules.images import IMAGE_SUFFIXES
from datamodules.mask_labels import MaskReader, find_classes, looks_marked
from datamodules.masks import TURNS, FillUp, MaskPairs, Pair, RandomSquare, ShortSide, open_picture
from zoo.errors import ZooError
from zoo.nn.segmentation import IGNORE

_TURNS = {"none": (), "flip": (Image.Transpose.FLIP_LEFT_RIGHT,), "turns": TURNS}
_HELD_OUT = ("val", "validation", "test")


class ImageSegmentationDataModule(ZooDataModule):
    """Batches `(images uint8 (B, 3, H, W), masks uint8 (B, 1, H, W))`; 255 where a pixel does not count.

    Training: a random square, resized to `image_size`. Held out: whole pictures with their shorter side at
    `image_size`, filled up to the largest of a batch; scores are counted at that size.

    Args:
        root: folder with `images/` and `masks/` (the same names, masks as PNG, BMP, TIFF or GIF), or with `train/` and
            `val/` (or `test/`) above them. `classes.csv` or `classes.txt` in it names the classes
            (`datamodules.mask_labels.find_classes`); without, the masks' numbers are.
        image_size: side of the training squares in pixels.
        batch_size: pictures of one step on one device.
        ignore_index: label of pixels that do not count; None if there is none.
        augment: "flip" mirrors half of the squares, "turns" also turns them (pictures without an up: from above, under
            a microscope), "none" takes the centre square.
        crop_range: (least, most) side of a square as a share of the picture's shorter side.
        val_fraction, seed: the held-out share of data that has no split of its own, and its draw.
        folds, fold: hold out part `fold` of `folds` of the training side instead (`zoo kfold`);
            None for the usual split.
        group_pattern: regular expression whose first group, found in a picture's name, says who or what it is of (such
            as "^(P[0-9]+)_"): pictures of one stay on one side. None takes every picture for itself.
        num_workers, pin_memory, mean, std: see `ZooDataModule`; ImageNet's unless the backbone was trained otherwise.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        batch_size: int = 8,
        ignore_index: int | None = 255,
        augment: Literal["flip", "turns", "none"] = "flip",
        crop_range: tuple[float, float] = (0.5, 1.0),
        val_fraction: float = 0.2,
        seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        group_pattern: str | None = None,
        num_workers: int = 4,
        pin_memory: bool | None = None,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, mean, std)
        self.save_hyperparameters(logger=False)
        check_fold(folds, fold)
        if image_size < 8:
            raise ZooError(f"data.image_size is 8 pixels or more, not {image_size}.")
        if augment not in _TURNS:
            raise ZooError(f"data.augment is {', '.join(_TURNS)}, not {augment!r}.")
        if not 0 < crop_range[0] <= crop_range[1] <= 1:
            raise ZooError(f"crop_range is (least, most) up to 1, not {tuple(crop_range)}.")
        if not 0 < val_fraction < 1:
            raise ZooError(f"val_fraction is a share between 0 and 1, not {val_fraction}.")
        self.train_data: MaskPairs | None = None
        self.val_data: MaskPairs | None = None
        self.classes: list[str] = []

    @property
    def num_classes(self) -> int:
        self.setup()
        return len(self.classes)

    @property
    def short_side(self) -> int:
        """Pixels that the shorter side of a held-out picture is brought to."""
        return self.hparams.image_size

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is not None:
            return
        h = self.hparams
        train, val = self._sides()
        names, colours = find_classes(Path(h.root).expanduser())
        masks = [mask for _, mask in [*train, *val]]
        reader = MaskReader(names, colours, h.ignore_index)
        if colours is None and (names is None or len(names) == 2):
            reader.marked = looks_marked(masks)
        if names is None:
            used = np.flatnonzero(_count(reader, masks).sum(0)[:IGNORE])
            if len(used) == 0:
                raise ZooError(f"The masks in {h.root} hold no label at all.")
            names = [str(label) for label in range(max(2, int(used.max()) + 1))]
            reader.classes = names
        self.classes = list(names)
        crop = RandomSquare(h.image_size, tuple(h.crop_range), h.augment != "none", _TURNS[h.augment])
        self.train_data = MaskPairs(train, reader, crop)
        self.val_data = MaskPairs(val, reader, ShortSide(h.image_size))

    def _sides(self) -> tuple[list[Pair], list[Pair]]:
        """Pairs to train on and held-out ones."""
        h = self.hparams
        root = Path(h.root).expanduser()
        if not root.is_dir():
            raise ZooError(f"There is no data folder {str(root)!r}: give one with --data.root.")
        apart = (root / "train").is_dir()
        train = find_mask_pairs(root / "train" if apart else root)
        groups = _groups([path for path, _ in train], h.group_pattern)
        if h.folds is not None:
            out = held_out_by_fold([0] * len(train), h.folds, h.fold, seed=h.seed, groups=groups)
        elif apart:
            folder = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
            if folder is None:
                raise ZooError(f"{root} has a folder train but none named {' or '.join(_HELD_OUT)}.")
            return train, find_mask_pairs(folder)
        else:
            if len(train) < 2:
                raise ZooError(f"{root} has one picture only: one to train on and one to hold out are the least.")
            names = sorted(set(groups))
            if len(names) < 2:
                raise ZooError(
                    f"data.group_pattern puts all pictures into one group, {names[0]}: none can be held out."
                )
            count = min(max(1, round(len(names) * h.val_fraction)), len(names) - 1)
            chosen = {names[k] for k in np.random.default_rng(h.seed).permutation(len(names))[:count]}
            out = np.array([group in chosen for group in groups])
        return (
            [pair for pair, held in zip(train, out, strict=True) if not held],
            [pair for pair, held in zip(train, out, strict=True) if held],
        )

    def train_dataloader(self) -> DataLoader:
        assert self.train_data is not None
        return self.loader(self.train_data, train=True)

    def val_dataloader(self) -> DataLoader:
        assert self.val_data is not None
        return self.loader(self.val_data, train=False, collate_fn=FillUp(self.hparams.image_size, IGNORE))

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def class_counts(self) -> list[int] | None:
        """Pixels of each class in the training masks; all of them are read for it."""
        if self.train_data is None:
            return None
        counts = _count(self.train_data.read_mask, [mask for _, mask in self.train_data.pairs])  # type: ignore[arg-type]
        return counts.sum(0)[: len(self.classes)].tolist()

    def audit(self, read: bool = True) -> Audit:
        found, data, counts = both_sides(self, "pictures")
        found.facts["classes"] = f"{len(self.classes)}: {', '.join(self.classes[:12])}" + (
            " and more" if len(self.classes) > 12 else ""
        )
        if not read:
            return found

        def look(side: str, index: int) -> tuple[tuple[int, ...], np.ndarray, str]:
            picture, mask = data[side].read(index)
            return (
                picture.size,
                np.bincount(np.asarray(mask).ravel(), minlength=256),
                file_key(data[side].pairs[index][0]),
            )

        seen = read_all(found, counts, look, "pictures or masks")
        rows = [row for part in seen.values() for row in part.values()]
        if rows:
            found.facts["sizes"] = most_common(f"{size[0]} x {size[1]}" for size, _, _ in rows)
            self._shares(
                found, {side: np.stack([row[1] for row in part.values()]) for side, part in seen.items() if part}
            )
        names = {side: {str(data[side].pairs[i][0]): row[2] for i, row in part.items()} for side, part in seen.items()}
        found.leaks(names, "pictures")
        return found

    def _shares(self, found: Audit, pixels: dict[str, np.ndarray]) -> None:
        """The classes' shares of the pixels, and in how many pictures each is. `pixels` (n, 256) of each side."""
        classes = len(self.classes)
        table: list[list[Any]] = []
        for k, name in enumerate(self.classes):
            row: list[Any] = [name]
            for part in pixels.values():
                row += [f"{part[:, k].sum() / max(1, part[:, :classes].sum()):.2%}", int((part[:, k] > 0).sum())]
            table.append(row)
        header = ["class", *(f"{what}, {side}" for side in pixels for what in ("pixels", "pictures"))]
        found.tables.append((f"{classes} classes, share of the pixels and pictures that have them", header, table))
        ignored = sum(part[:, IGNORE].sum() for part in pixels.values()) / sum(part.sum() for part in pixels.values())
        if ignored:
            found.facts["pixels that do not count"] = f"{ignored:.1%}"
        train, val = pixels.get("training"), pixels.get("validation")
        if train is None or val is None:
            return
        for k, name in enumerate(self.classes):
            there, held = int((train[:, k] > 0).sum()), int((val[:, k] > 0).sum())
            if not there and held:
                found.problems.append(f"No training mask has the class {name}, but {held} held-out ones.")
            elif not there:
                found.warnings.append(f"No mask at all has the class {name}.")
            elif not held:
                found.warnings.append(f"No held-out mask has the class {name}: how well it is found stays unknown.")
        shares = train[:, :classes].sum(0) / max(1, train[:, :classes].sum())
        rare = [self.classes[k] for k in np.flatnonzero((shares > 0) & (shares < 0.005))]
        if rare:
            found.warnings.append(
                f"Less than half a per cent of the pixels are {', '.join(rare[:5])}: look at the Dice of each class, "
                "and think of model.class_weights: balanced."
            )
        if not train[:, 1:classes].sum():
            found.problems.append("The training masks hold one class only: there is nothing to tell apart.")

    def raw_sample(self) -> Image.Image:
        """The first held-out picture."""
        self.setup()
        assert self.val_data is not None
        return open_picture(self.val_data.pairs[0][0]).convert("RGB")


def find_mask_pairs(folder: Path) -> list[Pair]:
    """(picture, mask) of `folder`/images and `folder`/masks, at any depth, paired by path and stem, sorted.

    Raises `ZooError` for a folder that is missing or empty, and for a picture without its mask.
    """
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            raise ZooError(
                f"{folder} has no folder {name}: pictures lie in images/, masks of the same names in masks/."
            )

    def files(name: str) -> dict[Path, Path]:
        every = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        return {f.relative_to(folder / name).with_suffix(""): f for f in every}

    pictures, masks = files("images"), files("masks")
    if not pictures:
        raise ZooError(f"There are no pictures in {folder / 'images'} (looked for {', '.join(IMAGE_SUFFIXES)}).")
    without = [path for stem, path in pictures.items() if stem not in masks]
    if without:
        raise ZooError(
            f"{len(without)} of {len(pictures)} pictures have no mask in {folder / 'masks'}, the first "
            f"{without[0].name}: a mask has its picture's name, such as a.jpg and a.png."
        )
    return [(path, masks[stem]) for stem, path in pictures.items()]


def _groups(pictures: Sequence[Path], pattern: str | None) -> list[str]:
    """What each picture is of. Raises `ZooError` for a name without it."""
    if pattern is None:
        return [str(path) for path in pictures]
    try:
        found = [re.search(pattern, path.stem) for path in pictures]
        groups = [match.group(1) if match else None for match in found]
    except (re.error, IndexError) as error:
        raise ZooError(f"data.group_pattern {pattern!r} is no expression with a group in brackets: {error}.") from error
    without = next((path.name for path, group in zip(pictures, groups, strict=True) if group is None), None)
    if without is not None:
        raise ZooError(f"data.group_pattern {pattern!r} is not found in {without}.")
    return [str(group) for group in groups]


def _count(reader: MaskReader, masks: Sequence[Path]) -> np.ndarray:
    """(n, 256) pixels of each label in each mask."""
    with ThreadPoolExecutor(8) as pool:
        return np.stack(list(pool.map(lambda path: np.bincount(reader(path).ravel(), minlength=256), masks)))
