"""The paper's transfer protocol: how images are seen while a pre-trained ResNet is fine-tuned (section 4)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as tv

from datamodules.image_classification import ImageClassificationDataModule
from zoo.errors import ZooError
from zoo.nn.images import to_uint8

Protocol = Literal["fine_grained", "cifar100"]


class FractalTransferDataModule(ImageClassificationDataModule):
    """Labelled images as `(images, labels)` batches under the official fine-tuning's augmentation.

    Args:
        root: labelled images (`datamodules.images.open_images` has the details).
        protocol: "fine_grained" (birds, cars, dogs, aircraft): random resized crop, flip and colour jitter; held-out
            images are brought to a square of 8/7 of the size, whatever their shape, and cropped. "cifar100": the whole
            image with reflected rims, moved and enlarged a little; held-out images as they are.
        image_size: side of the square images in pixels.
        batch_size: images of one step on one device.
        crop_scale: share of the area that a random crop takes (0.25 at least for cars and aircraft).
        color_jitter: brightness, contrast and saturation by up to this ("fine_grained").
        label_fraction, val_fraction, seed, on_bad_image: see `ImageClassificationDataModule`.
        num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        protocol: Protocol = "fine_grained",
        image_size: int = 224,
        batch_size: int = 16,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        color_jitter: float = 0.25,
        label_fraction: float = 1.0,
        val_fraction: float = 0.1,
        seed: int = 0,
        on_bad_image: Literal["error", "skip"] = "error",
        num_workers: int = 8,
        pin_memory: bool | None = None,
    ) -> None:
        if protocol not in ("fine_grained", "cifar100"):
            raise ZooError(f"protocol is 'fine_grained' or 'cifar100', not {protocol!r}.")
        super().__init__(
            root, image_size, batch_size, "none", crop_scale=crop_scale, label_fraction=label_fraction,
            val_fraction=val_fraction, seed=seed, on_bad_image=on_bad_image, num_workers=num_workers,
            pin_memory=pin_memory, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        )  # fmt: skip
        self.save_hyperparameters(logger=False)
        size, bilinear = image_size, InterpolationMode.BILINEAR
        if protocol == "fine_grained":
            self.view: Any = _Chain(tv.Resize((round(size * 8 / 7),) * 2, bilinear), tv.CenterCrop(size))
            jitter = tv.ColorJitter(color_jitter, color_jitter, color_jitter)
            crop = tv.RandomResizedCrop(size, scale=tuple(crop_scale), interpolation=bilinear)
            self.augment = _Chain(crop, tv.RandomHorizontalFlip(), jitter)
        else:
            self.view = _Chain(tv.Resize((size, size), bilinear))
            affine = tv.RandomAffine(10, translate=(0, 1 / 8), scale=(1.0, 1.2))  # nearest, as the official code
            pad = tv.Pad(size // 8, padding_mode="reflect")
            self.augment = _Chain(
                tv.Resize((size, size), bilinear), pad, affine, tv.CenterCrop(size), tv.RandomHorizontalFlip()
            )


class _Chain:
    """Transforms of a PIL image, then bytes (3, H, W)."""

    def __init__(self, *steps: Any) -> None:
        self.steps = tv.Compose(list(steps)) if len(steps) > 1 else steps[0]

    def __call__(self, image: Any) -> Tensor:
        return to_uint8(self.steps(image))
