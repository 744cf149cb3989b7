"""The symmetric contrastive loss of CLIP over the global batch, in float32."""

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
