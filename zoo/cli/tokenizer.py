"""`zoo tokenizer`: train a tokenizer on your text."""

from __future__ import annotations

import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zoo.errors import ZooError


class Kind(StrEnum):
    """What `--kind` may be."""

    wordpiece = "wordpiece"
    bpe = "bpe"


def tokenizer(
    sources: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Files, folders, hub ids, or python-docs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="tokenizer.json")],
    vocab_size: Annotated[int, typer.Option(help="At most so many tokens.")] = 30522,
    kind: Annotated[Kind, typer.Option(help="BERT's WordPiece, or byte-level BPE.")] = Kind.wordpiece,
    keep_case: Annotated[bool, typer.Option("--keep-case", help="Do not lower-case (wordpiece).")] = False,
    column: Annotated[str, typer.Option(help="Text field of JSONL and Parquet.")] = "text",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out documents that are broken or empty.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Train a tokenizer on text, for `data.tokenizer` of a recipe."""
    from datamodules.text import Documents
    from datamodules.text_base import CountedDocuments
    from datamodules.text_tokenizer import train_tokenizer

    if output.suffix != ".json":
        raise ZooError(f"A tokenizer is a .json file, not {output}.")
    if output.exists() and not force:
        raise ZooError(f"{output} exists already: choose another name, or overwrite it with --force.")
    documents = [Documents(source, column, "skip" if skip_bad else "error") for source in sources]
    made = train_tokenizer(CountedDocuments(documents), vocab_size, kind.value, lowercase=not keep_case)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=output.parent, delete=False, encoding="utf-8") as new:
            new.write(made.to_str())
        os.replace(new.name, output)
    except OSError as error:
        raise ZooError(f"Cannot write {output}: {error.strerror or error}.") from error
    skipped = sum(part.num_skipped for part in documents)
    count = f", {skipped} documents skipped" if skipped else ""
    print(f"{output}: {made.get_vocab_size()} tokens{count}")
