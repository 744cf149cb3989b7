"""Patches of images as token sequences: cutting, joining, embedding without a convolution, sin-cos positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cuts (B, C, H, W) into (B, N, C * p * p): raster order; within a patch channel first, as a convolution reads."""
    batch, channels, height, width = images.shape
    rows, cols = height // patch_size, width // patch_size
    patches = images.reshape(batch, channels, rows, patch_size, cols, patch_size).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, rows * cols, channels * patch_size**2)


def unpatchify(patches: Tensor, patch_size: int, channels: int = 3) -> Tensor:
    """Inverse of `patchify` for square images: (B, N, C * p * p) to (B, C, H, W)."""
    batch, count, _ = patches.shape
    side = int(count**0.5)
    grid = patches.reshape(batch, side, side, channels, patch_size, patch_size).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(batch, channels, side * patch_size, side * patch_size)


def embed_patches(patch_embed: PatchEmbed, patches: Tensor) -> Tensor:
    """timm's patch embedding applied to any subset of patches (B, K, C * p * p): (B, K, D).

    A convolution would have to see the whole image; the same weights as a matrix see only the patches asked for.
    """
    tokens = F.linear(patches, patch_embed.proj.weight.flatten(1), patch_embed.proj.bias)
    return patch_embed.norm(tokens)


def sincos_positions(grid_side: int, dim: int) -> Tensor:
    """MAE's fixed 2-D sin-cos embedding with a zero row for the class token: (1, 1 + grid_side^2, dim), float32.

    The first half of the channels encodes the column, the second the row; in each, sines precede cosines and
    frequency k is 10000^(-2k / (dim / 2)). `dim` is a multiple of 4. (timm's own builder orders them otherwise.)
    """
    if dim % 4:
        raise ValueError(f"2-D sin-cos positions need a width that is a multiple of 4, not {dim}")
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(grid_side, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid_side, dim / 2)
    column = axis.repeat(grid_side, 1)
    row = axis.repeat_interleave(grid_side, dim=0)
    grid = torch.cat([column, row], dim=1).float()
    return torch.cat([torch.zeros(1, grid.shape[1]), grid]).unsqueeze(0)
