"""Optimiser, schedule and clipping rules that papers share (MAE's family first)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zoo.errors import ZooError


def effective_batch_size(trainer: Trainer, batch_size: int) -> int:
    """Images of one optimiser step: per-device batch x devices x nodes x gradient accumulation."""
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches


def scaled_lr(base_lr: float, effective_batch: int) -> float:
    """The linear scaling rule of Goyal et al. 2017 as MAE states it: `base_lr` is meant for 256 images."""
    return base_lr * effective_batch / 256


def resolve_lr(module: LightningModule, base_lr: float, lr: float | None) -> float:
    """`lr` if given, else `base_lr` scaled by the run's effective batch, which the datamodule's `batch_size` gives."""
    if lr is not None:
        if lr <= 0:
            raise ZooError(f"A learning rate lies above 0, not at {lr}.")
        return lr
    batch_size = getattr(getattr(module.trainer, "datamodule", None), "batch_size", None)
    if batch_size is None:
        raise ZooError(
            "The learning rate follows the batch size, but the data module has no `batch_size`: give model.lr a value."
        )
    return scaled_lr(base_lr, effective_batch_size(module.trainer, batch_size))


def warmup_cosine_lr(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, max_epochs: float) -> float:
    """Learning rate at a fractional epoch: linear from 0 over the warm-up, then half a cosine down to `min_lr`."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    span = max(max_epochs - warmup_epochs, 1e-12)
    progress = min((epoch - warmup_epochs) / span, 1.0)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def fractional_epoch(step: int, batches_per_epoch: int, accumulate: int = 1) -> float:
    """Epochs seen before optimiser step `step`, in steps of whole accumulation groups (the last one may be short)."""
    steps_per_epoch = math.ceil(batches_per_epoch / accumulate)
    return step // steps_per_epoch + (step % steps_per_epoch) * accumulate / batches_per_epoch


def warmup_cosine(
    module: LightningModule, optimizer: Optimizer, *, lr: float, min_lr: float = 0.0, warmup_epochs: float = 0.0
) -> dict[str, Any]:
    """MAE's schedule as Lightning's scheduler config: stepped every optimiser step, counted in fractional epochs.

    A parameter group's `lr_scale` (layer-wise decay) multiplies the rate, also its floor `min_lr`.
    The length comes from the trainer: `max_epochs`, or `max_steps` where that ends the run first.
    """
    trainer = module.trainer
    total_steps = trainer.estimated_stepping_batches
    trainer.fit_loop.setup_data()  # with max_steps alone Lightning would count the batches only later
    if not math.isfinite(total_steps) or not math.isfinite(trainer.num_training_batches):
        raise ZooError("A cosine schedule needs an end: give trainer.max_epochs or trainer.max_steps a value.")
    batches, accumulate = int(trainer.num_training_batches), trainer.accumulate_grad_batches
    max_epochs = fractional_epoch(int(total_steps), batches, accumulate)

    def rate(step: int, scale: float) -> float:
        epoch = fractional_epoch(step, batches, accumulate)
        value = warmup_cosine_lr(epoch, lr=lr, min_lr=min_lr, warmup_epochs=warmup_epochs, max_epochs=max_epochs)
        return scale * value / lr  # LambdaLR multiplies each group's initial rate, which is lr

    factors: list[Callable[[int], float]] = [
        partial(rate, scale=group.get("lr_scale", 1.0)) for group in optimizer.param_groups
    ]
    return {"scheduler": LambdaLR(optimizer, factors), "interval": "step", "name": "lr"}


def capped_cosine_factor(epoch: int, *, warmup_epochs: float, cosine_epochs: float) -> float:
    """Factor of the learning rate in a whole epoch: the lower of a linear warm-up and half a cosine from epoch 0."""
    rising = (epoch + 1) / (warmup_epochs + 1e-8)
    return min(rising, 0.5 * (math.cos(math.pi * epoch / cosine_epochs) + 1.0))


def capped_cosine(
    module: LightningModule, optimizer: Optimizer, *, warmup_epochs: float, cosine_epochs: float | None = None
) -> dict[str, Any]:
    """BM-MAE's schedule as Lightning's scheduler config: stepped every epoch.

    `cosine_epochs` may exceed the run's length, whose end the cosine then does not reach; None takes the run's length.
    """
    if cosine_epochs is None:
        cosine_epochs = module.trainer.max_epochs
        if not cosine_epochs or cosine_epochs < 0:
            raise ZooError("A cosine schedule needs an end: give trainer.max_epochs or model.cosine_epochs a value.")
    if cosine_epochs <= 0 or warmup_epochs < 0:
        raise ZooError(
            f"cosine_epochs lies above 0 and warmup_epochs at 0 or above, not {cosine_epochs}, {warmup_epochs}."
        )
    factor = partial(capped_cosine_factor, warmup_epochs=warmup_epochs, cosine_epochs=cosine_epochs)
    return {"scheduler": LambdaLR(optimizer, factor), "interval": "epoch", "name": "lr"}


def adamw(
    module: LightningModule, params: Iterable[Any], *, lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimizer:
    """AdamW, fused unless fp16 loss scaling needs the gradients unscaled before clipping."""
    fused = str(module.trainer.precision) != "16-mixed"
    return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)


@torch.no_grad()
def clip_per_tensor(parameters: Iterable[nn.Parameter], max_norm: float) -> list[Tensor]:
    """Clips the L2 norm of each tensor's gradient on its own, as the official DropPos and DINO code do.

    Returns the norms before clipping; nothing waits for the device.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return []
    norms = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in torch._foreach_norm(grads)]
    factors = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
    torch._foreach_mul_([grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads], factors)
    return norms


def clip_gradients(
    module: LightningModule, clip_grad: float | None, clip_mode: str, trainer_clip_val: float | None
) -> None:
    """Body of `configure_gradient_clipping`: global norm (the paper's meaning) or per tensor (official code)."""
    if trainer_clip_val is not None:
        raise ZooError("This model clips its own gradients: use model.clip_grad instead of trainer.gradient_clip_val.")
    if not clip_grad:
        return
    if clip_mode == "per_tensor":
        clip_per_tensor(module.parameters(), clip_grad)
    else:
        nn.utils.clip_grad_norm_(module.parameters(), clip_grad)


def layer_decay_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Layer-wise learning-rate decay for a timm ViT, as BEiT and MAE group it.

    Embeddings are layer 0, block k is layer k + 1, all the rest (norms, head) the last; a layer's `lr_scale` is
    layer_decay^(last - layer). No weight decay on 1-D parameters and on what the model lists in `no_weight_decay()`.
    (timm's own grouping puts a final `norm` one layer lower.)
    """
    last = len(model.blocks) + 1  # type: ignore[arg-type]
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = last
        decays = parameter.ndim > 1 and name not in exempt
        group = groups.setdefault(
            (layer, decays),
            {"lr_scale": layer_decay ** (last - layer), "weight_decay": weight_decay if decays else 0.0, "params": []},
        )
        group["params"].append(parameter)
    return list(groups.values())


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup: float = 0.1,
    final_div_factor: float = 1e4,
    cycle_momentum: bool = True,
) -> torch.optim.lr_scheduler.OneCycleLR:
    """PyTorch's one-cycle schedule, stepped every optimiser step, with each group's own rate as its peak.

    The rate rises from peak / 25 over the share `warmup` of all steps and falls by a cosine to peak / 25 /
    `final_div_factor`; the momentum goes the other way, between 0.85 and 0.95, whatever it was set to, unless
    `cycle_momentum` is off.
    """
    if total_steps < 2:
        raise ZooError(f"A one-cycle schedule takes two steps or more, not {total_steps}: train longer.")
    if abs(warmup * total_steps - 1) < 1e-9:
        warmup = 0.0  # a rise that ends with the first step: PyTorch divides by its length, zero
    peaks = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=peaks,
        total_steps=total_steps,
        pct_start=warmup,
        final_div_factor=final_div_factor,
        cycle_momentum=cycle_momentum,
    )


def norm_bias_groups(
    model: nn.Module, lr: float, weight_decay: float, heads: dict[str, dict[str, float]] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of a convolutional network: normalisation layers and biases do not decay.

    `heads` gives parameters by name a group of their own: `{"fc.weight": {"lr": ..., "weight_decay": ...}}`.
    """
    heads = heads or {}
    decay, plain = [], []
    groups: list[dict[str, Any]] = []
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            if not parameter.requires_grad:
                continue
            if full in heads:
                groups.append({"params": [parameter], "lr": lr, "weight_decay": weight_decay, **heads[full]})
            elif "Norm" in type(module).__name__ or name == "bias":
                plain.append(parameter)
            else:
                decay.append(parameter)
    groups.append({"params": decay, "lr": lr, "weight_decay": weight_decay})
    groups.append({"params": plain, "lr": lr, "weight_decay": 0.0})
    return groups
