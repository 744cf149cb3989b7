"""Loss of multi-instance prediction: which of C fractals are in the picture (Anderson & Farrell 2022, section 3.4).

Shape letters: B pictures, C classes, K labels a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NO_LABEL = -1


def multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(B, K) class numbers, repeated as often as one likes, to 0/1 targets (B, C). A row of -1 has no label."""
    one_more = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    # What stands for no label goes to a column of its own, which is cut off.
    one_more.scatter_(1, torch.where(labels == NO_LABEL, num_classes, labels), 1.0)
    return one_more[:, :num_classes]


def multi_instance_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy over all classes; the k classes of a picture weigh C / k each, so both sides balance.

    Args:
        logits, targets: (B, C). A picture without a class counts with its absent classes alone.

    Returns the mean over B x C: ln 2 * (2 - k / C) for a picture at zero logits.
    """
    present = targets.sum(dim=1, keepdim=True).clamp(min=1)
    weight = (logits.shape[1] / present).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), pos_weight=weight)


@torch.no_grad()
def average_precision(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the pictures of the average precision of their ranking of classes: 1 puts all present ones first."""
    order = logits.argsort(dim=1, descending=True)
    hits = targets.gather(1, order)
    ranks = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    precision = hits.cumsum(dim=1) / ranks
    return ((precision * hits).sum(dim=1) / hits.sum(dim=1).clamp(min=1)).mean()
