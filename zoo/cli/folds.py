"""Cross-validation: what the runs of single folds say together. Used by `zoo folds`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from zoo.errors import ZooError


def folds(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, one a fold, with predictions.csv.")
    ],
    figure: Annotated[
        Path | None, typer.Option("-o", "--output", help="PNG of pooled Kaplan-Meier curves (survival only).")
    ] = None,
) -> None:
    """Mean and standard deviation over folds of classification or survival runs; pooled Kaplan-Meier curves."""
    import numpy as np

    tables = [_read(run / "predictions.csv") for run in runs]
    kinds = {tuple(sorted(table)) for table in tables}
    if len(kinds) > 1:
        raise ZooError("These runs answer different questions: some are classifications, some survival.")
    seen: dict[str, Path] = {}
    for run, table in zip(runs, tables, strict=True):
        for subject in table["subject"]:
            if subject in seen:
                raise ZooError(f"{subject} is held out in {seen[subject]} and in {run}: give one run a fold.")
            seen[subject] = run
    survival = "risk" in tables[0]
    if survival:
        from zoo.nn.survival import concordance, log_rank

        columns = [[np.array(table[key], float) for key in ("time", "event", "risk")] for table in tables]
        scores = {"C-index": [concordance(*part) for part in columns]}
    else:
        from sklearn.metrics import average_precision_score, roc_auc_score

        if figure is not None:
            raise ZooError("Kaplan-Meier curves are for survival runs; these are classifications.")
        pairs = [(np.array(table["label"], int), np.array(table["score"], float)) for table in tables]
        for run, (labels, _) in zip(runs, pairs, strict=True):
            if len(set(labels.tolist())) < 2:
                raise ZooError(f"{run}: all held-out subjects are of one class, so the fold has no score.")
        scores = {
            "AUROC": [float(roc_auc_score(*pair)) for pair in pairs],
            "average precision": [float(average_precision_score(*pair)) for pair in pairs],
        }
    for name, values in scores.items():
        each = ", ".join(f"{value:.3f}" for value in values)
        print(f"{name}\t{np.mean(values):.3f} +- {np.std(values):.3f}\t({each})")
    if survival:
        time, event, risk = (np.concatenate(part) for part in zip(*columns, strict=True))
        p = log_rank(time, event, risk > np.median(risk))
        print(f"log-rank p, all {len(time)} subjects split at the median risk\t{p:.3g}")
        if figure is not None:
            from zoo.tasks.volume_figures import draw_survival

            figure.parent.mkdir(parents=True, exist_ok=True)
            draw_survival(time, event, risk).savefig(figure, dpi=150)
            print(figure)


def _read(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ZooError(
            f"Cannot read {path} ({error.strerror or error}): give run folders of a classification or of survival."
        ) from error
    if not rows or not ({"label", "score"} <= set(rows[0]) or {"time", "event", "risk"} <= set(rows[0])):
        raise ZooError(f"{path} holds no predictions of a classification or of survival.")
    return {key: [row[key] for row in rows] for key in rows[0]}
