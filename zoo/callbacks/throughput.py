"""How fast, how full, how well used: samples a second, memory, model FLOPs utilisation."""

from __future__ import annotations

import resource
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.throughput import measure_flops
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor


class Throughput(ThroughputMonitor):
    """Lightning's ThroughputMonitor for any module, with memory beside it.

    Logs `train/device/samples_per_sec`, `train/device/batches_per_sec` and peak memory in GiB. On GPUs whose peak
    Lightning knows there is also `train/device/mfu`: the share of the peak that the matrix products of the step used.
    The FLOPs of a step are counted once, on the first batch (one more forward and backward pass).

    Args:
        window_size: steps over which rates are averaged.
        count_flops: False leaves utilisation out.
    """

    def __init__(self, window_size: int = 100, count_flops: bool = True) -> None:
        super().__init__(batch_size_fn=first_dimension, window_size=window_size)
        self.count_flops = count_flops
        self._flops: int | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # On every device alike: the step may hold collective calls.
        if self.count_flops and self._flops is None:
            self._flops = flops_of_step(trainer, pl_module, batch, batch_idx)
            if not hasattr(pl_module, "flops_per_batch"):
                pl_module.flops_per_batch = self._flops  # where the parent looks

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._module_has_flops = self._flops is not None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, *_)
        if trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate():
            trainer._logger_connector.log_metrics({f"train/{k}": v for k, v in peak_memory(pl_module.device).items()})


def flops_of_step(trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> int:
    """Floating-point operations of one forward and backward pass (matrix products and convolutions)."""
    from zoo.callbacks.fault import _untouched
    from zoo.seeding import STEP, keep_draws, seed_batch

    grads = [(p, p.grad) for p in module.parameters()]
    for parameter, _ in grads:
        parameter.grad = None

    def forward() -> Tensor:
        with trainer.precision_plugin.forward_context():
            out = module.training_step(batch, batch_idx)
        return out["loss"] if isinstance(out, dict) else out

    try:
        with keep_draws(), _untouched(module):
            seed_batch(trainer, STEP, batch_idx)
            return measure_flops(module, forward, loss_fn=lambda loss: loss)
    finally:
        for parameter, grad in grads:
            parameter.grad = grad


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: of this process, and on a GPU what tensors took and what was reserved."""
    memory = {"process_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if device.type == "cuda":
        memory["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        memory["gpu_reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    return memory


def first_dimension(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor in it."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((size for value in values if (size := first_dimension(value))), 0)
