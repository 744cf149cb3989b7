"""metrics.csv that survives a kill: no row twice, none missing."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger that can go back to the rows that a checkpoint knew of (`keep`)."""

    def __init__(self, save_dir: Path) -> None:
        super().__init__(save_dir=save_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> _Rows:  # type: ignore[override]
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir)  # type: ignore[assignment]
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def keep(self, rows: int) -> None:
        """Cuts the file to its first `rows` rows, which is what a checkpoint recorded."""
        self.experiment.keep(rows)

    def flush(self) -> int:
        """Writes everything through to the disk; returns the number of rows there."""
        return self.experiment.flush() if rank_zero_only.rank == 0 else 0


class _Rows:
    """Same face as Lightning's writer; rewrites of the file are whole or not at all."""

    def __init__(self, log_dir: str) -> None:
        self.path = Path(log_dir) / "metrics.csv"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.metrics: list[dict[str, Any]] = []  # not yet written
        self.keys: list[str] = []
        self.rows = 0
        self._started = False

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        row = {key: value.item() if hasattr(value, "item") else value for key, value in metrics_dict.items()}
        self.metrics.append(row | {"step": self.rows + len(self.metrics) if step is None else step})

    def log_hparams(self, params: dict[str, Any]) -> None:
        """config.yaml has them all."""

    def keep(self, rows: int) -> None:
        if rows == 0:
            return  # the first row starts the file anew
        found: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                found = [row for row, _ in zip(reader, range(rows), strict=False)]
                self.keys = list(reader.fieldnames or [])
        if len(found) < rows:
            rank_zero_warn(f"{self.path} has {len(found)} rows, the checkpoint knew of {rows}: some are lost.")
        self._rewrite(found)

    def save(self) -> None:
        if not self.metrics:
            return
        new = set().union(*self.metrics) - set(self.keys)
        if new or not self._started:
            old: list[dict[str, Any]] = []
            if self._started:
                with self.path.open(newline="") as file:
                    old = list(csv.DictReader(file))
            self.keys = sorted({*self.keys, *new})
            self._rewrite(old + self.metrics)
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.keys).writerows(self.metrics)
            self.rows += len(self.metrics)
        self.metrics = []

    def flush(self) -> int:
        self.save()
        if self._started:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return self.rows

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.keys)
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        self.rows, self._started = len(rows), True
