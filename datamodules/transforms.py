"""Image transforms that keep uint8 until the device: random resized crop straight out of the JPEG decoder."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from zoo.nn.images import CROP_PCT, resize_center_crop, to_uint8

_RATIO = (3 / 4, 4 / 3)


def random_crop_box(width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """The crop (left, top, right, bottom) that torchvision's RandomResizedCrop draws, ten tries, then the centre."""
    area = width * height
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    draws = torch.rand(10, 4).tolist()
    for share, stretch, across, down in draws:
        target = area * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = math.exp(low + (high - low) * stretch)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    aspect = width / height
    w, h = width, height
    if aspect < _RATIO[0]:
        h = round(w / _RATIO[0])
    elif aspect > _RATIO[1]:
        w = round(h * _RATIO[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class RandomResizedCropFlip:
    """MAE's pre-training augmentation, PIL RGB image to uint8 (3, size, size): random resized crop, bicubic, and flip.

    Resampling runs on bytes in torch, which is several times faster than Pillow's and within a grey level of it. A JPEG
    whose crop is at least twice the size wanted is decoded at half, quarter or eighth resolution.

    Args:
        size: output side in pixels.
        scale: share of the image's area that a crop takes, (least, most).
        flip: probability of a horizontal flip.
        fast_decode: allow the reduced decode; False gives the pixels of a full decode.
    """

    def __init__(
        self, size: int, scale: tuple[float, float] = (0.2, 1.0), flip: float = 0.5, fast_decode: bool = True
    ) -> None:
        self.size, self.scale, self.flip, self.fast_decode = size, scale, flip, fast_decode

    def __call__(self, image: Image.Image) -> Tensor:
        width, height = image.size
        box = random_crop_box(width, height, self.scale)
        if self.fast_decode and getattr(image, "format", None) == "JPEG" and hasattr(image, "draft"):
            reduction = min(box[2] - box[0], box[3] - box[1]) // self.size
            if reduction > 1:
                # draft() picks the strongest of 1/2, 1/4, 1/8 that is still at least the size asked for.
                image.draft("RGB", (width // reduction, height // reduction))
        fx, fy = image.size[0] / width, image.size[1] / height
        crop = image.crop((round(box[0] * fx), round(box[1] * fy), round(box[2] * fx), round(box[3] * fy)))
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).unsqueeze(0)  # channels last, as resampling likes it
        size = (self.size, self.size)
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)[0]
        if torch.rand(()).item() < self.flip:
            pixels = pixels.flip(-1)
        return pixels.contiguous()


class ResizeCenterCrop:
    """Evaluation view, PIL RGB image to uint8 (3, size, size): `zoo.nn.images.resize_center_crop`."""

    def __init__(self, size: int, crop_pct: float = CROP_PCT) -> None:
        self.size, self.crop_pct = size, crop_pct

    def __call__(self, image: Image.Image) -> Tensor:
        return to_uint8(resize_center_crop(image, self.size, self.crop_pct))
