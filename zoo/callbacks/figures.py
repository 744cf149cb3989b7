"""Pictures while and after training, to disk and to TensorBoard."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from zoo.callbacks.folder import run_folder
from zoo.callbacks.modes import evaluating
from zoo.errors import ZooError
from zoo.seeding import keep_draws


class Figures(Callback):
    """Asks the module for pictures of the first validation batch: `module.figures(batch) -> {name: matplotlib Figure}`.

    Each is written to `<run folder>/figures/<name>.png` and to the TensorBoard log.

    Args:
        every_n_epochs: how often; 0 draws only when training ends.
    """

    def __init__(self, every_n_epochs: int = 0) -> None:
        self.every_n_epochs = every_n_epochs
        self._batch: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "figures"):
            raise ZooError(f"{type(pl_module).__name__} draws no figures: take the Figures callback out of the recipe.")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == dataloader_idx == 0:
            self._batch = batch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._batch is None or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        import matplotlib.pyplot as plt

        folder = run_folder(trainer) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        with evaluating(pl_module), keep_draws(), torch.no_grad():
            figures = pl_module.figures(self._batch)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
            for logger in trainer.loggers:
                if hasattr(logger.experiment, "add_figure"):
                    logger.experiment.add_figure(name, figure, trainer.global_step, close=False)
            plt.close(figure)
