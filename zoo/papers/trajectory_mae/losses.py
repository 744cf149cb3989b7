"""Reconstruction losses of pre-training, and the smooth parts of the forecaster's."""

from __future__ import annotations

import torch
from torch import Tensor

UNUSED_MODE_WEIGHT = 0.05


def lane_loss(prediction: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """(B,) mean absolute error over a lane's 9 x 12 numbers (padding included, as zeros), averaged over masked lanes.

    Args:
        prediction, target: (B, M, 9, 12). masked: (B, M); a scene without any gives 0.
    """
    error = (prediction - target).abs().mean(dim=(2, 3)) * masked
    return error.sum(1) / masked.sum(1).clamp(min=1)


def trajectory_loss(prediction: Tensor, target: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the best mode's mean absolute error over the 49 x 10 numbers; and the modes' errors (B, K).

    As long as some mode was best for no scene of the batch so far (in the batch's order), 0.05 times the error of the
    first such mode is added, which keeps modes from dying. Scenes whose trajectory is not masked give 0.

    Args:
        prediction: (B, K, 49, 10). target: (B, 49, 10). masked: (B,).
    """
    errors = (prediction - target.unsqueeze(1)).abs().mean(dim=(2, 3))
    best, mode = errors.min(dim=1)
    chosen = torch.nn.functional.one_hot(mode, errors.shape[1]) * masked.unsqueeze(1)
    unused = chosen.cumsum(0) == 0
    first = unused.long().argmax(1)  # the first of equals
    push = errors.gather(1, first.unsqueeze(1)).squeeze(1) * unused.any(1)
    return (best + UNUSED_MODE_WEIGHT * push) * masked, errors


def end_point_errors(prediction: Tensor, target: Tensor, length: Tensor, columns: tuple[int, int]) -> Tensor:
    """Distance in metres between the predicted and true last point of polylines.

    Args:
        prediction, target: (..., V, C). length: (...,) real vectors. columns: where x and y stand.
    """
    at = (length - 1).clamp(min=0)[..., None, None].expand(*length.shape, 1, prediction.shape[-1])
    gap = (prediction.gather(-2, at) - target.gather(-2, at)).squeeze(-2)[..., list(columns)]
    return gap.norm(dim=-1)
