"""What pre-training without real images is worth on real ones: few labels, beside the same network from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError
from zoo.module import ZooModule
from zoo.tasks.few_labels import Labelled, finetune_accuracy, labels_per_class
from zoo.tasks.probes import linear_probe_accuracy

Cell = dict[str, list[float]]
_MOST_TO_CHOOSE_ON = 400


class TransferReport(Callback):
    """After training: linear probe and fine-tuning on few labels of real images, pre-trained beside untrained.

    The data module gives the images with `labelled_dataloaders() -> (train, held out)`. "Untrained" is a fresh network
    of the same kind for every seed. Both sides choose their learning rate from the same few, for each number of labels:
    on draws of labels that are not reported, by the accuracy on training images that were not drawn. Held-out images
    have no part in it.

    Where the module has `held_out_scores(batch) -> {name: value}`, its own task comes first: the validation data,
    before and after training.

    Prints a table of means and spreads over the seeds and writes `<run folder>/results_transfer.json` (every single
    accuracy, and the rates) and `results.json` (the means).

    Args:
        per_class: numbers of labels a class.
        seeds: each draws its own labels, classifier and untrained network.
        steps: optimiser steps of fine-tuning; batch_size: of its batches.
        lrs: rates to choose from.
        head_lr_factor: how many times as fast the classifier learns, on both sides.
        tuning_draws: draws of labels that the rate is chosen with.
        anew: parts of the backbone, such as "layer4", that start anew on the pre-trained side as well: last stages may
            know the pre-training task and little else. Probe and fine-tuning both get the network without them.
    """

    def __init__(
        self,
        per_class: Sequence[int] = (1, 5, 20),
        seeds: Sequence[int] = (0, 1, 2),
        steps: int = 100,
        batch_size: int = 16,
        lrs: Sequence[float] = (0.015, 0.05, 0.15),
        head_lr_factor: float = 1.0,
        tuning_draws: int = 2,
        anew: Sequence[str] = (),
    ) -> None:
        if not per_class or not seeds or not lrs:
            raise ZooError("TransferReport needs at least one entry in per_class, in seeds and in lrs.")
        if tuning_draws < 1:
            raise ZooError(f"A rate is chosen with one draw of labels or more, not {tuning_draws}.")
        self.per_class, self.seeds, self.lrs = list(per_class), list(seeds), list(lrs)
        self.steps, self.batch_size, self.head_lr_factor = steps, batch_size, head_lr_factor
        self.anew = list(anew)
        first = max(self.seeds) + 1
        self.tuning_seeds = list(range(first, first + tuning_draws))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        backbone = getattr(pl_module, "backbone", None)
        for name in self.anew:
            if not isinstance(getattr(backbone, name, None), nn.Module):
                parts = ", ".join(part for part, _ in backbone.named_children()) if backbone is not None else "none"
                raise ZooError(f"TransferReport's anew: the backbone has no part {name!r}; it has {parts}.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.interrupted:
            return
        assert isinstance(pl_module, ZooModule)
        was_training = pl_module.training
        pl_module.eval()
        train, test = (_collect(trainer, loader, pl_module.device) for loader in _loaders(trainer))
        sides: dict[str, Callable[[int], ZooModule]] = {
            "pre-trained": lambda seed: self._transferred(pl_module, seed),
            "from scratch": lambda seed: _untrained(pl_module, seed),
        }
        own = [_own_task(trainer, model) for model in (pl_module, _untrained(pl_module, self.seeds[0]))]
        rates = {side: {n: self._choose_rate(make, train, n) for n in self.per_class} for side, make in sides.items()}
        results: dict[str, dict[int, Cell]] = {
            side: {n: {"linear": [], "finetune": []} for n in self.per_class} for side in sides
        }
        for side, make in sides.items():
            for seed in self.seeds:
                model = make(seed)
                features, held_out = _features(model, train), _features(model, test)
                for count in self.per_class:
                    chosen = labels_per_class(train[1].cpu(), count, seed)
                    few = (features[0][chosen.numpy()], features[1][chosen.numpy()])
                    cell = results[side][count]
                    cell["linear"].append(linear_probe_accuracy(few, held_out))
                    cell["finetune"].append(self._finetune(model, train, chosen, test, seed, rates[side][count]))
        pl_module.train(was_training)
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results_transfer.json").write_text(json.dumps(results | {"rates": rates}, indent=2) + "\n")
        first: list[dict[str, object]] = [
            {"name": name, "value": value, "baseline": own[1][name], "baseline_name": "same network untrained"}
            for name, value in own[0].items()
        ]
        (folder / "results.json").write_text(json.dumps(first + self._rows(results), indent=2) + "\n")
        for row in first:
            Console().print(f"{row['name']}: {row['value']:.1%} (untrained {row['baseline']:.1%})", highlight=False)
        self._print(results, len(test[1]))

    def _transferred(self, model: ZooModule, seed: int) -> ZooModule:
        """The pre-trained network; what starts anew is what `seed` gives the side from scratch."""
        if not self.anew:
            return model
        fresh = _untrained(model, seed)
        begins = tuple(f"backbone.{name}." for name in self.anew)
        kept = {key: value for key, value in model.state_dict().items() if not key.startswith(begins)}
        fresh.load_state_dict(fresh.state_dict() | kept)
        return fresh

    def _choose_rate(self, make: Callable[[int], ZooModule], train: Labelled, count: int) -> float:
        """The rate with the best mean accuracy on training images without a label, up to a few hundred of them."""
        if len(self.lrs) == 1:
            return self.lrs[0]
        means = dict.fromkeys(self.lrs, 0.0)
        for seed in self.tuning_seeds:
            model, chosen = make(seed), labels_per_class(train[1].cpu(), count, seed)
            others = torch.ones(len(train[1]), dtype=torch.bool)
            others[chosen] = False
            rest = others.nonzero()[:, 0]
            if not len(rest):
                raise ZooError(f"{count} labels a class leave no training images to choose a rate on: give one in lrs.")
            rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:_MOST_TO_CHOOSE_ON]]
            for lr in self.lrs:
                means[lr] += self._finetune(model, train, chosen, (train[0][rest], train[1][rest]), seed, lr)
        return max(means, key=lambda lr: means[lr])

    def _finetune(
        self, model: ZooModule, train: Labelled, chosen: Tensor, test: Labelled, seed: int, lr: float
    ) -> float:
        few = (train[0][chosen], train[1][chosen])
        return finetune_accuracy(
            model, few, test, steps=self.steps, batch_size=self.batch_size, lr=lr, head_lr=lr * self.head_lr_factor,
            seed=seed,
        )  # fmt: skip

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


@torch.no_grad()
def _own_task(trainer: Trainer, model: ZooModule) -> dict[str, float]:
    """Means over the validation data of what the module says of its own task; nothing where it says nothing."""
    if not hasattr(model, "held_out_scores"):
        return {}
    data, total, count = trainer.datamodule, dict[str, float](), 0  # type: ignore[attr-defined]
    for batch in data.val_dataloader():
        batch = data.on_after_batch_transfer(move_data_to_device(batch, model.device), 0)
        for name, value in model.held_out_scores(batch).items():
            total[name] = total.get(name, 0.0) + value * len(batch[0])
        count += len(batch[0])
    return {name: value / count for name, value in total.items()}


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
