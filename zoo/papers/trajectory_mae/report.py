"""Does pre-training help? Fine-tunes a forecaster on few unseen scenes, pre-trained and from scratch, side by side."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError
from zoo.papers.trajectory_mae.forecaster import TrajectoryForecaster
from zoo.papers.trajectory_mae.metrics import forecast_errors

_METRICS = {"minADE": "minADE_6 (m)", "minFDE": "minFDE_6 (m)", "MR": "MR_6 (share beyond 2 m)"}


class ForecastReport(Callback):
    """When pre-training ends: two forecasters, one from its encoder and one from random weights, are trained on the
    same few scenes in the same order, and scored on the same others (`datamodule.unseen_scenes`).

    Writes `results.json`, `figures/forecasts.png`, and for made-up data `figures/augmentation.png`.

    Args:
        epochs, batch_size, lr: of the fine-tuning, lr * 0.3 after half and after three quarters of it.
        seeds: repeats; means are reported.
    """

    def __init__(
        self,
        epochs: int = 20,
        batch_size: int = 32,
        lr: float = 1.0e-3,
        seeds: int = 1,
    ) -> None:
        if min(epochs, batch_size, seeds) < 1 or lr <= 0:
            raise ZooError("ForecastReport needs at least one epoch, one scene a batch, one seed, and a rate above 0.")
        self.epochs, self.batch_size, self.lr, self.seeds = epochs, batch_size, lr, seeds

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(trainer.datamodule, "unseen_scenes"):  # type: ignore[attr-defined]
            raise ZooError("ForecastReport needs a data module with unseen_scenes: take it out of the recipe.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        few, held_out = data.unseen_scenes()
        device = pl_module.device
        seed = torch.initial_seed() % 2**31
        with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
            outcomes: dict[str, list[dict[str, float]]] = {"pre-trained": [], "from scratch": []}
            for repeat in range(self.seeds):
                for name in outcomes:
                    torch.manual_seed(seed + repeat)
                    model = TrajectoryForecaster(width=pl_module.hparams["width"], depth=pl_module.hparams["depth"])
                    if name == "pre-trained":
                        model.load_encoder(pl_module.state_dict())
                    model.to(device)
                    self._train(model, few, seed + repeat)
                    outcomes[name].append(self._score(model, held_out))
                    if name == "pre-trained":
                        trained = model
        rows = [
            {"name": label, "value": _mean(outcomes["pre-trained"], key),
             "baseline": _mean(outcomes["from scratch"], key), "baseline_name": "forecaster from scratch"}
            for key, label in _METRICS.items()
        ]  # fmt: skip
        for metric, (label, name, value) in pl_module.baselines().items():
            if metric in trainer.callback_metrics:
                found = float(trainer.callback_metrics[metric])
                rows.append({"name": label, "value": found, "baseline": value, "baseline_name": name})
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        self._print(rows, len(few))
        self._draw(folder / "figures", trained, held_out, data)

    def _batches(self, samples: Any, order: np.ndarray, device: torch.device) -> Any:
        from zoo.driving.features import collate
        from zoo.papers.trajectory_mae.inputs import to_tensors

        for start in range(0, len(order), self.batch_size):
            batch = to_tensors(collate([samples[int(i)] for i in order[start : start + self.batch_size]]))
            yield {key: value.to(device) for key, value in batch.items()}

    def _train(self, model: TrajectoryForecaster, few: Any, seed: int) -> None:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=self.lr)
        rng = np.random.default_rng(seed)
        samples = [few[index] for index in range(len(few))]
        model.train()
        for epoch in range(self.epochs):
            rate = self.lr * 0.3 ** ((epoch >= self.epochs / 2) + (epoch >= 3 * self.epochs / 4))
            for group in optimizer.param_groups:
                group["lr"] = rate
            for batch in self._batches(samples, rng.permutation(len(samples)), model.device):
                loss = model.loss(batch).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.eval()

    def _score(self, model: TrajectoryForecaster, held_out: Any) -> dict[str, float]:
        found: dict[str, list[Tensor]] = {}
        for batch in self._batches(held_out, np.arange(len(held_out)), model.device):
            paths, _ = model.predict(batch)
            for key, value in forecast_errors(paths, batch["future"]).items():
                found.setdefault(key, []).append(value.cpu())
        return {key: float(torch.cat(values).mean()) for key, values in found.items()}

    def _draw(self, folder: Any, model: TrajectoryForecaster, held_out: Any, data: Any) -> None:
        from matplotlib import pyplot as plt

        from zoo.driving.plot import draw_augmentation

        folder.mkdir(parents=True, exist_ok=True)
        order = np.linspace(0, len(held_out) - 1, min(6, len(held_out))).astype(int)
        batch = next(self._batches(held_out, order, model.device))
        figures = model.figures(batch)
        town = data.town()
        if town is not None and (figure := draw_augmentation(*town)) is not None:
            figures["augmentation"] = figure
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
            plt.close(figure)

    def _print(self, rows: list[dict[str, Any]], scenes: int) -> None:
        title = f"What it learned (fine-tuned on {scenes} scenes of a town it never saw; lower is better)"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for column, justify in (("", "left"), ("pre-trained", "right"), ("baseline", "right"), ("", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(row["name"], f"{row['value']:.3f}", f"{row['baseline']:.3f}", row["baseline_name"])
        Console().print(table)


def _mean(outcomes: list[dict[str, float]], key: str) -> float:
    return sum(outcome[key] for outcome in outcomes) / len(outcomes)
