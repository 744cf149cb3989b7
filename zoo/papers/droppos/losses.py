"""The objectives and the accuracy of DropPos; all in float32 whatever the precision of the networks.

Shape letters: B images, N patches of an image, V visible patches, P pixel values of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_similarity(tokens: Tensor, temperature: float = 0.1) -> Tensor:
    """Attentive reconstruction: how much each patch looks like the whole image (DropPos, section 3.2).

    Args:
        tokens: (B, 1 + K, D) encoder output of the full image after the final norm: class token and K of its patches.
        temperature: softmax temperature.

    Returns:
        (B, K): softmax over these patches of cosine(class token, patch) / temperature.
    """
    tokens = tokens.float()
    similarity = F.cosine_similarity(tokens[:, :1], tokens[:, 1:], dim=-1)
    return (similarity / temperature).softmax(dim=-1)


def position_weights(
    logits: Tensor,
    positions: Tensor,
    dropped: Tensor,
    smoothing: Tensor,
    attention: Tensor | None = None,
    conf_ignore: bool = False,
) -> Tensor:
    """The weight of each visible patch in the loss.

    Args:
        logits: (B, V, N) position scores.
        positions: (B, V) true raster indices.
        dropped: (B, V) True where the position embedding was dropped.
        smoothing: (N', N') soft targets, N' >= N.
        attention: (B, V) attentive-reconstruction weights, or None for equal ones.
        conf_ignore: leave out patches that the model already places with at least the target's probability.

    Returns:
        (B, V) float32.
    """
    weights = dropped.float()
    if conf_ignore:
        confidence = logits.detach().softmax(-1).gather(-1, positions.unsqueeze(-1)).squeeze(-1)
        weights = weights * (confidence < smoothing.diagonal()[positions])
    return weights if attention is None else weights * attention


def position_loss(logits: Tensor, positions: Tensor, weights: Tensor, smoothing: Tensor) -> Tensor:
    """Cross-entropy between soft target positions and predictions, one weighted mean over the whole batch (eq. 3).

    Arguments as in `position_weights`; returns a scalar. No patch left to place gives 0, not NaN.
    """
    log_probability = logits.log_softmax(dim=-1)
    target = smoothing[positions, : logits.shape[-1]]
    loss = -(target * log_probability).sum(dim=-1)
    return (loss * weights).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


def position_accuracy(logits: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Share (0 to 1) of patches placed exactly right, weighted by (B, V) `weights`.

    With the mask of dropped positions this is the paper's; with `position_weights` what the official code logs.
    """
    correct = (logits.argmax(dim=-1) == positions).float()
    return (correct * weights).sum() / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)


def pixel_loss(prediction: Tensor, patches: Tensor, masked: Tensor, normalize: bool = True) -> Tensor:
    """MAE's reconstruction error on the hidden patches, for the multi-task variant.

    Args:
        prediction, patches: (B, N, P) in raster order, pixels of a patch laid out row, column, channel.
        masked: (B, N) True where a patch was hidden.
        normalize: standardise each target patch by its own mean and (unbiased) variance.
    """
    prediction, target = prediction.float(), patches.float()
    if normalize:
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    error = (prediction - target).square().mean(-1)
    return (error * masked).sum() / masked.sum()
