"""Rows of texts in files: TSV as GLUE has it, CSV, JSONL, and plain lines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.nn.text import read_utf8

Texts = list[str | tuple[str, str]]


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Lines of a TSV without quoting, as GLUE's are."""
    lines = read_utf8(path).removeprefix("\ufeff").split("\n")
    return [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1) if line.strip()]


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a .jsonl, .csv, or .tsv (the latter without quoting, as GLUE's), and where each stands."""
    text = read_utf8(path).removeprefix("\ufeff")
    if path.suffix == ".jsonl":
        return [
            (f"{path}, line {n}", _row(path, n, line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()
        ]
    tabs: dict[str, Any] = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if path.suffix == ".tsv" else {}
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), **tabs))
    except csv.Error as error:
        raise ZooError(f"Cannot read {path}: {' '.join(str(error).split())[:150]}.") from error
    return [(f"{path}, row {n}", row) for n, row in enumerate(rows, 1)]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ZooError(f"{path}, line {number}: not JSON ({error.msg}).") from error
    if not isinstance(row, dict):
        raise ZooError(f"{path}, line {number}: not a JSON object with fields, but {type(row).__name__}.")
    return row


def read_texts(path: Path, text_column: str = "text", pair_column: str | None = None) -> Texts:
    """Unlabelled texts: a text file, one `text` or `text<TAB>text` a line, or the columns of a .csv, .tsv or .jsonl.

    Empty lines of a text file are passed over. No other column is read.

    Raises:
        ZooError: the file cannot be read, lacks a column, or has no text.
    """
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        found: Texts = []
        for where, row in read_records(path):
            for column in (text_column, pair_column):
                if column is not None and not isinstance(row.get(column), str):
                    raise ZooError(f"{where} has no text under {column!r} (it has {', '.join(map(str, row))}).")
            found.append((row[text_column], row[pair_column]) if pair_column else row[text_column])
    else:
        lines = [line for line in read_utf8(path).splitlines() if line.strip()]
        found = [tuple(line.split("\t", 1)) if "\t" in line else line for line in lines]  # type: ignore[misc]
    if not found:
        raise ZooError(f"There is no text in {path}.")
    return found
