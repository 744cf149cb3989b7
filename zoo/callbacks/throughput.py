"""How fast, how full, how well used: samples a second, memory, model FLOPs utilisation."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ThroughputMonitor
from lightning.pytorch.callbacks.throughput_monitor import _plugin_to_compute_dtype
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from zoo.callbacks.fault import untouched
from zoo.flops import count_flops, peak_flops
from zoo.seeding import STEP, keep_draws, seed_batch


class Throughput(ThroughputMonitor):
    """Lightning's ThroughputMonitor for any module, with memory beside it.

    Logs `train/device/samples_per_sec`, `train/device/batches_per_sec` and peak memory in GiB. On GPUs whose peak is
    known there is also `train/device/mfu`: the share of the peak that the model's products of a step used
    (`zoo.flops`). They are counted once, on the first batch (one more forward and backward pass).

    The device is waited for only in the steps that are logged: a rate is a mean over a window.

    Args:
        window_size: steps over which rates are averaged.
        count_flops: False leaves utilisation out.
    """

    def __init__(self, window_size: int = 100, count_flops: bool = True) -> None:
        super().__init__(batch_size_fn=first_dimension, window_size=window_size)
        self.count_flops = count_flops
        self.flops_per_batch: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        dtype = _plugin_to_compute_dtype(trainer.precision_plugin)
        self.available_flops = peak_flops(trainer.strategy.root_device, dtype)
        for throughput in self._throughputs.values():
            throughput.available_flops = self.available_flops

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # On every device alike: the step may hold collective calls.
        if self.count_flops and pl_module.automatic_optimization:
            self.count_flops = False
            self.flops_per_batch = flops_of_step(trainer, pl_module, batch, batch_idx)
            self._start(trainer)  # the count is no part of the first step

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, *_)
        if trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate():
            trainer._logger_connector.log_metrics({f"train/{k}": v for k, v in peak_memory(pl_module.device).items()})

    def _update(self, trainer: Trainer, pl_module: LightningModule, batch: Any, iter_num: int) -> None:
        stage = trainer.state.stage
        assert stage is not None
        if pl_module.device.type == "cuda" and trainer._logger_connector.should_update_logs:
            torch.cuda.synchronize()
        self._samples[stage] += max(1, self.batch_size_fn(batch))
        self._batches[stage] += 1
        self._throughputs[stage].update(
            time=time.perf_counter() - self._t0s[stage], batches=self._batches[stage], samples=self._samples[stage],
            flops=self.flops_per_batch if trainer.training else None,
        )  # fmt: skip


def flops_of_step(trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> int | None:
    """Floating-point operations of one forward and backward pass; None if the step gives no loss."""
    losses: list[Tensor | None] = []

    def step() -> None:
        if isinstance(module, FSDPModule):
            out = trainer.strategy.training_step(batch, batch_idx)  # gathers the weights
        else:
            with trainer.precision_plugin.forward_context():
                out = module.training_step(batch, batch_idx)
        loss = out.get("loss") if isinstance(out, dict) else out
        losses.append(loss)
        if loss is None:
            return
        if isinstance(module, FSDPModule):
            loss.backward()
        else:  # without touching gradients: DDP's hooks on them would take this for the run's first step
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            torch.autograd.grad(loss, trained, allow_unused=True)

    with keep_draws(), untouched(module):
        seed_batch(trainer, STEP, batch_idx)
        flops = count_flops(step)
    if isinstance(module, FSDPModule):
        module.zero_grad()
    return None if losses[0] is None else flops


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: of this process, and on a GPU what tensors took and what was reserved."""
    memory = {"process_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if device.type == "cuda":
        memory["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        memory["gpu_reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    return memory


def first_dimension(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor in it; 0 if it holds none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    if dataclasses.is_dataclass(batch):
        values: Any = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    elif isinstance(batch, Mapping):
        values = batch.values()
    else:
        values = batch if isinstance(batch, list | tuple) else ()
    return next((size for value in values if (size := first_dimension(value))), 0)
