"""Patches of volumes as token sequences: cutting, joining, fixed sin-cos positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def patchify_3d(volumes: Tensor, patch_size: int) -> Tensor:
    """Cuts (B, 1, H, W, D) into (B, T, p^3): last axis fastest, between the patches and within each.

    The order within a patch is also the one in which a convolution with one input channel reads it.
    """
    batch, channels, *sides = volumes.shape
    if channels != 1:
        raise ValueError(f"patchify_3d takes volumes of one channel, not {channels}")
    h, w, d = (side // patch_size for side in sides)
    p = patch_size
    patches = volumes.reshape(batch, h, p, w, p, d, p).permute(0, 1, 3, 5, 2, 4, 6)
    return patches.reshape(batch, h * w * d, p**3)


def unpatchify_3d(patches: Tensor, patch_size: int, grid: Sequence[int]) -> Tensor:
    """Inverse of `patchify_3d`: (B, T, p^3) on a grid (h, w, d) to (B, 1, h * p, w * p, d * p)."""
    batch, p = patches.shape[0], patch_size
    h, w, d = grid
    volumes = patches.reshape(batch, h, w, d, p, p, p).permute(0, 1, 4, 2, 5, 3, 6)
    return volumes.reshape(batch, 1, h * p, w * p, d * p)


def sincos_positions_3d(grid: Sequence[int], dim: int) -> Tensor:
    """Fixed 3-D sin-cos positions as MONAI lays them out: (1, h * w * d, dim), float32, last axis fastest.

    Six equal blocks of channels: sine and cosine of the *middle* axis, of the first, of the last; frequency i of a
    block is 10000^(-i / (dim / 6)). `dim` is a multiple of 6.
    """
    if dim % 6:
        raise ValueError(f"3-D sin-cos positions need a width that is a multiple of 6, not {dim}")
    frequency = 10000.0 ** -(torch.arange(dim // 6, dtype=torch.float64) / (dim // 6))
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axes[axis].reshape(-1, 1) * frequency for axis in (1, 0, 2)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float().unsqueeze(0)
