"""Does pre-training help? Fine-tunes a forecaster on few unseen scenes, pre-trained and from scratch, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError
from zoo.papers.trajectory_mae.forecaster import TrajectoryForecaster
from zoo.papers.trajectory_mae.metrics import constant_velocity, forecast_errors

Outcome = dict[str, float]
_STEADY = "constant velocity"
_METRICS = {"minADE": "minADE_6 (m)", "minFDE": "minFDE_6 (m)", "MR": "MR_6 (share beyond 2 m)"}


class ForecastReport(Callback):
    """When pre-training ends: two forecasters, one from its encoder and one from random weights, are trained on the
    same few scenes in the same order, and scored on the same others (`datamodule.unseen_scenes`), beside driving on at
    the last speed.

    Writes `results.json`, the last fine-tuned forecaster as `forecaster.ckpt` (for `zoo.load`, `zoo driving plot`,
    `zoo export`), `figures/forecasts.png`, and for made-up data `figures/augmentation.png`.

    Args:
        epochs, batch_size, lr: of the fine-tuning; the rate falls to 0 as half a cosine.
        scratch_lr: rate of the forecaster from scratch, where another suits it better; None takes `lr`.
        seeds: repeats (order of the scenes and random weights); means are reported.
    """

    def __init__(
        self,
        epochs: int = 20,
        batch_size: int = 32,
        lr: float = 1.0e-3,
        scratch_lr: float | None = None,
        seeds: int = 1,
    ) -> None:
        scratch_lr = lr if scratch_lr is None else scratch_lr
        if min(epochs, batch_size, seeds) < 1 or min(lr, scratch_lr) <= 0:
            raise ZooError("ForecastReport needs at least one epoch, one scene a batch, one seed, and a rate above 0.")
        self.epochs, self.batch_size, self.seeds = epochs, batch_size, seeds
        self.rates = {"pre-trained": lr, "from scratch": scratch_lr}

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
        outcomes: dict[str, list[Outcome]] = {name: [] for name in self.rates}
        with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad(), Progress(transient=True) as bar:
            task = bar.add_task("Forecasters", total=2 * self.seeds * self.epochs)
            for repeat in range(self.seeds):
                for name, rate in self.rates.items():
                    torch.manual_seed(seed + repeat)
                    kept = {key: pl_module.hparams[key] for key in ("width", "depth", "normalise")}
                    model = TrajectoryForecaster(**kept)
                    if name == "pre-trained":
                        model.load_encoder(pl_module.state_dict())
                    model.to(device)
                    self.train(model, few, seed + repeat, rate, lambda: bar.advance(task))
                    outcomes[name].append(self.score(held_out, device, lambda batch, m=model: m.predict(batch)[0]))
                    if name == "pre-trained":
                        trained = model
        steady = self.score(held_out, device, constant_velocity)
        rows = []
        for key, label in _METRICS.items():
            value = _mean(outcomes["pre-trained"], key)
            for name, baseline in (("from scratch", _mean(outcomes["from scratch"], key)), (_STEADY, steady[key])):
                rows.append({"name": label, "value": value, "baseline": baseline, "baseline_name": name})
        for metric, (label, name, value) in pl_module.baselines().items():
            if metric in trainer.callback_metrics:
                found = float(trainer.callback_metrics[metric])
                rows.append({"name": label, "value": found, "baseline": value, "baseline_name": name})
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        (folder / "results_seeds.json").write_text(json.dumps(outcomes, indent=2) + "\n", encoding="utf-8")
        _save(trained, folder / "forecaster.ckpt")
        self._print(rows, len(few), outcomes)
        self._draw(folder / "figures", trained, held_out, data)

    def _batches(self, samples: Any, order: np.ndarray, device: torch.device) -> Any:
        from zoo.driving.features import collate
        from zoo.papers.trajectory_mae.inputs import to_tensors

        for start in range(0, len(order), self.batch_size):
            batch = to_tensors(collate([samples[int(i)] for i in order[start : start + self.batch_size]]))
            yield {key: value.to(device) for key, value in batch.items()}

    def train(
        self,
        model: TrajectoryForecaster,
        few: Any,
        seed: int,
        lr: float,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Trains what of `model` takes gradients on the scenes `few`, in an order drawn from `seed`; each epoch ends
        with `tick`."""
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
        samples = [few[index] for index in range(len(few))]
        steps = self.epochs * -(-len(samples) // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rng = np.random.default_rng(seed)
        model.train()
        for _ in range(self.epochs):
            for batch in self._batches(samples, rng.permutation(len(samples)), model.device):
                loss = model.loss(batch).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            tick()
        model.eval()

    def score(self, held_out: Any, device: torch.device, predict: Callable[[dict[str, Tensor]], Tensor]) -> Outcome:
        """minADE, minFDE and MR of `predict` (batch to trajectories) over the scenes `held_out`."""
        found: dict[str, list[Tensor]] = {}
        for batch in self._batches(held_out, np.arange(len(held_out)), device):
            for key, value in forecast_errors(predict(batch), batch["future"]).items():
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

    def _print(self, rows: list[dict[str, Any]], scenes: int, outcomes: dict[str, list[Outcome]]) -> None:
        repeats = f", mean and range of {self.seeds} repeats" if self.seeds > 1 else ""
        title = f"What it learned (fine-tuned on {scenes} scenes of a town it never saw{repeats}; lower is better)"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for column, justify in (("", "left"), ("pre-trained", "right"), ("baseline", "right"), ("", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        keys = {label: key for key, label in _METRICS.items()}

        def cell(value: float, row: dict[str, Any], side: str) -> str:
            if self.seeds == 1 or row["name"] not in keys or side not in outcomes:
                return f"{value:.3f}"
            found = [outcome[keys[row["name"]]] for outcome in outcomes[side]]
            return f"{value:.3f} ({min(found):.2f}-{max(found):.2f})"

        for row in rows:
            name = row["baseline_name"]
            ours, theirs = cell(row["value"], row, "pre-trained"), cell(row["baseline"], row, name)
            table.add_row(row["name"], ours, theirs, name)
        Console().print(table)


def _save(model: TrajectoryForecaster, path: Path) -> None:
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


def _mean(outcomes: list[Outcome], key: str) -> float:
    return sum(outcome[key] for outcome in outcomes) / len(outcomes)
