"""Losses between two views of the same thing, in float32: CLIP's over the global batch, and SimSiam's."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from zoo.module import full_precision
from zoo.nn.gather import gather_with_gradient, world_size


def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """Each row of `a` should find its partner in `b` among all devices' rows, and the reverse (Radford et al. 2021).

    Args:
        a, b: (B, D) embeddings of this device, of any length and precision; row i of one belongs to row i of the other.
        scale: factor of the cosine similarities (1 / temperature).

    Returns:
        The mean over this device's rows and both directions; averaged over devices it is the loss of the global batch.
    """
    with full_precision(a.device.type):
        a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
        all_a, all_b = gather_with_gradient(torch.stack([a, b], dim=1)).unbind(1)
        first = len(a) * dist.get_rank() if world_size() > 1 else 0
        target = torch.arange(first, first + len(a), device=a.device)
        scale = torch.as_tensor(scale, dtype=torch.float32)
        return (F.cross_entropy(scale * a @ all_b.T, target) + F.cross_entropy(scale * b @ all_a.T, target)) / 2


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Negative mean cosine of each view's prediction and the other view's projection (Chen & He 2021, equation 2).

    From -1 (equal) to 1; (B, D) each. No gradient flows into the projections: else all would collapse to a point.
    """
    with full_precision(p1.device.type):
        p1, p2, z1, z2 = p1.float(), p2.float(), z1.detach().float(), z2.detach().float()
        return -0.5 * (F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean())
