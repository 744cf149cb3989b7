"""SwAV's optimiser and schedule: SGD whose steps are scaled to each tensor's size (LARC), and warm-up then cosine."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from zoo.errors import ZooError


class LARC(SGD):
    """SGD with layer-wise adaptive rates (You et al. 2017), as SwAV is trained.

    Each gradient becomes (g + wd p) x trust |p| / (|g| + wd |p| + eps); then SGD without decay. Where |p| or |g| is
    zero the gradient stays as it is, undecayed: a bias that starts at zero takes a full step. A parameter without
    gradient is left alone and gets no momentum.

    Args:
        params: parameters or groups; a group with `adapt: False` is plain SGD with its weight decay.
        trust: the coefficient. eps: keeps the quotient finite.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0,
        trust: float = 1e-3, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.trust, self.eps = trust, eps

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                if group.get("adapt", True):
                    self._adapt(group)
                    group["weight_decay"] = 0.0  # it is in the gradient already
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss

    def _adapt(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        decay = group["weight_decay"]
        sizes, lengths = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(grads))
        both = (sizes > 0) & (lengths > 0)
        # No number is read back, so nothing waits for the device.
        rate = torch.where(both, self.trust * sizes / (lengths + decay * sizes + self.eps), 1.0)
        if decay:
            torch._foreach_add_(grads, torch._foreach_mul(params, list(torch.where(both, decay, 0.0).unbind())))
        torch._foreach_mul_(grads, list(rate.unbind()))


def warmup_cosine_at(
    step: int, *, lr: float, start_lr: float, final_lr: float, warmup_steps: int, total_steps: int
) -> float:
    """Rate of optimiser step `step`: a straight line from `start_lr` that reaches `lr` in the warm-up's last step,
    then half a cosine from `lr` towards `final_lr`, which the step after the last would have."""
    if step < warmup_steps:
        return start_lr + (lr - start_lr) * (step / (warmup_steps - 1) if warmup_steps > 1 else 0.0)
    share = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * share))


def warmup_cosine_schedule(
    module: LightningModule, optimizer: torch.optim.Optimizer, *, lr: float, start: float, final: float, warmup: float
) -> dict[str, Any]:
    """`warmup_cosine_at` as Lightning's scheduler config, stepped every optimiser step.

    `start` and `final` are shares of `lr`, so that they scale with it; `warmup` counts epochs.
    """
    trainer = module.trainer
    total = trainer.estimated_stepping_batches
    trainer.fit_loop.setup_data()  # with max_steps alone Lightning would count the batches only later
    if not math.isfinite(total) or not math.isfinite(trainer.num_training_batches):
        raise ZooError("A cosine schedule needs an end: give trainer.max_epochs or trainer.max_steps a value.")
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    steps = round(warmup * per_epoch)
    rate = partial(warmup_cosine_at, lr=lr, start_lr=start * lr, final_lr=final * lr, warmup_steps=steps,
                   total_steps=int(total))  # fmt: skip
    return {"scheduler": LambdaLR(optimizer, lambda step: rate(step) / lr), "interval": "step", "name": "lr"}


def parameter_groups(model: nn.Module, exclude_norm_bias: bool) -> list[dict[str, Any]]:
    """All trainable parameters in one group, as the official code has it, or vectors (norm layers, biases) apart:
    those then neither decay nor are their steps scaled."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not exclude_norm_bias:
        return [{"params": trainable}]
    plain = {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0, "adapt": False}
    return [{"params": [p for p in trainable if p.ndim > 1]}, plain]
