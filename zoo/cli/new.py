"""`zoo new`: a recipe and a README for one's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.errors import ZooError


def new(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="What to do; without it, all tasks.")] = None,
    dest: Annotated[Path | None, typer.Argument(metavar="[DEST]", help="New folder.")] = None,
    model: Annotated[str | None, typer.Option("--from", metavar="MODEL", help="What to start from.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your data, if it lies elsewhere than DEST/data.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Show the tasks and the models that fit each.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:  # fmt: skip
    """Write a starter for your own data: a recipe with comments on what to change, and a README.

    Without TASK it lists the tasks and the models that fit each.
    """
    from zoo import catalog
    from zoo.cli.tables import print_table
    from zoo.starters import STARTERS, find_starter, fitting_models, write_starter

    if task is None or list_all:
        manifests = [catalog.info(name) for name in catalog.list_models()]
        chosen = STARTERS if task is None else [find_starter(task)]
        print_table([{"name": s.task, "what": s.title, "models": _short(fitting_models(s, manifests))} for s in chosen])
        return
    if model is None:
        fits = _short(fitting_models(find_starter(task)))
        raise ZooError(f"Say what to start from: zoo new {task} --from MODEL DEST. Models that fit: {fits}.")
    if dest is None:
        raise ZooError(f"Say where to: zoo new {task} --from {model} DEST.")
    recipe, readme = write_starter(task, model, dest, data=data, force=force)
    print(f"{recipe}\n{readme}\nPut your data where {readme.name} says, then: zoo check {recipe}")


def _short(names: list[str]) -> str:
    """Names with those of one family as a pattern."""
    berts = [name for name in names if name.startswith("bert_uncased")]
    rest = [name for name in names if name not in berts]
    return ", ".join([*rest, *(["bert_uncased_L-*_H-*_A-*"] if berts else [])])
