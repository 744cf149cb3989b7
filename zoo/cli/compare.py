"""Two segmentation runs, subject by subject. Used by `zoo compare`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.errors import ZooError

if TYPE_CHECKING:
    import numpy as np

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a segmentation.")]
BaselineArgument = Annotated[
    Path, typer.Argument(metavar="BASELINE", help="Run folder that it is compared with, on the same held-out subjects.")
]


def compare(run: RunArgument, baseline: BaselineArgument) -> None:
    """Dice (and Hausdorff distance) of two segmentation runs, paired by subject, with Wilcoxon's signed-rank test.

    A subject whose truth lacks a region does not count for that region. p is two-sided.
    """
    import numpy as np
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from scipy.stats import wilcoxon

    first, second = _read(run), _read(baseline)
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise ZooError(
            f"The runs held out different subjects, {odd[0]} only one of them: give both the same data and data.seed."
        )
    columns = [name for name in next(iter(first.values())) if name in next(iter(second.values()))]
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "subjects", "run", "baseline", "difference", "p (Wilcoxon)"):
        table.add_column(name, justify="right" if name else "left")
    for name in columns:
        pairs = np.array([(first[subject][name], second[subject][name]) for subject in sorted(first)])
        pairs = pairs[np.isfinite(pairs).all(1)]
        if not len(pairs):
            continue
        differences = pairs[:, 0] - pairs[:, 1]
        p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
        table.add_row(
            name, str(len(pairs)), _spread(pairs[:, 0]), _spread(pairs[:, 1]), f"{differences.mean():+.3f}", f"{p:.3g}"
        )
    if not table.row_count:
        raise ZooError("The runs share no score that both have for any subject.")
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} +- {values.std():.3f}"


def _read(run: Path) -> dict[str, dict[str, float]]:
    """{subject: {score: value}} of a run's predictions."""
    path = run / "predictions.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ZooError(
            f"Cannot read {path} ({error.strerror or error}): give run folders of a segmentation."
        ) from error
    if not rows or "dice_wt" not in rows[0]:
        raise ZooError(f"{path} holds no scores of a segmentation; classification and survival have `zoo folds`.")
    return {row["subject"]: {name: float(value) for name, value in row.items() if name != "subject"} for row in rows}
