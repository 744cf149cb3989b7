"""SwAV's multi-crop: one decode, crops cut out as bytes; then jitter, grey, blur as drawn for each crop.

What is drawn travels with the crops, (n, 9) numbers a sample: so colour and blur come out alike whether a worker or the
device applies them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datamodules.transforms import random_crop_box
from zoo.errors import ZooError

JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GREY, BLUR, SIGMA = range(9)
"""Columns of the draws: 1 or 0 for whether, factors around 1, a shift in turns, the number of a permutation, pixels."""
ORDERS = list(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))
TAPS = 23
_LUMA = (0.299, 0.587, 0.114)


class MultiCrop:
    """PIL RGB image to `(crops of every resolution, draws)`, uint8 (n, 3, s, s) and float32 (n, 9) each.

    Args:
        sizes, counts: side in pixels and number of the crops of each resolution, the large one first.
        scales: share of the image's area that a crop takes, (least, most) for each resolution.
        flip: probability of a horizontal flip.
        jitter: strength of the colour jitter (1 is SwAV's: 0.8 for brightness, contrast, saturation, 0.2 for hue).
        jitter_p, grey_p, blur_p: how often a crop is jittered, made grey, blurred.
        sigma: range of the blur in pixels; it is cut off at 11, as a kernel of 23 is.
        apply: draw and apply here; False leaves colour and blur to `apply_draws` on the device.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (224, 96),
        counts: Sequence[int] = (2, 6),
        scales: Sequence[Sequence[float]] = ((0.14, 1.0), (0.05, 0.14)),
        flip: float = 0.5,
        jitter: float = 1.0,
        jitter_p: float = 0.8,
        grey_p: float = 0.2,
        blur_p: float = 0.5,
        sigma: tuple[float, float] = (0.1, 2.0),
        apply: bool = True,
    ) -> None:
        if not len(sizes) == len(counts) == len(scales) or not sizes:
            raise ZooError(
                f"crop_sizes, num_crops and crop_scales have one entry a resolution, not {len(sizes)}, {len(counts)} "
                f"and {len(scales)}."
            )
        if min(counts) < 1 or min(sizes) < 8:
            raise ZooError("num_crops lie at 1 or above, crop_sizes at 8 or above.")
        if any(len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1 for scale in scales):
            raise ZooError(f"crop_scales are pairs of shares (least, most) between 0 and 1, not {list(scales)}.")
        if not 0 <= jitter <= 1.25:
            raise ZooError(f"jitter is a strength from 0 to 1.25, not {jitter}.")
        self.sizes, self.counts, self.scales = list(sizes), list(counts), [tuple(scale) for scale in scales]
        self.flip, self.jitter, self.apply = flip, jitter, apply
        self.jitter_p, self.grey_p, self.blur_p, self.sigma = jitter_p, grey_p, blur_p, sigma

    def __call__(self, image: Image.Image) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).unsqueeze(0)  # channels last in memory
        crops, draws = [], []
        for size, count, scale in zip(self.sizes, self.counts, self.scales, strict=True):
            cut = torch.empty(count, 3, size, size, dtype=torch.uint8)
            flips = torch.rand(count) < self.flip
            for index in range(count):
                left, top, right, bottom = random_crop_box(image.width, image.height, scale)
                part = pixels[..., top:bottom, left:right]
                part = F.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
                cut[index] = part.flip(-1) if flips[index] else part
            drawn = self.draw(count)
            crops.append(apply_draws(cut, drawn) if self.apply else cut)
            draws.append(drawn)
        return tuple(crops), tuple(draws)

    def draw(self, count: int) -> Tensor:
        """(count, 9): what happens to the colours and the sharpness of each crop."""
        u = torch.rand(count, 9)
        strength = 0.8 * self.jitter
        drawn = torch.empty(count, 9)
        drawn[:, JITTER] = (u[:, JITTER] < self.jitter_p).float()
        for column in (BRIGHTNESS, CONTRAST, SATURATION):
            low = max(0.0, 1 - strength)
            drawn[:, column] = low + (1 + strength - low) * u[:, column]
        drawn[:, HUE] = 0.2 * self.jitter * (2 * u[:, HUE] - 1)
        drawn[:, ORDER] = (u[:, ORDER] * len(ORDERS)).floor().clamp_max(len(ORDERS) - 1)
        drawn[:, GREY] = (u[:, GREY] < self.grey_p).float()
        drawn[:, BLUR] = (u[:, BLUR] < self.blur_p).float()
        drawn[:, SIGMA] = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * u[:, SIGMA]
        return drawn


def apply_draws(crops: Tensor, draws: Tensor) -> Tensor:
    """Jitter, grey and blur of uint8 crops (N, 3, s, s) by their draws (N, 9), on any device; uint8 again.

    On a CPU compiled loops do it where numba is installed, a few times faster; they agree within a grey level or two.
    """
    kernels = _kernels() if crops.device.type == "cpu" else None
    if kernels is not None:
        return kernels.apply_draws(crops, draws)
    return apply_draws_torch(crops, draws)


@lru_cache(maxsize=1)
def _kernels():
    try:
        from datamodules.faces import kernels
    except ImportError:
        return None
    return kernels


def apply_draws_torch(crops: Tensor, draws: Tensor) -> Tensor:
    """The same in tensor operations: crops that get the same operation at the same point are done together."""
    draws = draws.to(crops.device)
    images = crops.float() / 255
    jittered = draws[:, JITTER] > 0
    orders = torch.tensor(ORDERS, device=crops.device)[draws[:, ORDER].long()]
    for turn in range(4):
        for column, change in (
            (BRIGHTNESS, _brighter),
            (CONTRAST, _contrast),
            (SATURATION, _saturate),
            (HUE, _turn_hue),
        ):
            chosen = torch.nonzero(jittered & (orders[:, turn] == column))[:, 0]
            if len(chosen):
                amount = draws[chosen, column][:, None, None, None]
                images[chosen] = change(images[chosen], amount).clamp_(0, 1)
    grey = torch.nonzero(draws[:, GREY] > 0)[:, 0]
    images[grey] = _luma(images[grey]).expand(-1, 3, -1, -1)
    blurred = torch.nonzero(draws[:, BLUR] > 0)[:, 0]
    if len(blurred):
        images[blurred] = _blur(images[blurred], draws[blurred, SIGMA])
    return images.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, device=images.device)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)


def _brighter(images: Tensor, factor: Tensor) -> Tensor:
    return images * factor


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * factor


def _saturate(images: Tensor, factor: Tensor) -> Tensor:
    grey = _luma(images)
    return grey + (images - grey) * factor


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Hue by `turns` of the colour circle, value and chroma kept."""
    value, low = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - low
    safe = chroma.clamp_min(1e-8)
    r, g, b = images.split(1, dim=1)
    hue = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    corner = torch.tensor([5.0, 3.0, 1.0], device=images.device)[None, :, None, None]
    k = (corner + hue + 6 * turns).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_taps(sigma: Tensor) -> Tensor:
    """(N,) standard deviations in pixels to (N, 23) weights that sum to 1."""
    x = torch.arange(TAPS, device=sigma.device) - TAPS // 2
    weights = (-0.5 * (x / sigma[:, None]) ** 2).exp()
    return weights / weights.sum(dim=1, keepdim=True)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Each image by its own Gaussian of 23 taps, mirrored at the border."""
    count, channels, side, _ = images.shape
    taps = gaussian_taps(sigma).repeat_interleave(channels, dim=0)
    pad = min(TAPS // 2, side - 1)
    taps = taps[:, TAPS // 2 - pad : TAPS // 2 + pad + 1]
    planes = images.reshape(1, count * channels, side, side)
    planes = F.pad(planes, (pad, pad, pad, pad), mode="reflect")
    planes = F.conv2d(planes, taps[:, None, None, :], groups=len(taps))
    planes = F.conv2d(planes, taps[:, None, :, None], groups=len(taps))
    return planes.reshape(count, channels, side, side)
