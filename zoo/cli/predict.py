"""`zoo predict`: what a fine-tuned text model says of a file: classes, answers, tags; GLUE's submission files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.errors import ZooError


def predict(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A fine-tuned model: manifest, .ckpt or run folder.")],
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Texts, SQuAD JSON or CoNLL; a folder for --glue.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; a folder for --glue.")],
    glue: Annotated[
        str | None, typer.Option(help="Write GLUE's submission files of this task (cola, mnli, ...).")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Text field of .tsv, .csv, .jsonl.")] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Field of the second text, for pairs.")] = None,
    max_length: Annotated[int | None, typer.Option(min=8, help="Tokens of a text; default: the model's most.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that go through the model at once.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Say what a fine-tuned text model makes of a file.

    Classifiers read texts (a line each, or text<TAB>text; .tsv, .csv, .jsonl by columns) and write a .tsv with label
    and probabilities. Question-answering models read SQuAD's JSON and write predictions JSON, with the n-best answers
    and no-answer odds beside it; where the file has answers, the official scores are printed. Taggers read CoNLL files
    (first column) or sentences and write words and tags. With --glue, FILE is the folder of GLUE's files.
    """
    from zoo import loading
    from zoo.cli import predict_text as run
    from zoo.cli.embed import pick_device
    from zoo.tasks import QuestionAnswering, TextClassification, TokenClassification

    if output.exists() and not force and glue is None:
        raise ZooError(f"{output} exists already: choose another name, or overwrite it with --force.")
    if not source.exists():
        raise ZooError(f"There is no file {source}.")
    if glue is None and source.is_dir():
        raise ZooError(f"{source} is a folder: give a file, or --glue TASK for GLUE's files in it.")
    model: Any = loading.load(name)
    if getattr(model, "tokenizer", None) is None:
        raise ZooError(f"{name} has no tokenizer, or reads no text.")
    model = model.to(pick_device(device)).eval()
    length = min(max_length or model.hparams.max_positions, model.hparams.max_positions)
    if isinstance(model, TextClassification):
        if glue is not None:
            run.glue(model, source, output, glue, length, batch_size, force)
            return
        from datamodules.text_records import read_texts

        texts = read_texts(source, text_column, pair_column)
        run.write(output, run.class_table(model, texts, run.classify(model, texts, length, batch_size)))
        print(f"{output}: {len(texts)} texts")
    elif glue is not None:
        raise ZooError(f"--glue is for classifiers; {name} is a {type(model).__name__}.")
    elif isinstance(model, QuestionAnswering):
        run.answer(model, source, output, length, batch_size)
    elif isinstance(model, TokenClassification):
        run.tag(model, source, output, length, batch_size)
    else:
        raise ZooError(f"{name} is no fine-tuned text model but a {type(model).__name__}: fine-tune it first.")
