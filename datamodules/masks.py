"""Pictures with a mask each: reading both, squares that are cut alike, whole pictures filled up to one size."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from zoo.errors import ZooError

Pair = tuple[Path, Path]
TURNS = (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE,
)  # fmt: skip


class MaskPairs(Dataset):
    """Samples `(picture uint8 (3, H, W), mask uint8 (1, H, W))`.

    Args:
        pairs: (picture, mask) files. read_mask: a mask file to its labels, uint8 (H, W).
        transform: of both PIL images together; None leaves them whole.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        read_mask: Callable[[Path], np.ndarray],
        transform: Callable[..., Sequence[Image.Image]] | None,
    ) -> None:
        self.pairs, self.read_mask, self.transform = list(pairs), read_mask, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Picture (RGB) and labels. Raises `ZooError` for files that cannot be read or do not fit."""
        picture = open_picture(self.pairs[index][0]).convert("RGB")
        mask = Image.fromarray(self.read_mask(self.pairs[index][1]))
        if picture.size != mask.size:
            raise ZooError(f"{self.pairs[index][1]} has {mask.size} pixels, its picture {picture.size}.")
        return picture, mask

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, mask = self.read(index)
        if self.transform is not None:
            picture, mask = self.transform(picture, mask)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), torch.from_numpy(np.array(mask))[None]


class RandomSquare:
    """A square of the picture and the same of its mask; draws from Python's global generator, which runs seed.

    Args:
        size: of the result in pixels. share: (least, most) side as a share of the picture's shorter side.
        augment: False takes the centre square without turns. turns: the ways, one of which half of the squares go.
    """

    def __init__(
        self, size: int, share: tuple[float, float], augment: bool, turns: Sequence[Image.Transpose] = TURNS
    ) -> None:
        self.size, self.share, self.augment, self.turns = size, share, augment, turns

    def __call__(self, *images: Image.Image) -> list[Image.Image]:
        width, height = images[0].size
        if self.augment:
            side = max(1, int(random.uniform(*self.share) * min(width, height)))
            left, top = random.randint(0, width - side), random.randint(0, height - side)
        else:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        # A mask between two values would be half a gland.
        ways = (Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
        out = [image.resize((self.size,) * 2, way, box) for image, way in zip(images, ways, strict=True)]
        if self.augment and random.random() > 0.5 and self.turns:
            turn = random.choice(self.turns)
            out = [image.transpose(turn) for image in out]
        return out


class ShortSide:
    """Picture and mask with their shorter side at `size` pixels."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, *images: Image.Image) -> list[Image.Image]:
        factor = self.size / min(images[0].size)
        shape = tuple(max(1, round(side * factor)) for side in images[0].size)
        ways = (Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
        return [image.resize(shape, way) for image, way in zip(images, ways, strict=True)]  # type: ignore[arg-type]


class FillUp:
    """A batch of the size of its largest picture and of `least` pixels at least, the rest black, its mask `label`."""

    def __init__(self, least: int, label: int = 0) -> None:
        self.least, self.label = least, label

    def __call__(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        height, width = (max(self.least, *(image.shape[axis] for image, _ in samples)) for axis in (1, 2))
        filled = [
            [F.pad(part, (0, width - part.shape[2], 0, height - part.shape[1]), value=value) for part in parts]
            for value, parts in zip((0, self.label), zip(*samples, strict=True), strict=True)
        ]
        return torch.stack(filled[0]), torch.stack(filled[1])


def open_picture(path: Path) -> Image.Image:
    """A picture file, decoded. Raises `ZooError` that names it."""
    try:
        image = Image.open(path)
        image.load()
        return image
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ZooError(f"Cannot read the image {path} ({str(error).split(':')[0]}).") from error
