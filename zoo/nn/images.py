"""The evaluation view of a photograph: what `preprocess` and the data modules agree on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from zoo.errors import ZooError
from zoo.pixels import to_rgb

CROP_PCT = 224 / 256
"""Share of the shorter side that the centre crop keeps, as ImageNet evaluations have it."""


def to_uint8(image: Image.Image) -> Tensor:
    """PIL RGB image to a uint8 tensor (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize_center_crop(image: Image.Image, size: int, crop_pct: float = CROP_PCT) -> Image.Image:
    """Shorter side to size / crop_pct pixels, bicubic, then the centre (size, size).

    The same pixels as torchvision's Resize and CenterCrop.
    """
    width, height = image.size
    short = int(size / crop_pct)
    new_width = short if width <= height else int(short * width / height)
    new_height = short if height <= width else int(short * height / width)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def preprocess_images(
    raw: Any,
    image_size: int,
    crop_pct: float = CROP_PCT,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    exif: bool = False,
) -> Tensor:
    """Paths or PIL images, one or a list, to a batch (B, 3, image_size, image_size), normalised (as ImageNet is).

    `exif` turns photographs upright by their EXIF note first.
    Raises `ZooError` that names a file that is missing or no image.
    """
    items: Sequence[Any] = raw if isinstance(raw, list | tuple) else [raw]
    if not items:
        raise ZooError("There are no images to preprocess: the list is empty.")
    views = torch.stack([to_uint8(resize_center_crop(_open(item, exif), image_size, crop_pct)) for item in items])
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (views.float() / 255 - shift) / scale


def _open(item: Any, exif: bool = False) -> Image.Image:
    if isinstance(item, Image.Image):
        return to_rgb(ImageOps.exif_transpose(item) if exif else item)
    if not isinstance(item, str | Path):
        raise ZooError(f"Give images as paths or PIL images, not as {type(item).__name__}.")
    try:
        with Image.open(item) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if exif else image)
    except FileNotFoundError as error:
        raise ZooError(f"There is no image {str(item)!r}.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ZooError(f"Cannot read the image {str(item)!r}: {str(error).split(':')[0]}.") from error
