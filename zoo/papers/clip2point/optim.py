"""LAMB as the official pre-training uses it (torch_optimizer's), which is not timm's.

No bias correction, no clipping of the gradient, the norm of a weight cut at 10, and weight decay on every parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.optim import UncorrectedAdam

_LARGEST_NORM = 10.0


class Lamb(UncorrectedAdam):
    """You et al. 2020, first version: Adam's direction plus decay, scaled to the norm of each parameter.

    Args:
        params: parameters or groups.
        lr: step relative to a parameter's norm.
        betas, eps: of Adam's moments; no bias correction.
        weight_decay: added to Adam's direction before its norm is taken.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def update(
        self, group: dict[str, Any], params: list[nn.Parameter], means: list[Tensor], denominators: list[Tensor]
    ) -> None:
        direction = torch._foreach_div(means, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(direction, params, alpha=group["weight_decay"])
        sizes, lengths = torch._foreach_norm(params), torch._foreach_norm(direction)
        ratios = []
        for size, length in zip(sizes, lengths, strict=True):
            size = size.clamp(max=_LARGEST_NORM)
            ratio = size / length
            ratios.append(torch.where((size > 0) & (length > 0), ratio, 1.0))
        torch._foreach_mul_(direction, ratios)
        torch._foreach_add_(params, direction, alpha=-group["lr"])
