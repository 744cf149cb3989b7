"""A question-answering model's answers in the official layout."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError
from zoo.tasks.spans import write_answers


class AnswerFiles(Callback):
    """When a run ends, writes `predictions.json`, `nbest_predictions.json` and (2.0) `null_odds.json`.

    The official scoring scripts read the first and the last.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "answers"):
            raise ZooError(f"{type(pl_module).__name__} answers no questions: take AnswerFiles out of the recipe.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.answers is not None and trainer.is_global_zero and not trainer.fast_dev_run:
            write_answers(run_folder(trainer) / "predictions.json", pl_module.answers)
