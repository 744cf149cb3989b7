"""The curves of a run, drawn from its metrics file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def draw_curves(trainer: Any, panels: Mapping[str, Sequence[str]], baselines: Sequence[str] = ()) -> Figure | None:
    """A panel for each title with the logged metrics named, over the steps; None if there are none yet.

    Args:
        panels: title to metrics; those that were not logged are left out.
        baselines: metrics that are drawn dashed and grey.
    """
    rows: list[dict[str, str]] = []
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.save()
            path = Path(logger.log_dir) / "metrics.csv"
            if path.is_file():
                with path.open(encoding="utf-8", newline="") as file:
                    rows = list(csv.DictReader(file))
    found = {title: [key for key in keys if any(row.get(key) for row in rows)] for title, keys in panels.items()}
    found = {title: keys for title, keys in found.items() if keys}
    if not found:
        return None
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3), squeeze=False)
    for axis, (title, keys) in zip(axes[0], found.items(), strict=True):
        for key in keys:
            points = [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]
            style: dict[str, Any] = {"color": "0.5", "linestyle": "--"} if key in baselines else {}
            axis.plot(*zip(*points, strict=True), marker="" if key.startswith("train") else ".", label=key, **style)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure
