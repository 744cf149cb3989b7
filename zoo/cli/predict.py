"""`zoo predict`: what a fine-tuned model says of new files; GLUE's submission files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.errors import ZooError


def predict(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A fine-tuned model: manifest, .ckpt or run folder.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files or folders; of texts one file; a folder for --glue.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; a folder for masks and --glue.")],
    glue: Annotated[
        str | None, typer.Option(help="Write GLUE's submission files of this task (cola, mnli, ...).")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Text field of .tsv, .csv, .jsonl.")] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Field of the second text, for pairs.")] = None,
    max_length: Annotated[int | None, typer.Option(min=8, help="Tokens of a text; default: the model's most.")] = None,
    threshold: Annotated[
        str, typer.Option(help="Labels: the least probability, or `best` for those of the run's report.")
    ] = "0.5",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that go through the model at once.")] = 32,
    map_dir: Annotated[Path | None, typer.Option("--map", help="Scenes: map folder; default: beside or above.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Say what a fine-tuned model makes of new files.

    Pictures, faces, shapes and MRI give a .csv with a row a file or subject: label (or labels) and probabilities,
    points, numbers.
    Segmentations give masks in a folder: PNG for pictures, NIfTI over the subject's own voxels for MRI. Scenes give
    forecasts as .json. Text classifiers read texts (a line each, or text<TAB>text; .tsv, .csv, .jsonl by columns) and
    write a .tsv; question answering reads SQuAD's JSON and writes predictions, with the n-best answers and no-answer
    odds beside it, and the official scores where the file has answers; taggers read CoNLL (first column) or sentences.
    With --glue, FILE is the folder of GLUE's files.
    """
    from zoo import loading
    from zoo.cli import predict_text as run
    from zoo.cli.embed import pick_device
    from zoo.tasks import QuestionAnswering, TextClassification, TokenClassification

    if output.is_file() and not force and glue is None:
        raise ZooError(f"{output} exists already: choose another name, or overwrite it with --force.")
    for file in files:
        if not file.exists():
            raise ZooError(f"There is no file {file}.")
    model: Any = loading.load(name).to(pick_device(device)).eval()
    if getattr(model, "tokenizer", None) is None:
        from zoo.cli.predict_files import predict_files

        if glue is not None or not predict_files(
            model, files, output, batch_size=batch_size, skip_bad=skip_bad, force=force, map_dir=map_dir,
            thresholds=_thresholds(name, threshold),
        ):  # fmt: skip
            raise ZooError(f"{name} is no fine-tuned model that predicts but a {type(model).__name__}: fine-tune it.")
        return
    if len(files) > 1:
        raise ZooError(f"{name} reads one file of texts at a time, not {len(files)}.")
    source = files[0]
    if glue is None and source.is_dir():
        raise ZooError(f"{source} is a folder: give a file, or --glue TASK for GLUE's files in it.")
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
        raise ZooError(f"{name} is no fine-tuned text model (it is {type(model).__name__}): fine-tune it first.")


def _thresholds(name: str, given: str) -> dict[str, float] | float:
    """From `--threshold`: a number, or those of each label that the run's report found best."""
    if given == "best":
        report = Path(name) / "report.json"
        found = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
        if "thresholds" not in found:
            raise ZooError(f"{name} has no report with thresholds of labels: give --threshold a number.")
        return found["thresholds"]
    try:
        value = float(given)
    except ValueError as error:
        raise ZooError(f"--threshold is a number from 0 to 1, or best, not {given!r}.") from error
    if not 0 <= value <= 1:
        raise ZooError(f"--threshold is a number from 0 to 1, or best, not {given!r}.")
    return value
