"""The losses of CLIP2Point: contrast of image and depth, contrast of two depth maps, and how they are weighed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.07) -> Tensor:
    """SimCLR's normalised-temperature cross-entropy of paired features (B, D) and (B, D), a scalar.

    Every row meets its partner among the 2 B - 1 other rows of both sets; the mean runs over all 2 B rows.
    """
    batch = len(first)
    features = F.normalize(torch.cat([first, second]).float(), dim=1)
    logits = features @ features.t() / temperature
    logits = logits.masked_fill(torch.eye(2 * batch, dtype=torch.bool, device=logits.device), -torch.inf)
    partner = torch.arange(2 * batch, device=logits.device).roll(batch)
    return F.cross_entropy(logits, partner)


def weighted_sum(image_loss: Tensor, depth_loss: Tensor, weight: Tensor) -> Tensor:
    """L_img + L_dep / w^2 + log(w + 1), with w learned: a large w silences the depth loss, but at a price."""
    return image_loss + depth_loss / weight.square() + torch.log(weight + 1)


def retrieval_accuracy(queries: Tensor, keys: Tensor) -> Tensor:
    """Share of queries (B, D) whose nearest key (B, D) by cosine is the one of the same row. Chance is 1 / B."""
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).t()
    return (similarity.argmax(dim=1) == torch.arange(len(queries), device=queries.device)).float().mean()
