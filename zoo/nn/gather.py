"""Embeddings of all devices on each, with gradients: what a contrastive loss over the global batch needs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_with_gradient(x: Tensor) -> Tensor:
    """(B, ...) of every device to (world * B, ...) in the order of ranks; gradients flow back to where x came from.

    Every device must give the same B (training loaders of the zoo do). A loss that each device takes over its own rows
    against all columns then has, averaged over devices as DDP does, the gradient of one device with the global batch.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def sum_over_devices(x: Tensor) -> Tensor:
    """The sum of `x` over devices, without gradient; x itself outside distributed training."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.batch = x.shape[0]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        # Every device's loss has looked at our rows: their gradients add up.
        if dist.get_backend() == "nccl":
            mine = grad.new_empty(ctx.batch, *grad.shape[1:])
            dist.reduce_scatter_tensor(mine, grad.contiguous())
            return mine
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.narrow(0, dist.get_rank() * ctx.batch, ctx.batch)
