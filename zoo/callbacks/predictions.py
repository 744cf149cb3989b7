"""Predictions of the held-out subjects, as a table."""

from __future__ import annotations

import csv

from lightning import Callback, LightningModule, Trainer

from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError


class Predictions(Callback):
    """Writes `module.predictions`, rows of the last evaluation, to `<run folder>/predictions.csv` when a run ends."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "predictions"):
            raise ZooError(f"{type(pl_module).__name__} keeps no predictions: take the callback out of the recipe.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = pl_module.predictions
        if not rows or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
