"""The objectives of SwAV and MoCo as small functions; all in float32.

Shape letters: B images of this device, V crops of an image, K prototypes (or queued keys), D embedding width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.nn.gather import sum_over_devices, world_size


@torch.no_grad()
def balance(kernel: Tensor, iterations: int = 3) -> Tensor:
    """Sinkhorn-Knopp: soft assignments that use all prototypes alike (Caron et al. 2020, section 3.1).

    Args:
        kernel: (B, K) positive, exp(score / epsilon); an infinite entry counts as the largest finite one.
        iterations: rounds of scaling prototypes to 1 / K and samples to 1 / B, over the samples of all devices.

    Returns:
        (B, K) float32, each row sums to 1.
    """
    kernel = kernel.float()
    finite = kernel.isfinite()
    kernel = torch.where(finite, kernel, kernel.where(finite, kernel.new_zeros(())).max())
    kernel = kernel / sum_over_devices(kernel.sum())
    batch, count = len(kernel) * world_size(), kernel.shape[1]
    for _ in range(iterations):
        # Only the prototypes' sums need the other devices: a sample is all on one.
        kernel = kernel / (count * sum_over_devices(kernel.sum(dim=0)))
        kernel = kernel / (batch * kernel.sum(dim=1, keepdim=True))
    return kernel / kernel.sum(dim=1, keepdim=True)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """(B, K) scores to balanced assignments (B, K), see `balance`.

    The largest score over all devices is taken off first, which changes no assignment and lets nothing overflow.
    """
    scores = scores.float()
    largest = scores.max()
    if world_size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    kernel = ((scores - largest) / epsilon).exp()
    return balance(kernel.clamp_min(torch.finfo(torch.float32).tiny), iterations)


def swapped_prediction(
    scores: Tensor,
    assignments: list[Tensor],
    assigned_crops: list[int],
    temperature: float = 0.1,
) -> Tensor:
    """SwAV's loss: from every crop predict the prototypes that another crop of the same image was assigned to.

    Args:
        scores: (V, B, K) cosines of embeddings and prototypes.
        assignments: one (B, K) for each of `assigned_crops`.
        assigned_crops: numbers of the crops that were assigned (the large ones).
        temperature: of the softmax.

    Returns:
        The mean over assigned crops, over the V - 1 others and over this device's images. ln K for uniform scores.
    """
    if len(scores) < 2:
        raise ValueError("a swapped prediction needs two crops of an image")
    log_probability = (scores.float() / temperature).log_softmax(dim=-1)
    total = log_probability.sum(dim=0)
    loss = scores.new_zeros((), dtype=torch.float32)
    for crop, target in zip(assigned_crops, assignments, strict=True):
        others = total - log_probability[crop]  # the sum over the other crops, in one product
        loss = loss - (target * others).sum(dim=-1).mean() / (len(scores) - 1)
    return loss / len(assigned_crops)


def contrast_with_queue(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's logits: the key of the same image first, then the queue (He et al. 2020, equation 1).

    Args:
        query, key: (B, D) of unit length. queue: (D, K).

    Returns:
        (B, 1 + K) float32; the right class is 0.
    """
    query, key = query.float(), key.float()
    positive = (query * key).sum(dim=1, keepdim=True)
    return torch.cat([positive, query @ queue.float()], dim=1) / temperature
