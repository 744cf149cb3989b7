"""What pre-training without real images is worth on real ones: few labels, beside the same network from scratch."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError
from zoo.module import ZooModule
from zoo.tasks.few_labels import Labelled, finetune_accuracy, labels_per_class
from zoo.tasks.probes import linear_probe_accuracy

Cell = dict[str, list[float]]


class TransferReport(Callback):
    """After training: linear probe and fine-tuning on few labels of real images, pre-trained beside untrained.

    The data module gives the images with `labelled_dataloaders() -> (train, held out)`. "Untrained" is a fresh network
    of the same kind for every seed. Prints a table of means and spreads over the seeds and writes
    `<run folder>/results_transfer.json` (every single accuracy) and `results.json` (the means).

    Args:
        per_class: numbers of labels a class.
        seeds: each draws its own labels, classifier and untrained network.
        steps: optimiser steps of fine-tuning; batch_size: of its batches.
        lr: fine-tuning rate of the pre-trained network, its classifier learns ten times as fast; scratch_lr: rate of
            everything from scratch. The defaults are those of Anderson & Farrell 2022.
    """

    def __init__(
        self,
        per_class: Sequence[int] = (1, 5, 20),
        seeds: Sequence[int] = (0, 1, 2),
        steps: int = 100,
        batch_size: int = 16,
        lr: float = 0.015,
        scratch_lr: float = 0.15,
    ) -> None:
        if not per_class or not seeds:
            raise ZooError("TransferReport needs at least one entry in per_class and in seeds.")
        self.per_class, self.seeds = list(per_class), list(seeds)
        self.steps, self.batch_size, self.lr, self.scratch_lr = steps, batch_size, lr, scratch_lr

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.interrupted:
            return
        assert isinstance(pl_module, ZooModule)
        was_training, rates = pl_module.training, {"pre-trained": self.lr, "from scratch": self.scratch_lr}
        train, test = (_collect(trainer, loader, pl_module.device) for loader in _loaders(trainer))
        results: dict[str, dict[int, Cell]] = {
            side: {n: {"linear": [], "finetune": []} for n in self.per_class} for side in rates
        }
        for seed in self.seeds:
            sides = {"pre-trained": pl_module.eval(), "from scratch": _untrained(pl_module, seed)}
            for side, model in sides.items():
                features, held_out = _features(model, train), _features(model, test)
                for count in self.per_class:
                    chosen = labels_per_class(train[1].cpu(), count, seed)
                    few = (features[0][chosen.numpy()], features[1][chosen.numpy()])
                    cell = results[side][count]
                    cell["linear"].append(linear_probe_accuracy(few, held_out))
                    accuracy = finetune_accuracy(
                        model, (train[0][chosen], train[1][chosen]), test, steps=self.steps, seed=seed,
                        batch_size=self.batch_size, lr=rates[side], head_lr=max(self.scratch_lr, self.lr * 10),
                    )  # fmt: skip
                    cell["finetune"].append(accuracy)
        pl_module.train(was_training)
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results_transfer.json").write_text(json.dumps(results, indent=2) + "\n")
        (folder / "results.json").write_text(json.dumps(self._rows(results), indent=2) + "\n")
        self._print(results, len(test[1]))

    def _rows(self, results: dict[str, dict[int, Cell]]) -> list[dict[str, object]]:
        """The means as `ProbeReport` writes its rows."""
        rows: list[dict[str, object]] = []
        ours, scratch = results.values()
        for method, name, baseline in (
            ("finetune", "fine-tuned", "from scratch"),
            ("linear", "linear probe", "same network untrained"),
        ):
            for count in self.per_class:
                value, other = (float(np.mean(side[count][method])) for side in (ours, scratch))
                title = f"{name}, {count} labels a class"
                rows.append({"name": title, "value": value, "baseline": other, "baseline_name": baseline})
        return rows

    def _print(self, results: dict[str, dict[int, Cell]], held_out: int) -> None:
        table = Table(
            title=f"On {held_out} held-out real images, mean and spread of {len(self.seeds)} seeds",
            title_justify="left", box=box.SIMPLE_HEAD,
        )  # fmt: skip
        for column in ("labels a class", "method", *results):
            table.add_column(column, justify="left" if column in ("labels a class", "method") else "right")
        for count in self.per_class:
            for method, name in (("linear", "linear probe"), ("finetune", "fine-tuned")):
                row = [_mean_spread(results[side][count][method]) for side in results]
                table.add_row(str(count), name, *row)
        Console().print(table)


def _loaders(trainer: Trainer) -> tuple:
    data = getattr(trainer, "datamodule", None)
    if not hasattr(data, "labelled_dataloaders"):
        raise ZooError("TransferReport needs a data module with labelled_dataloaders().")
    return data.labelled_dataloaders()


def _collect(trainer: Trainer, loader: object, device: torch.device) -> Labelled:
    """All images of a loader, normalised as the data module does it."""
    images, labels = [], []
    for batch, label in loader:  # type: ignore[attr-defined]
        images.append(trainer.datamodule.on_after_batch_transfer((batch, None), 0)[0])  # type: ignore[attr-defined]
        labels.append(torch.as_tensor(label))
    return torch.cat(images).to(device), torch.cat(labels).to(device)


def _untrained(model: ZooModule, seed: int) -> ZooModule:
    arguments = {key: value for key, value in model.hparams.items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(**arguments).to(model.device).eval()


@torch.no_grad()
def _features(model: ZooModule, data: Labelled) -> tuple[np.ndarray, np.ndarray]:
    parts: list[Tensor] = [model(part).float().cpu() for part in data[0].split(256)]
    return torch.cat(parts).numpy(), data[1].cpu().numpy()


def _mean_spread(values: list[float]) -> str:
    return f"{np.mean(values):.1%} ± {np.std(values) * 100:.1f}"
