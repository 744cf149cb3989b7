"""The objective of BM-MAE: squared error on hidden patches, one mean a sequence, summed over the sequences."""

from __future__ import annotations

import torch
from torch import Tensor


def standardise_patches(patches: Tensor) -> Tensor:
    """Each patch (..., P) by its own mean and unbiased variance (`norm_pix_loss`)."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def modality_losses(error: Tensor, modality: Tensor, counted: Tensor, modalities: int) -> Tensor:
    """Mean error of each sequence over all its counted tokens in the batch: (M,), 0 where there is none.

    Args:
        error: (B, K) mean squared error of a token.
        modality: (B, K) which sequence the token belongs to.
        counted: (B, K) bool, or all True: hidden tokens of sequences that the subject has.
        modalities: M.
    """
    weight = counted.to(error.dtype).flatten()
    index = modality.flatten()
    total = torch.zeros(modalities, dtype=error.dtype, device=error.device).index_add(
        0, index, error.flatten() * weight
    )
    count = torch.zeros_like(total).index_add(0, index, weight)
    return total / count.clamp_min(1.0)
