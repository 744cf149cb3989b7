"""At the end of a fine-tuning run: metrics with confidence intervals and pictures, in one HTML file."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich import box
from rich.console import Console
from rich.table import Table

from zoo.callbacks.curves import draw_curves
from zoo.callbacks.folder import run_folder
from zoo.callbacks.modes import evaluating
from zoo.callbacks.report_page import Page
from zoo.checkpoint_files import read_checkpoint
from zoo.errors import ZooError
from zoo.module import count_parameters
from zoo.seeding import keep_draws
from zoo.tasks.outcomes import Interval, Outcome, intervals
from zoo.tasks.probes import every_sample


class Report(Callback):
    """Evaluates the best epoch on the held-out data when training ends, and writes what a person and a script read.

    `report.html` is one file without links to others: metrics with bootstrap intervals, calibration, confusion matrix
    or spread, the run's pictures, curves, the data, the settings. Beside it `report.json` (the numbers; `zoo.load` of
    the run takes the checkpoint that it names) and `held_out.csv` (a row a sample). The module has `outcome_rows` and
    `outcome` (`zoo.tasks.outcomes`).

    Args:
        rounds: selections of the bootstrap; 0 for no intervals.
        level: of the intervals.
        limit_rows: rows of `held_out.csv` at most.
    """

    def __init__(self, rounds: int = 300, level: float = 0.95, limit_rows: int = 100_000) -> None:
        if rounds < 0 or not 0 < level < 1:
            raise ZooError("Report: rounds is 0 or more, level lies between 0 and 1.")
        self.rounds, self.level, self.limit_rows = rounds, level, limit_rows
        self._seconds = 0.0  # of earlier parts of a resumed run
        self._started = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "outcome"):
            raise ZooError(f"{type(pl_module).__name__} has nothing to report: take Report out of the recipe.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds + time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = float(state_dict["seconds"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.interrupted:
            return
        folder = run_folder(trainer)
        seconds = self._seconds + time.monotonic() - self._started
        checkpoint = _best(trainer)
        outcome = evaluate(trainer, pl_module, checkpoint)
        if not outcome.count:
            return
        found = intervals(outcome, self.rounds, self.level)
        self._print(outcome, found)
        facts = self._facts(trainer, pl_module, checkpoint, seconds)
        _write_table(folder / "held_out.csv", outcome, self.limit_rows)
        _write_numbers(folder, outcome, found, checkpoint, seconds, self.level)
        page = self._page(trainer, outcome, found, facts, folder)
        (folder / "report.html").write_text(page, encoding="utf-8")

    def _print(self, outcome: Outcome, found: dict[str, Interval]) -> None:
        title = f"On {outcome.count} held-out samples, with {self.level:.0%} intervals"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("", "value", "from", "to"):
            table.add_column(column, justify="right" if column else "left")
        for name, interval in found.items():
            style = "bold" if name == outcome.headline else ""
            limits = (interval.low, interval.high) if interval.low != interval.high else ()
            table.add_row(name, *(f"{number:.4g}" for number in (interval.value, *limits)), style=style)
        Console().print(table)

    def _facts(
        self, trainer: Trainer, module: LightningModule, checkpoint: Path | None, seconds: float
    ) -> dict[str, str]:
        total, trained = count_parameters(module), count_parameters(module, trainable_only=True)
        data = trainer.datamodule  # type: ignore[attr-defined]
        facts = {
            "model": type(module).__name__,
            "started from": str(
                next(
                    (given for key in ("backbone", "network", "pretrained") if (given := module.hparams.get(key))),
                    "see the settings",
                )
            ),
            "parameters": f"{total:,}, {trained:,} of them trained",
            "data": f"{type(data).__name__}, {getattr(data, 'hparams', {}).get('root', '')}",
            "epochs": f"{trainer.current_epoch} of at most {trainer.max_epochs}, {trainer.global_step} steps",
            "weights": f"{checkpoint.name} (the best epoch on the held-out data)" if checkpoint else "those of the end",
            "time": f"{seconds:.0f} s on {trainer.world_size} x {trainer.strategy.root_device.type}",
        }
        facts["started from"] = facts["started from"] if len(facts["started from"]) < 120 else "see the settings"
        return facts

    def _page(
        self, trainer: Trainer, outcome: Outcome, found: dict[str, Interval], facts: dict[str, str], folder: Path
    ) -> str:
        page = Page(_title(folder))
        page.metrics(outcome, found, self.level)
        page.facts("This run", facts)
        audit = getattr(trainer.datamodule, "audit", None)  # type: ignore[attr-defined]
        if audit is not None:
            page.audit(audit(read=False))
        for name, figure in outcome.figures().items():
            page.figure(name, figure)
        page.pictures(folder / "figures")
        keys = sorted({key for key in trainer.callback_metrics if not key.endswith(("_step", "_epoch"))})
        panels = {"loss": [key for key in keys if "loss" in key]}
        panels |= {key: [key] for key in keys if key.startswith("val/") and "loss" not in key and "_std" not in key}
        curves = draw_curves(trainer, dict(list(panels.items())[:5]))
        if curves is not None:
            page.figure("curves", curves)
        page.settings(folder / "config.yaml")
        return page.html()


def evaluate(trainer: Trainer, module: LightningModule, checkpoint: Path | None) -> Outcome:
    """The module with the weights of `checkpoint` (None: as it is) on the trainer's whole validation data."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    before = None
    if checkpoint is not None:
        before = {key: value.detach().clone() for key, value in module.state_dict().items()}
        module.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    rows = []
    try:
        with evaluating(module), keep_draws(), torch.no_grad(), every_sample(data):
            for batch in data.val_dataloader():
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                with trainer.precision_plugin.forward_context():
                    rows.append(module.outcome_rows(batch))
            outcome: Outcome = module.outcome(rows, data) if rows else Outcome(0, "")
    finally:
        if before is not None:
            module.load_state_dict(before)
    names = held_out_names(data)
    if not outcome.names and len(names) == outcome.count:
        outcome.names = names
    return outcome


def held_out_names(data: Any) -> list[str]:
    """What the held-out samples are called, as far as the data says: files, subjects, scenes."""
    held_out = next(
        (found for key in ("val_data", "test_data") if (found := getattr(data, key, None)) is not None), None
    )
    if held_out is None:
        return []
    subjects = getattr(held_out, "subjects", None)
    if subjects is not None:
        return [str(getattr(subject, "id", subject)) for subject in subjects]
    pairs = getattr(held_out, "pairs", None)
    if pairs is not None:
        return [str(pair[0]) for pair in pairs]
    names = getattr(held_out, "names", None)
    return [str(name) for name in names] if names is not None else []


def _best(trainer: Trainer) -> Path | None:
    """The best checkpoint by the recipe's own monitor, if there is one."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            path = Path(callback.best_model_path)
            if path.is_file():
                return path
    return None


def _title(folder: Path) -> str:
    from zoo.recipes import load_yaml

    config = load_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    return str(((config or {}).get("recipe") or {}).get("title") or "Fine-tuning report")


def _write_table(path: Path, outcome: Outcome, limit: int) -> None:
    columns = outcome.table()
    if not columns:
        return
    if outcome.names:
        columns = {"sample": outcome.names, **columns}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(row for row, _ in zip(zip(*columns.values(), strict=True), range(limit), strict=False))


def _write_numbers(
    folder: Path, outcome: Outcome, found: dict[str, Interval], checkpoint: Path | None, seconds: float, level: float
) -> None:
    values = {
        "headline": outcome.headline,
        "samples": outcome.count,
        "level": level,
        "metrics": {name: {k: v if np.isfinite(v) else None for k, v in vars(i).items()} for name, i in found.items()},
        "checkpoint": os.path.relpath(checkpoint, folder) if checkpoint else None,
        "seconds": round(seconds, 1),
        **outcome.extras(),
    }
    (folder / "report.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
