"""Labelled images for fine-tuning, linear probes and k-NN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch.utils.data import DataLoader, Subset

from datamodules.audit import Audit, bytes_key, most_common, read_all
from datamodules.base import ZooDataModule
from datamodules.folds import check_fold
from datamodules.images import ImageDataset, few_label_subset, open_images
from datamodules.transforms import RandomResizedCropFlip, ResizeCenterCrop
from zoo.errors import ZooError


class ImageClassificationDataModule(ZooDataModule):
    """Any labelled images as `(images, labels)` batches.

    Args:
        root: an ImageFolder tree, ImageNet with its lists, a folder of Parquet files, or "digits"
            (`datamodules.images.open_images` has the details).
        image_size: side of the square images in pixels.
        batch_size: images of one step on one device.
        train_augment: "finetune" (RandAugment and random erasing, from timm), "crop" (random resized crop and flip, the
            linear-probe protocol), or "none" (the evaluation view).
        auto_augment: timm's policy string for "finetune"; None leaves it out.
        random_erase: probability of erasing a rectangle ("finetune").
        crop_scale: share of an image's area that a random crop takes, (least, most).
        flip: probability of a horizontal flip.
        label_fraction: train on this share of the labels only: stratified, at least one image a class, drawn by `seed`;
            a smaller share lies within a larger one.
        eval_crop_pct: share of the shorter side that the centre crop of the evaluation view keeps.
        on_bad_image: "error" names an unreadable file and stops; "skip" passes over it and counts.
        val_fraction, seed: the held-out share of data that has no split of its own, and its draw.
        folds, fold: hold out part `fold` of `folds` of the training side instead (`zoo kfold`);
            None for the usual split.
        mean, std: normalisation per channel, ImageNet's unless the backbone was trained otherwise.
        num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        batch_size: int = 32,
        train_augment: Literal["finetune", "crop", "none"] = "finetune",
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        random_erase: float = 0.25,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        label_fraction: float = 1.0,
        eval_crop_pct: float = 224 / 256,
        on_bad_image: Literal["error", "skip"] = "error",
        val_fraction: float = 0.1,
        seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        num_workers: int = 8,
        pin_memory: bool | None = None,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, mean, std)
        # Not to the logger: Lightning refuses to run where a model's argument of the same name has another value.
        self.save_hyperparameters(logger=False)
        check_fold(folds, fold)
        part = None if folds is None else (folds, fold)
        self.source: dict[str, Any] = dict(
            root=root, on_bad_image=on_bad_image, val_fraction=val_fraction, seed=seed, fold=part
        )
        self.view = ResizeCenterCrop(image_size, eval_crop_pct)
        self.augment = self._augment()
        self.train_data: ImageDataset | None = None
        self.val_data: ImageDataset | None = None

    def _augment(self) -> Any:
        h = self.hparams
        if h.train_augment not in ("finetune", "crop", "none"):
            raise ZooError(f"train_augment is 'finetune', 'crop' or 'none', not {h.train_augment!r}.")
        if h.train_augment == "none":
            return self.view
        if h.train_augment == "crop":
            return RandomResizedCropFlip(h.image_size, tuple(h.crop_scale), h.flip)
        # Normalised on the worker: random erasing fills in noise of the normalised scale.
        return create_transform(
            input_size=h.image_size, is_training=True, scale=tuple(h.crop_scale), hflip=h.flip, color_jitter=None,
            auto_augment=h.auto_augment, interpolation="bicubic", re_prob=h.random_erase, re_mode="pixel", re_count=1,
            mean=self.mean, std=self.std,
        )  # fmt: skip

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is None:
            self.train_data = open_images(split="train", transform=self.augment, **self.source)
            self.val_data = open_images(split="val", transform=self.view, **self.source)

    @property
    def classes(self) -> list[str]:
        """Class names."""
        self.setup()
        assert self.train_data is not None
        return self.train_data.classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def _labelled(self, dataset: ImageDataset) -> ImageDataset | Subset:
        share = self.hparams.get("label_fraction", 1.0)
        if share == 1.0:
            return dataset
        chosen: np.ndarray = few_label_subset(dataset.labels, share, self.hparams.seed)
        return Subset(dataset, chosen.tolist())

    def train_dataloader(self) -> DataLoader:
        return self.loader(self._labelled(self.train_data), train=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.val_data, train=False)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def audit(self, read: bool = True) -> Audit:
        self.setup()
        assert self.train_data is not None
        assert self.val_data is not None
        found, data = Audit(), {"training": self.train_data, "validation": self.val_data}
        found.sides({side: len(part) for side, part in data.items()}, "pictures")
        self._count(found)
        if not read:
            return found

        def look(side: str, index: int) -> tuple[tuple[int, int], str]:
            image = data[side].image(index)
            try:
                return image.size, bytes_key(np.asarray(image))
            except OSError as error:  # a JPEG shows its end only when it is decoded
                raise data[side].unreadable(index, error) from error

        skips = self.hparams.on_bad_image == "skip"
        seen = read_all(found, {side: len(part) for side, part in data.items()}, look, "pictures", skips)
        sizes = [size for part in seen.values() for size, _ in part.values()]
        if sizes:
            found.facts["sizes"] = most_common(f"{width} x {height}" for width, height in sizes)
            small = sum(min(size) < self.hparams.image_size for size in sizes)
            if small > len(sizes) / 2:
                found.warnings.append(
                    f"{small:,} of {len(sizes):,} pictures are smaller than data.image_size {self.hparams.image_size}: "
                    "they are enlarged, which adds nothing but time."
                )
        keys = {side: {data[side].names[i]: key for i, (_, key) in part.items()} for side, part in seen.items()}
        found.leaks(keys, "pictures")
        return found

    def _count(self, found: Audit) -> None:
        """How many pictures there are of each class."""
        assert self.train_data is not None
        assert self.val_data is not None
        found.class_counts({"training": self.train_data.labels, "validation": self.val_data.labels}, self.classes)

    def raw_sample(self) -> Image.Image:
        """The first held-out image."""
        self.setup()
        assert self.val_data is not None
        return self.val_data.image(0)

    def labelled_dataloaders(self) -> tuple[DataLoader, DataLoader]:
        """Training images (the labelled share) and held-out ones, both in the evaluation view and complete."""
        self.setup()
        train = open_images(split="train", transform=self.view, **self.source)
        return self.loader(self._labelled(train), train=False), self.loader(self.val_data, train=False)
