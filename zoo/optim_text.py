"""Optimiser, schedules and parameter groups of BERT and ELECTRA, as their released code has them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zoo.errors import ZooError
from zoo.optim import UncorrectedAdam

_NO_DECAY = ("LayerNorm", "layer_norm", "bias")
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
Schedule = Literal["electra", "bert"]


class BertAdam(UncorrectedAdam):
    """Adam without bias correction, with decoupled weight decay: w -= lr * (m / (sqrt(v) + eps) + decay * w).

    torch's AdamW corrects the bias of m and v, which at these betas makes the first thousand steps several times
    larger; results of BERT's and ELECTRA's code cannot be had with it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def update(
        self, group: dict[str, Any], params: list[nn.Parameter], means: list[Tensor], denominators: list[Tensor]
    ) -> None:
        if group["weight_decay"]:
            # Both terms use the weights before the step: w (1 - lr * decay) - lr * m / (sqrt(v) + eps).
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(params, means, denominators, -group["lr"])


def schedule_factor(step: int, total: int, warmup: float, kind: Schedule = "electra") -> float:
    """Share of the peak rate at update `step` (the first is 0).

    "electra" multiplies decay and warm-up, (1 - t / T) * min(1, t / w): the peak is never reached. "bert" switches:
    t / w during the warm-up, then 1 - t / T, with a small jump down.
    """
    decay = max(0.0, 1.0 - step / total)
    if kind == "electra":
        return decay * (min(1.0, step / warmup) if warmup > 0 else 1.0)
    return step / warmup if step < warmup else decay


def linear_schedule(
    module: LightningModule, optimizer: Optimizer, *, warmup: float, kind: Schedule = "electra"
) -> dict[str, Any]:
    """`schedule_factor` as Lightning's scheduler config; its length is the trainer's number of optimiser steps.

    Args:
        warmup: optimiser steps if 1 or more, else a share of all steps.
    """
    total = module.trainer.estimated_stepping_batches
    if not math.isfinite(total):
        raise ZooError("A linear schedule needs an end: give trainer.max_steps or trainer.max_epochs a value.")
    steps = warmup if warmup >= 1 else warmup * int(total)
    return {
        "scheduler": LambdaLR(optimizer, partial(schedule_factor, total=int(total), warmup=steps, kind=kind)),
        "interval": "step",
        "name": "lr",
    }


def layer_scale(name: str, num_layers: int, layer_decay: float, official: bool = False) -> float:
    """Learning-rate factor of a parameter of a BERT-like encoder by its depth.

    The paper's lr * decay^(max_depth - depth): head 1, top layer decay, embeddings decay^(n + 1). `official` keeps one
    more step between head and top layer, as ELECTRA's released code does (the place of BERT's pooler, which it lacks).
    """
    extra = 1 if official else 0
    layer = _LAYER.search(name)
    if layer:
        return layer_decay ** (num_layers - int(layer.group(1)) + extra)
    if "embeddings." in name or "embeddings_project." in name:
        return layer_decay ** (num_layers + 1 + extra)
    return 1.0


def decays(name: str) -> bool:
    """False for norms and biases (the vocabulary bias too); embeddings do decay."""
    return not any(part in name for part in _NO_DECAY)


def text_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    num_layers: int = 0,
    official_layer_decay: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups by weight decay and depth; each carries its own `lr` (LambdaLR scales it from there)."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_scale(name, num_layers, layer_decay, official_layer_decay) if layer_decay != 1.0 else 1.0
        decay = decays(name)
        group = groups.setdefault(
            (scale, decay), {"lr": lr * scale, "weight_decay": weight_decay if decay else 0.0, "params": []}
        )
        group["params"].append(parameter)
    return list(groups.values())
