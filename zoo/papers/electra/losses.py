"""The discriminator's loss, in float32, and its scores; the generator's is `zoo.nn.text_mlm.masked_lm_loss`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def replaced_token_loss(logits: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of "was this token replaced?" over every token that is no padding; all are (B, L)."""
    weights = attention_mask.float()
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return (losses * weights).sum() / (weights.sum() + 1e-6)


@torch.no_grad()
def detection_scores(logits: Tensor, labels: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """Accuracy, precision and recall of the discriminator at probability 0.5, as scalars from 0 to 1."""
    real = attention_mask.bool()
    guess, truth = (logits > 0) & real, labels.bool() & real
    hits = (guess & truth).sum()
    return {
        "disc_acc": ((guess == truth) & real).sum() / real.sum().clamp(min=1),
        "disc_precision": hits / guess.sum().clamp(min=1),
        "disc_recall": hits / truth.sum().clamp(min=1),
    }
