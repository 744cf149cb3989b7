"""Data for DropPos: unlabelled images under MAE's augmentation. Masks are drawn by the model, on the device."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from datamodules.base import ZooDataModule
from datamodules.images import ImageDataset, open_images
from datamodules.transforms import RandomResizedCropFlip, ResizeCenterCrop


class DropPosDataModule(ZooDataModule):
    """Any images as `(images, labels)` batches; DropPos looks at the images alone, probes also at the labels.

    Args:
        root: an ImageFolder tree, ImageNet with its lists, a folder of Parquet files, or "digits"
            (`datamodules.images.open_images` has the details).
        image_size: side of the square images in pixels.
        batch_size: images of one step on one device.
        crop_scale: share of an image's area that a random crop takes, (least, most).
        flip: probability of a horizontal flip.
        eval_crop_pct: share of the shorter side that the centre crop of the evaluation view keeps.
        fast_decode: decode JPEGs at reduced resolution where the crop allows.
        on_bad_image: "error" names an unreadable file and stops; "skip" passes over it and counts.
        val_fraction, seed: the held-out share of data that has no split of its own, and its draw.
        num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        batch_size: int = 64,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        eval_crop_pct: float = 224 / 256,
        fast_decode: bool = True,
        on_bad_image: Literal["error", "skip"] = "error",
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 8,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self.save_hyperparameters()
        self.source = dict(root=root, on_bad_image=on_bad_image, val_fraction=val_fraction, seed=seed)
        self.augment = RandomResizedCropFlip(image_size, tuple(crop_scale), flip, fast_decode)
        self.view = ResizeCenterCrop(image_size, eval_crop_pct)
        self.train_data: ImageDataset | None = None
        self.val_data: ImageDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is None:
            self.train_data = open_images(split="train", transform=self.augment, **self.source)
            self.val_data = open_images(split="val", transform=self.view, **self.source)

    @property
    def classes(self) -> list[str]:
        """Class names, known after `setup`."""
        assert self.train_data is not None, "call setup() first"
        return self.train_data.classes

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.train_data, train=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.val_data, train=False)

    def raw_sample(self) -> Image.Image:
        """The first held-out image."""
        self.setup()
        assert self.val_data is not None
        return self.val_data.image(0)

    def labelled_dataloaders(self) -> tuple[DataLoader, DataLoader]:
        """Training and held-out images, both in the evaluation view and complete: what feature probes need."""
        self.setup()
        train = open_images(split="train", transform=self.view, **self.source)
        return self.loader(train, train=False), self.loader(self.val_data, train=False)
