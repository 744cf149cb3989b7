"""`zoo check`: reads the user's data before training and says in plain words what it found."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.errors import ZooError

if TYPE_CHECKING:
    from datamodules.audit import Audit

FEW_STEPS = 200
"""Steps of a whole run below which the check says that they are few."""


def check(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file or name, and --any.key VALUE.")],
    step: Annotated[bool, typer.Option("--step/--no-step", help="Measure a training step: memory and time.")] = True,
) -> None:
    """Read a recipe's data before training: counts, sizes, unreadable files, strange labels, leakage; memory and time.

    Settings can be given as for `lightning run`: --data.root DIR. Exit code 2 if something must be mended first.
    """
    from zoo.cli.run import check_arguments
    from zoo.recipes import find_recipe, read_recipe

    path = find_recipe(recipe)
    config = read_recipe(path)
    overrides = list(context.args)
    check_arguments(config, overrides)
    for name in ("lightning.pytorch", "lightning.fabric"):  # what it says of seeds and devices is for runs
        logging.getLogger(name).setLevel(logging.WARNING)
    audit = examine(path, config, overrides)
    print_audit(audit)
    if audit.problems:
        count = len(audit.problems)
        raise ZooError(f"{count} thing{'s' if count > 1 else ''} to mend before training (see above).")
    if step:
        from zoo.cli.runner import execute

        print("One training step on this machine:", flush=True)
        execute(
            path, config, overrides, label=path.stem, run_dir=None, print_config=False, dry_run=True, step_only=True
        )
    print(f"\nNothing stands in the way. Train: lightning run {' '.join([recipe, *overrides])}")


def examine(path: Path, config: dict[str, Any], overrides: list[str]) -> Audit:
    """The audit of a recipe's data module; what keeps model or data from being built is a problem in it."""
    from datamodules.audit import Audit
    from zoo.cli.runner import instantiate

    with tempfile.TemporaryDirectory(prefix="zoo-check-") as folder:
        try:
            cli = instantiate(path, config, overrides, Path(folder))
            data, model, trainer = cli.datamodule, cli.model, cli.trainer
            if not hasattr(data, "audit"):
                raise ZooError(f"{type(data).__name__} cannot look at its data: only the zoo's data modules can.")
            trainer.strategy.connect(model)  # data may follow the model: its tokenizer, its sequences
            data.trainer = trainer
            audit = data.audit()
            if not audit.problems:
                _length(data, trainer, audit)
            return audit
        except ZooError as error:
            return Audit(problems=[str(error)])


def _length(data: Any, trainer: Any, audit: Audit) -> None:
    """Says where the whole run has few steps, or where the data does not fill a batch."""
    try:
        batches = len(data.train_dataloader())
    except TypeError:  # data without a length
        return
    except ZooError as error:
        audit.problems.append(str(error))
        return
    steps = batches * max(0, trainer.max_epochs or 0) // trainer.accumulate_grad_batches
    if 0 < steps < FEW_STEPS and trainer.max_steps < 0:
        audit.warnings.append(
            f"The whole run has {steps} steps, {batches} an epoch, which may be too few to learn in: lower "
            "data.batch_size, or raise trainer.max_epochs (training stops by itself when it no longer gets better)."
        )


def print_audit(audit: Audit) -> None:
    """Facts, tables, warnings and problems, for people."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if audit.facts:
        facts = Table(title="What is there", box=box.SIMPLE, show_header=False, title_justify="left")
        for name, text in audit.facts.items():
            facts.add_row(name, escape(text))
        console.print(facts)
    for title, header, rows in audit.tables:
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for name in header:
            table.add_column(name, justify="left" if name == header[0] else "right")
        for row in rows:
            table.add_row(*(escape(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
        console.print(table)
    for label, style, texts in (("look at", "yellow", audit.warnings), ("mend", "red", audit.problems)):
        for text in texts:
            console.print(f"[{style}]{label}[/] {escape(text)}", soft_wrap=True)
    if not audit.warnings and not audit.problems:
        console.print("[green]Nothing strange was found.[/]")
