"""Tables for people on a terminal, tab-separated lines for everything else."""

from __future__ import annotations

import sys
from typing import Any


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints rows that share their keys: a table on a terminal; in a pipe a header and one line each, by tabs."""
    header = list(rows[0])
    if not sys.stdout.isatty():
        for line in [header, *([_plain(row[key]) for key in header] for row in rows)]:
            print("\t".join(line))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for key in header:
        number = any(isinstance(row[key], int) for row in rows)
        table.add_column(key, justify="right" if number else "left", no_wrap=key == "name", overflow="fold")
    for row in rows:
        table.add_row(*(_short(row[key]) for key in header))
    Console().print(table)


def print_facts(text: str) -> None:
    """Prints what `str(manifest)` or `str(recipe)` gives; on a terminal long lines are wrapped under their values."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title, *lines = text.splitlines()
    table = Table.grid(padding=(0, 2, 0, 1))
    for line in lines:
        table.add_row(Text(line[2:13].rstrip(), style="cyan"), Text(line[13:]))
    console = Console()
    console.print(Text(title, style="bold"))
    console.print(table)


def _plain(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _short(value: Any) -> str:
    if isinstance(value, int) and value >= 1_000_000:
        return f"{value / 1e6:.1f} M"
    if isinstance(value, int) and value >= 10_000:
        return f"{value / 1e3:.1f} k"
    from rich.markup import escape

    return escape(_plain(value))
