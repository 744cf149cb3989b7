"""A run that was killed when all that was left were its reports and pictures."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from zoo.callbacks import loop_state
from zoo.callbacks.resumable import KEY


class CompletedRun(Callback):
    """Gives the reports what they had at the end of training, when a resumed run has nothing left to train.

    Lightning then passes training by and goes to `on_fit_end` at once, where callbacks find no metrics, and nothing of
    a validation. It is repeated here, unseen by loggers and checkpoints. Stands before all callbacks that report.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._state = checkpoint.get(KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._state = None  # there is something to train

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._state is not None:
            loop_state.repeat_validation(trainer, pl_module, self._state)
            self._state = None
