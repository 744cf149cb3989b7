"""Which patches the encoder sees, and which of those it sees without their position (DropPos, section 3.1).

Shape letters: B images, N patches of an image, V visible patches, D embedding width.
Visible patches are kept in *noise order*, not raster order, everywhere in this room.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def num_kept(count: int, mask_ratio: float) -> int:
    """How many of `count` tokens survive a ratio; truncates like the official code (49 * .25 keeps 12)."""
    return int(count * (1 - mask_ratio))


@dataclass(frozen=True)
class Masks:
    """The random draws of one step.

    Attributes:
        patch_order: (B, N) raster indices of all patches, the visible ones first.
        visible: (B, V) raster indices of the visible patches; also their position labels.
        position_order: (B, V) indices into the visible patches: first those that keep their position.
        position_dropped: (B, V) True where a visible patch lost its position.
        num_positioned: how many visible patches of an image keep their position.
        shuffle: (B, V) permutation of the visible tokens, or None.
    """

    patch_order: Tensor
    visible: Tensor
    position_order: Tensor
    position_dropped: Tensor
    num_positioned: int
    shuffle: Tensor | None = None

    @property
    def restore(self) -> Tensor:
        """(B, N): for each raster position, where its patch stands in `patch_order`."""
        return self.patch_order.argsort(dim=1)

    @property
    def patch_masked(self) -> Tensor:
        """(B, N) in raster order, True where a patch is hidden from the encoder."""
        hidden = torch.ones_like(self.patch_order, dtype=torch.bool)
        return hidden.scatter(1, self.visible, False)


def make_masks(
    patch_noise: Tensor,
    mask_ratio: float,
    pos_mask_ratio: float,
    *,
    position_noise: Tensor | None = None,
    shuffle_noise: Tensor | None = None,
    shuffle: bool = False,
) -> Masks:
    """Turns uniform noise into masks.

    Args:
        patch_noise: (B, N); the smallest `num_kept(N, mask_ratio)` of a row stay visible.
        mask_ratio: share of patches hidden from the encoder.
        pos_mask_ratio: share of the visible patches whose position embedding is dropped.
        position_noise, shuffle_noise: (B, V); drawn here unless given (parity tests give them).
        shuffle: permute the visible tokens before the encoder.
    """
    batch, count = patch_noise.shape
    patch_order = patch_noise.argsort(dim=1)
    visible = patch_order[:, : num_kept(count, mask_ratio)]
    num_visible = visible.shape[1]
    if position_noise is None:
        position_noise = torch.rand(batch, num_visible, device=patch_noise.device)
    position_order = position_noise.argsort(dim=1)
    num_positioned = num_kept(num_visible, pos_mask_ratio)
    dropped = torch.ones_like(position_order, dtype=torch.bool)
    dropped = dropped.scatter(1, position_order[:, :num_positioned], False)
    permutation = None
    if shuffle:
        if shuffle_noise is None:
            shuffle_noise = torch.rand(batch, num_visible, device=patch_noise.device)
        permutation = shuffle_noise.argsort(dim=1)
    return Masks(patch_order, visible, position_order, dropped, num_positioned, permutation)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` (B, K) of `tokens` (B, T, D): (B, K, D)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def wrong_positions(position_embeddings: Tensor, masks: Masks) -> Tensor:
    """The variant `wrong_pos`: dropped positions exchange their embeddings among each other.

    One permutation serves the whole batch, as in the official code.
    `position_embeddings` (B, V, D) are the true ones of the visible patches; returns the same shape.
    """
    dropped = masks.position_order[:, masks.num_positioned :]
    permutation = torch.randperm(dropped.shape[1], device=dropped.device)
    exchanged = take(position_embeddings, dropped[:, permutation])
    index = dropped.unsqueeze(-1).expand(-1, -1, position_embeddings.shape[-1])
    return position_embeddings.scatter(1, index, exchanged)
