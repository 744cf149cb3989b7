"""Random draws that follow from the step alone: different on every device, the same on every run."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from zoo.seeding import EPOCH, EVALUATION, STEP, run_seed, seed_batch, seed_draws


class SeedEachStep(Callback):
    """Seeds the global generators before every step, from the run's seed, the epoch and the number of the batch.

    Masks and other draws of a module are then the same whether or not the run was interrupted, and differ between
    devices (Lightning's `seed_everything` alone would give all devices the same masks). Batches are numbered over all
    devices, see `zoo.seeding.seed_batch`.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seed_draws(run_seed(), EPOCH, trainer.current_epoch, trainer.global_rank)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_batch(trainer, STEP, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        seed_batch(trainer, EVALUATION, batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        seed_batch(trainer, EVALUATION, batch_idx)
