"""The number that shows that a method learned: frozen features probed before and after training, in one table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table

from zoo.callbacks.folder import run_folder
from zoo.callbacks.modes import evaluating
from zoo.errors import ZooError
from zoo.seeding import keep_draws
from zoo.tasks.probes import every_sample, extract_features, knn_accuracy, linear_probe_accuracy


@dataclass
class _Row:
    name: str
    value: float
    baseline: float
    baseline_name: str


class ProbeReport(Callback):
    """k-NN and linear probe of `module(x)` on the data module's labels, beside the same network before training.

    The data module gives the images with `labelled_dataloaders() -> (train, held out)`. A module may add rows for
    metrics of its own with `baselines() -> {logged metric: (row name, baseline name, baseline value)}`.
    The table is printed when training ends and written to `<run folder>/results.json`.

    Args:
        knn_k: neighbours of the k-NN probe.
    """

    def __init__(self, knn_k: int = 20) -> None:
        self.knn_k = knn_k
        self._before: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(trainer.datamodule, "labelled_dataloaders"):  # type: ignore[attr-defined]
            raise ZooError("ProbeReport needs a data module with labels: take it out of the recipe for this data.")
        if trainer.is_global_zero and not self._before:  # a resumed run knows it already
            self._before = self._probe(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = dict(state_dict["before"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        after = self._probe(trainer, pl_module)
        rows = []
        for metric, (name, baseline_name, baseline) in getattr(pl_module, "baselines", dict)().items():
            if metric in trainer.callback_metrics:
                rows.append(_Row(name, float(trainer.callback_metrics[metric]), baseline, baseline_name))
        rows += [_Row(name, after[name], self._before[name], "same network untrained") for name in after]
        self._print(rows)
        path = run_folder(trainer) / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n", encoding="utf-8")

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        device = pl_module.device

        def features(images: torch.Tensor) -> torch.Tensor:
            images, _ = trainer.datamodule.on_after_batch_transfer((images, None), 0)  # type: ignore[attr-defined]
            return pl_module(images)

        # Probing must not change what training draws afterwards.
        with evaluating(pl_module), keep_draws(), every_sample(trainer.datamodule):  # type: ignore[attr-defined]
            train, held_out = trainer.datamodule.labelled_dataloaders()  # type: ignore[attr-defined]
            train_set, test_set = (extract_features(features, loader, device) for loader in (train, held_out))
        return {
            f"k-NN accuracy (k = {self.knn_k})": knn_accuracy(train_set, test_set, k=self.knn_k),
            "linear probe accuracy": linear_probe_accuracy(train_set, test_set),
        }

    @staticmethod
    def _print(rows: list[_Row]) -> None:
        table = Table(title="What it learned (held-out images)", box=box.SIMPLE_HEAD, title_justify="left")
        for column, justify in (("", "left"), ("trained", "right"), ("baseline", "right"), ("", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(row.name, f"{row.value:.1%}", f"{row.baseline:.1%}", row.baseline_name)
        Console().print(table)
