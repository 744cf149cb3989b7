"""What `lightning run RECIPE --dry-run` prints: size, memory and time, from two real batches."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table

from zoo.module import count_parameters


class DryRun(Callback):
    """Times the second of two training batches and projects the run's length from it.

    `max_epochs`, `max_steps` and `limit_train_batches` are the recipe's; the trainer itself is in fast_dev_run and
    knows only one.
    """

    def __init__(
        self,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        limit_train_batches: int | float | None = None,
    ) -> None:
        self.max_epochs, self.max_steps, self.limit_train_batches = max_epochs, max_steps, limit_train_batches
        self.step_seconds: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.step_seconds.append(time.perf_counter() - self._started)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module)

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        table = Table(title="Dry run", box=box.SIMPLE, show_header=False, title_justify="left")
        total, trainable = count_parameters(pl_module), count_parameters(pl_module, trainable_only=True)
        table.add_row("parameters", f"{_count(total)}, {_count(trainable)} of them trained")
        if torch.cuda.is_available():
            table.add_row("GPU memory, peak", f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        table.add_row("process memory, peak", f"{peak:.2f} GiB")
        if self.step_seconds:
            seconds = self.step_seconds[-1]
            table.add_row("step", f"{seconds:.3f} s (forward, backward, update; data loading not counted)")
            where = "on this device" if trainer.world_size == 1 else f"on each of {trainer.world_size} devices"
            batches = self._batches(trainer)
            if batches is not None:
                table.add_row("epoch", f"{batches} batches {where}, about {_duration(seconds * batches)}")
            if self.max_steps and self.max_steps > 0:
                whole = seconds * self.max_steps * trainer.accumulate_grad_batches
                table.add_row("whole run", f"{self.max_steps} steps, about {_duration(whole)}")
            elif batches is not None and self.max_epochs and self.max_epochs > 0:
                whole = seconds * batches * self.max_epochs
                table.add_row("whole run", f"{self.max_epochs} epochs, about {_duration(whole)}")
        Console().print(table)

    def _batches(self, trainer: Trainer) -> int | None:
        """Training batches of an epoch on this device; None for data without a length."""
        try:
            batches = len(trainer.train_dataloader)  # type: ignore[arg-type]
        except TypeError:
            return None
        limit = self.limit_train_batches
        if limit is None:
            return batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number:,}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
