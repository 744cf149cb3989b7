"""Gland segmentation (GlaS, Sirinukunwattana et al. 2017): pictures with an annotation of the same stem beside each.

    train_1.bmp  train_1_anno.bmp  ...  testA_1.bmp  testA_1_anno.bmp  testB_1.bmp  testB_1_anno.bmp

Own data fits as well, of one kind of thing: `train_*` and `test*` in any image format, with a mask `*_anno` that is 0
on the background. `datamodules.image_segmentation` takes several classes, and folders of pictures and masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.audit import Audit, both_sides, file_key, most_common, read_all
from datamodules.base import ZooDataModule
from datamodules.folds import check_fold, held_out_by_fold
from datamodules.images import IMAGE_SUFFIXES
from datamodules.masks import FillUp, MaskPairs, RandomSquare, open_picture
from zoo.errors import ZooError

_MARK = "_anno"


class GlaSDataModule(ZooDataModule):
    """Pictures and masks as `(images uint8 (B, 3, H, W), masks uint8 (B, 1, H, W))`, 1 where there is any gland.

    Training: a random square of 80 to 85 % of the shorter side, resized to `image_size`, turned or mirrored in one of
    seven ways with probability one half (the official augmentation). Held out: whole pictures, filled up with black to
    the largest of a batch and to `image_size` at least; the task looks at their corners.

    Args:
        root: folder with the files.
        image_size: side of the training squares in pixels.
        batch_size: pictures of one step on one device.
        augment: False takes the centre square without turns.
        crop_range: (least, most) side of the square as a share of the picture's shorter side.
        folds, fold: hold out part `fold` of `folds` of the training side instead (`zoo kfold`);
            None for the usual split.
        num_workers, pin_memory, mean, std: see `ZooDataModule`; the official runs take pixels from 0 to 1.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 448,
        batch_size: int = 8,
        augment: bool = True,
        crop_range: tuple[float, float] = (0.8, 0.85),
        folds: int | None = None,
        fold: int = 0,
        num_workers: int = 4,
        pin_memory: bool | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, mean, std)
        self.save_hyperparameters(logger=False)
        check_fold(folds, fold)
        if image_size < 32 or image_size % 32:
            raise ZooError(f"A U-Net halves the side five times: image_size is a multiple of 32, not {image_size}.")
        if not 0 < crop_range[0] <= crop_range[1] <= 1:
            raise ZooError(f"crop_range is (least, most) up to 1, not {tuple(crop_range)}.")
        self.train_data: MaskPairs | None = None
        self.val_data: MaskPairs | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is None:
            h = self.hparams
            crop = RandomSquare(h.image_size, tuple(h.crop_range), h.augment)
            train = find_pairs(h.root, "train")
            if h.folds is None:
                val = find_pairs(h.root, "test")
            else:
                out = held_out_by_fold([0] * len(train), h.folds, h.fold)
                val = [pair for pair, held in zip(train, out, strict=True) if held]
                train = [pair for pair, held in zip(train, out, strict=True) if not held]
            self.train_data, self.val_data = MaskPairs(train, _read_glands, crop), MaskPairs(val, _read_glands, None)

    def train_dataloader(self) -> DataLoader:
        assert self.train_data is not None
        return self.loader(self.train_data, train=True)

    def val_dataloader(self) -> DataLoader:
        assert self.val_data is not None
        return self.loader(self.val_data, train=False, collate_fn=FillUp(self.hparams.image_size))

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def audit(self, read: bool = True) -> Audit:
        found, data, counts = both_sides(self, "pictures")
        if not read:
            return found

        def look(side: str, index: int) -> tuple[tuple[int, ...], float, str]:
            picture, mask = data[side].read(index)
            return picture.size, float(np.asarray(mask).mean()), file_key(data[side].pairs[index][0])

        seen = read_all(found, counts, look, "pictures or masks")
        rows = [row for part in seen.values() for row in part.values()]
        if rows:
            found.facts["sizes"] = most_common(f"{size[0]} x {size[1]}" for size, _, _ in rows)
            found.spread("share of a picture that is marked", [round(share, 3) for _, share, _ in rows])
            for share, words in ((0.0, "mark nothing"), (1.0, "mark everything")):
                if count := sum(row[1] == share for row in rows):
                    found.warnings.append(f"{count} of {len(rows)} masks {words}.")
        found.leaks(
            {side: {str(data[side].pairs[i][0]): row[2] for i, row in part.items()} for side, part in seen.items()},
            "pictures",
        )
        return found

    def raw_sample(self) -> Image.Image:
        """The first held-out picture."""
        self.setup()
        assert self.val_data is not None
        return open_picture(self.val_data.pairs[0][0]).convert("RGB")


def find_pairs(root: str | Path, prefix: str) -> list[tuple[Path, Path]]:
    """(picture, annotation) of every file of a split, paired by stem and in the order of their names.

    The official reader sorts pictures and annotations apart, by number alone, so that testA_1 and testB_1 may swap.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise ZooError(f"There is no data folder {str(path)!r}: give one with --data.root.")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    masks = {file.stem.removesuffix(_MARK): file for file in files if file.stem.endswith(_MARK)}
    pictures = [file for file in files if not file.stem.endswith(_MARK) and file.name.startswith(prefix)]
    if not pictures:
        raise ZooError(f"{path} has no pictures {prefix}*: it should hold train_1.bmp, train_1_anno.bmp and so on.")
    for picture in pictures:
        if picture.stem not in masks:
            raise ZooError(f"{picture} has no annotation {picture.stem}{_MARK} beside it.")
    return [(picture, masks[picture.stem]) for picture in pictures]


def _read_glands(path: Path) -> np.ndarray:
    """1 where there is any gland: they are numbered, what matters is whether there is one."""
    mask = open_picture(path)
    return (np.asarray(mask.convert("L") if mask.mode == "RGB" else mask) > 0).astype(np.uint8)
