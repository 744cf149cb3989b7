"""`zoo kfold`: a recipe once for each fold, and what the folds say together."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.errors import ZooError


def kfold(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file or name, and --any.key VALUE.")],
    folds: Annotated[int, typer.Option(min=2, help="How many parts the data is cut into.")] = 5,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for the runs; folds that are done in it already are not run again.")
    ] = None,
) -> None:
    """Train a recipe once for each fold, each on the others' data, and give mean and standard deviation of the metrics.

    The recipe's data is cut into parts that are alike in their classes; patients and drives stay whole. Needs the
    report of the starters (zoo.callbacks.report.Report). Settings can be given as for `lightning run`.
    """
    from zoo.cli.run import check_arguments
    from zoo.module import import_class
    from zoo.recipes import find_recipe, read_recipe

    path = find_recipe(recipe)
    config = read_recipe(path)
    overrides = list(context.args)
    check_arguments(config, overrides)
    data = import_class(config["data"]["class_path"]) if "data" in config else None
    if data is None or not {"folds", "fold"} <= set(inspect.signature(data).parameters):
        raise ZooError(f"The data of {recipe} cannot be cut into folds: it has no settings folds and fold.")
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    if not any(callback["class_path"].endswith(".Report") for callback in callbacks):
        raise ZooError(
            f"{recipe} writes no report: add zoo.callbacks.report.Report to trainer.callbacks (zoo new does)."
        )
    folder = run_dir or Path("runs") / path.stem / f"kfold-{datetime.now():%Y%m%d-%H%M%S}"
    results = []
    for fold in range(folds):
        target = folder / f"fold{fold}"
        done = _read(target, folds)
        if done is None:
            print(f"Fold {fold + 1} of {folds}: {target}", flush=True)
            _run(recipe, [*overrides, "--data.folds", str(folds), "--data.fold", str(fold)], target)
            done = _read(target, folds)
        if done is None:
            raise ZooError(f"{target} has no report.json: the run ended before its report. Its own output says why.")
        results.append(done)
    _report(results, folder)


def _run(recipe: str, overrides: list[str], target: Path) -> None:
    """In a process of its own: nothing of one fold is left for the next."""
    command = [sys.executable, "-m", "zoo.cli.run", "run", recipe, *overrides, "--run-dir", str(target)]
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN_DIR"}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise ZooError(f"The run of {target} ended with exit code {code}; what stands above says why.")


def _read(target: Path, folds: int) -> dict[str, Any] | None:
    """A fold's report; None if there is none of so many folds."""
    from zoo.recipes import load_yaml

    try:
        found = json.loads((target / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    saved = load_yaml(target / "config.yaml") if (target / "config.yaml").is_file() else {}
    of = ((saved or {}).get("data") or {}).get("init_args", {}).get("folds")
    if of != folds:
        raise ZooError(f"{target} is a run of {of} folds, not of {folds}: give another --run-dir.")
    return found


def _report(results: list[dict[str, Any]], folder: Path) -> None:
    import numpy as np
    from rich import box
    from rich.console import Console
    from rich.table import Table

    names = list(results[0]["metrics"])
    table = Table(title=f"{len(results)} folds", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "mean", "sd", *(f"fold {k}" for k in range(len(results)))):
        table.add_column(column, justify="right" if column else "left")
    summary = {}
    for name in names:
        values = [result["metrics"].get(name, {}).get("value") for result in results]
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        mean, sd = (known.mean(), known.std(ddof=1)) if len(known) > 1 else (np.nan, np.nan)
        summary[name] = {"mean": float(mean), "sd": float(sd), "folds": values}
        each = ["-" if value is None else f"{value:.4g}" for value in values]
        style = "bold" if name == results[0]["headline"] else ""
        table.add_row(name, f"{mean:.4g}", f"± {sd:.2g}", *each, style=style)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    counts = [result["samples"] for result in results]
    print(f"Held-out samples: {', '.join(map(str, counts))}. sd is over the folds.")
    path = folder / "kfold.json"
    path.write_text(json.dumps({"samples": counts, "metrics": summary}, indent=2) + "\n", encoding="utf-8")
    print(path)
