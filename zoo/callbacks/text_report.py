"""What pre-training on text gave: the probes' table, and fine-tuning on few labels beside the same from scratch."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from lightning import LightningModule, Trainer

from zoo.callbacks.folder import run_folder
from zoo.callbacks.probe_report import ProbeReport, _Row
from zoo.errors import ZooError
from zoo.nn.text_module import TextModule
from zoo.tasks.few_labels import labels_per_class
from zoo.tasks.probes import every_sample
from zoo.tasks.text_few_labels import LabelledBatch, finetune_text_accuracy

_TITLES = {"package": "which package", "bigram_shift": "words swapped?"}


class TextReport(ProbeReport):
    """`ProbeReport`, and rows for classification: fine-tuned from this model beside from scratch, over several seeds.

    The data module gives the texts with `labelled_dataloaders(task) -> (train, held out)`. Each seed draws its own
    labels, classifier and from-scratch network. Every single accuracy goes to `<run folder>/results_finetune.json`, the
    means to the table and to `results.json`.

    Args:
        task: which labels of the data module's. Of its text pre-training: "package" (which package a docstring is from)
            or "bigram_shift" (were two neighbouring words swapped?).
        per_class: numbers of labelled texts a class.
        seeds: as above.
        steps, batch_size: of each fine-tuning.
        lr, scratch_lr: fine-tuning rate of the pre-trained network, and of the one from scratch.
        knn_k: neighbours of the k-NN probe.
    """

    def __init__(
        self,
        per_class: Sequence[int] = (10, 40),
        seeds: Sequence[int] = (0, 1, 2),
        steps: int = 100,
        batch_size: int = 16,
        lr: float = 1e-3,
        scratch_lr: float = 1e-3,
        knn_k: int = 20,
        task: str = "package",
    ) -> None:
        super().__init__(knn_k)
        if not per_class or not seeds:
            raise ZooError("TextReport needs at least one entry in per_class and in seeds.")
        self.per_class, self.seeds = list(per_class), list(seeds)
        self.steps, self.batch_size, self.task = steps, batch_size, task
        self.rates = {"fine-tuned": lr, "from scratch": scratch_lr}

    def more_rows(self, trainer: Trainer, pl_module: LightningModule) -> list[_Row]:
        assert isinstance(pl_module, TextModule)
        with every_sample(trainer.datamodule):  # type: ignore[attr-defined]
            loaders = trainer.datamodule.labelled_dataloaders(self.task)  # type: ignore[attr-defined]
            train, test = (_collect(loader, pl_module.device) for loader in loaders)
        rows, single = [], {}
        for count in self.per_class:
            found: dict[str, list[float]] = {side: [] for side in self.rates}
            for seed in self.seeds:
                chosen = labels_per_class(train[1].cpu(), count, seed).to(train[1].device)
                few = ({key: value[chosen] for key, value in train[0].items()}, train[1][chosen])
                for side, lr in self.rates.items():
                    accuracy = finetune_text_accuracy(
                        pl_module, few, test, pretrained=side == "fine-tuned", steps=self.steps,
                        batch_size=self.batch_size, lr=lr, seed=seed,
                    )  # fmt: skip
                    found[side].append(accuracy)
            single[str(count)] = found
            ours, scratch = found.values()
            title = _TITLES.get(self.task, self.task)
            name = f"{title}: fine-tuned, {count} texts a class (± {np.std(ours):.1%})"
            baseline = f"from scratch (± {np.std(scratch):.1%}), {len(self.seeds)} seeds"
            rows.append(_Row(name, float(np.mean(ours)), float(np.mean(scratch)), baseline))
        path = run_folder(trainer) / "results_finetune.json"
        path.write_text(json.dumps(single, indent=2) + "\n", encoding="utf-8")
        return rows


def _collect(loader: object, device: torch.device) -> LabelledBatch:
    """All texts of a loader as one batch."""
    batches, labels = zip(*loader, strict=True)  # type: ignore[call-overload]
    whole = {key: torch.cat([batch[key] for batch in batches]).to(device) for key in batches[0]}
    return whole, torch.cat([torch.as_tensor(label) for label in labels]).to(device)
