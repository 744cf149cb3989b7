"""LAMB as the official pre-training uses it (torch_optimizer's), which is not timm's.

No bias correction, no clipping of the gradient, the norm of a weight cut at 10, and weight decay on every parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_LARGEST_NORM = 10.0


class Lamb(Optimizer):
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
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        beta1, beta2 = group["betas"]
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        first = [self.state[p]["exp_avg"] for p in params]
        second = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)

        direction = torch._foreach_sqrt(second)
        torch._foreach_add_(direction, group["eps"])
        direction = torch._foreach_div(first, direction)
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
