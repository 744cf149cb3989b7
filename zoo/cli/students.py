"""`zoo students`: Pre-trained Distillation beside its baselines, and the fine-tuning grid; all stages are recipes."""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.errors import ZooError

Value = str | int | float | Path
ROOM = "well_read_students"
OFFLINE = ("made-up", "python-docs")  # sources that need no file


@dataclass(frozen=True)
class Method:
    """A row of the table: where the student starts, and what it then learns from."""

    key: str
    title: str
    recipe: str  # "finetune" on labels, "distill" on unlabelled text
    start: str  # "student" or "teacher": whose pre-training
    pretrained: bool = True
    truncated: bool = False


app = typer.Typer(
    name="students",
    help="Compact BERTs: compare ways to train them, search fine-tuning settings.",
    epilog="Example: zoo students compare runs/students",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
BATCHES, RATES = (8, 16, 32, 64, 128), (3e-4, 1e-4, 5e-5, 3e-5)  # the official README's grid
METHODS = (
    Method("PD", "pre-trained, distilled", "distill", "student"),
    Method("PF", "pre-trained, fine-tuned", "finetune", "student"),
    Method("TD", "teacher's bottom layers, distilled", "distill", "teacher", truncated=True),
    Method("TF", "teacher's bottom layers, fine-tuned", "finetune", "teacher", truncated=True),
    Method("D", "random start, distilled", "distill", "student", pretrained=False),
    Method("F", "random start, fine-tuned", "finetune", "student", pretrained=False),
)


@app.command(epilog="Example: zoo students compare runs/students")
def compare(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the runs, the table and the picture go.")],
    text: Annotated[str, typer.Option(help="Text for pre-training: a file, folder or hub id.")] = "made-up",
    labelled: Annotated[str, typer.Option(help="Folder with train and dev as .tsv, .csv or .jsonl.")] = "made-up",
    transfer: Annotated[str, typer.Option(help="Unlabelled text, one a line, to distil on.")] = "made-up",
    pair_column: Annotated[
        str | None, typer.Option(help="Column of the second text, if the labelled examples are pairs.")
    ] = None,
    labels: Annotated[int, typer.Option(min=2, help="Labelled examples for teacher and fine-tuning.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each student gets.")] = 3,
    student: Annotated[str, typer.Option(help="Layers x width of the student.")] = "2x128",
    teacher: Annotated[
        str, typer.Option(help="Likewise of the teacher; of equal width, TD and TF are the student's size.")
    ] = "4x128",
    vocab_size: Annotated[int, typer.Option(min=100, help="Of the tokenizer that is trained on the text.")] = 512,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a text, or of both texts of a pair.")] = 40,
    teacher_steps: Annotated[int, typer.Option(min=1, help="Pre-training steps of the teacher.")] = 1200,
    student_steps: Annotated[int, typer.Option(min=1, help="Pre-training steps of the student.")] = 1200,
    student_run: Annotated[
        Path | None, typer.Option(help="Run folder of a pre-trained student, instead of pre-training one on the text.")
    ] = None,
    finetune_epochs: Annotated[int, typer.Option(min=1, help="Passes over the labelled examples.")] = 40,
    distill_epochs: Annotated[int, typer.Option(min=1, help="Passes over the transfer set.")] = 4,
    pretrain_batch: Annotated[int, typer.Option(min=1, help="Sequences of a pre-training step.")] = 32,
    pairs: Annotated[bool, typer.Option(help="Pre-train with next-sentence prediction too.")] = True,
    init_std: Annotated[float, typer.Option(help="Spread of the start values; small networks like more.")] = 0.05,
    pretrain_lr: Annotated[float, typer.Option(help="Peak rate of pre-training.")] = 1e-3,
    lr: Annotated[float, typer.Option(help="Peak rate of the student's other stages.")] = 3e-4,
    teacher_lr: Annotated[float, typer.Option(help="Peak rate of the teacher's fine-tuning.")] = 3e-4,
    teacher_tries: Annotated[
        int, typer.Option(min=1, help="Fine-tunings of the teacher; the best on the development set teaches.")
    ] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes of each loader.")] = 0,
) -> None:
    """Compare Pre-trained Distillation with its baselines, the teacher trained in the same command.

    A teacher and a student are pre-trained, the teacher is fine-tuned; then, for each seed, PD, PF, distillation and
    fine-tuning from a random start, and both from the teacher's bottom layers, are run and scored on the development
    set. Stages that are done already are not run again. Without files of yours the text is a made-up language, the task
    whether two sentences are about the same topic. "python-docs" in place of a file is Python's own manual and
    docstrings, the task which package a docstring is from; held-out docstrings are in none of the training text.
    """
    sizes = {"student": _size(student), "teacher": _size(teacher)}
    # Now, and not when the teacher has been trained.
    if labelled not in OFFLINE and not Path(labelled).expanduser().is_dir():
        raise ZooError(f"There is no folder {labelled}: give --labelled one with train and dev.")
    if transfer not in OFFLINE and not Path(transfer).expanduser().is_file():
        raise ZooError(f"There is no file {transfer}: give --transfer unlabelled text, one a line.")
    pair_column = "pair" if labelled == "made-up" else pair_column
    cut: Value = "null"
    if student_run is not None:
        if not student_run.is_dir():
            raise ZooError(f"There is no run folder {student_run}: give --student-run one.")
        cut = _tokenizer_of(student_run, output / "tokenizer.json")
    text, labelled, transfer = _offline_text(output, text, labelled, transfer)
    guessing = _read(labelled, pair_column, transfer)
    common: dict[str, Value] = {"data.max_length": max_length, "data.num_workers": workers}
    common["trainer.enable_model_summary"] = "false"  # of some twenty runs
    tuned = {**common, "data.root": labelled, "data.bucket_by_length": "true", "trainer.callbacks": "null"}
    tuned |= {} if pair_column is None else {"data.pair_column": pair_column}

    def pretrain(who: str, steps: int) -> Path:
        layers, width = sizes[who]
        folder = output / f"{who}_pretrained"
        changes = {**common, "data.root": text, "data.tokenizer": cut, "data.vocab_size": vocab_size,
                   "data.batch_size": pretrain_batch, "data.val_fraction": 0.05,
                   "data.examples": "bert" if pairs else "packed",
                   "data.short_prob": 0.0, "data.builder_passes": 4, "model.heads": "mlm_nsp" if pairs else "mlm",
                   "model.num_layers": layers, "model.hidden_size": width, "model.vocab_size": vocab_size,
                   "model.max_positions": max_length, "model.max_predictions": "null", "model.dropout": 0.0,
                   "model.init_std": init_std, "model.init_positions": "sinusoidal",
                   "model.lr": pretrain_lr, "model.warmup_steps": 0.1,
                   "trainer.precision": "auto", "trainer.max_steps": steps,
                   "trainer.val_check_interval": steps}  # fmt: skip
        run_stage(folder, f"{ROOM}/pretrain", changes, 0, "val/mlm_acc")
        return folder

    def finetune(folder: Path, seed: int, rate: float, **start: Value) -> float:
        changes = {**tuned, "data.limit": labels, "model.lr": rate, **_for(finetune_epochs)}
        changes |= {f"model.{key}": value for key, value in start.items()}
        return run_stage(folder, f"{ROOM}/finetune", changes, seed, "val/acc")

    def distill(folder: Path, seed: int, rate: float, **start: Value) -> float:
        changes = {**tuned, "data.transfer": transfer, "model.teacher": taught, "model.lr": rate}
        changes |= _for(distill_epochs) | {f"model.{key}": value for key, value in start.items()}
        return run_stage(folder, f"{ROOM}/distill", changes, seed, "val/acc")

    big = pretrain("teacher", teacher_steps)
    small = pretrain("student", student_steps) if student_run is None else student_run
    # With few labels a fine-tuning is a matter of luck, and a poor teacher holds every distilled student back.
    tries = [output / f"teacher{number}" for number in range(teacher_tries)]
    found = [finetune(folder, number, teacher_lr, backbone=big) for number, folder in enumerate(tries)]
    taught, scores = tries[found.index(max(found))], {"teacher": [max(found)]}
    if scores["teacher"][0] < guessing + 0.02:
        print(
            f"Warning: the teacher has learned nothing, {scores['teacher'][0]:.1%} where guessing the largest class"
            f" gives {guessing:.1%}, and nothing can be distilled from it: try a lower --teacher-lr, or more --labels.",
            file=sys.stderr,
        )
    stages: dict[str, Callable[..., float]] = {"finetune": finetune, "distill": distill}
    for seed in range(seeds):
        for method in METHODS:
            start: dict[str, Value] = {"backbone": big if method.start == "teacher" else small}
            if method.truncated:
                start["truncate_layers"] = min(sizes["student"][0], sizes["teacher"][0])
            if not method.pretrained:
                start["pretrained"] = "false"
            folder = output / f"seed{seed}" / method.key
            scores.setdefault(method.key, []).append(stages[method.recipe](folder, seed, lr, **start))
    _report(output, scores, guessing)


@app.command(
    epilog="Example: zoo students grid runs/grid --data.root my_texts --model.backbone bert_uncased_L-2_H-128_A-2",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def grid(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the runs and the table go.")],
    metric: Annotated[
        str,
        typer.Option(help="What decides: val/mcc for cola, val/spearman for sts. Highest is best, lowest of a loss."),
    ] = "val/acc",
    seed: Annotated[int, typer.Option(help="Of every run.")] = 0,
) -> None:
    """Fine-tune with the official README's 20 settings and keep the best on the development set.

    Batches of 8, 16, 32, 64, 128 times rates of 3e-4, 1e-4, 5e-5, 3e-5, each 4 epochs. Further settings are those of
    the recipe well_read_students/finetune, such as --data.root DIR --data.task sst. Finished runs are not repeated.
    """
    changes: dict[str, Value] = {"trainer.callbacks": "null"} | _overrides(context.args)
    for key in ("data.batch_size", "model.lr"):
        if key in changes:
            raise ZooError(f"--{key} is what the grid goes through: leave it out, or run {ROOM}/finetune itself.")
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        for rate in RATES:
            folder = output / f"batch{batch}-lr{rate:g}"
            setting = {"data.batch_size": batch, "model.lr": rate}
            value = run_stage(folder, f"{ROOM}/finetune", {**changes, **setting}, seed, metric)
            rows.append({"batch_size": batch, "lr": rate, metric: value, "run": str(folder)})
    rows.sort(key=lambda row: row[metric], reverse="loss" not in metric)
    (output / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for row in rows[:5]:
        print(f"{row[metric]:.4f}  batch {row['batch_size']}  lr {row['lr']:g}  {row['run']}")


def _overrides(args: list[str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    rest = list(args)
    while rest:
        key, _, value = rest.pop(0).partition("=")
        if not key.startswith("--") or not (value or rest):
            raise ZooError(f"Unexpected {key!r}: settings are written --any.key VALUE.")
        found[key[2:]] = value or rest.pop(0)
    return found


def run_stage(folder: Path, recipe: str, changes: dict[str, Value], seed: int, metric: str) -> float:
    """Runs a recipe in `folder` unless it is done; returns the metric at its end. What was interrupted goes on.

    Raises `ZooError` if the folder was made with other settings.
    """
    from zoo.cli.run import main as run

    settings = {"recipe": recipe, "seed": seed, **{key: str(value) for key, value in changes.items()}}
    done = folder / "stage.json"
    if done.is_file():
        kept = json.loads(done.read_text(encoding="utf-8"))
        if kept["settings"] != settings and (folder / "config.yaml").is_file():  # else it never came to run
            raise ZooError(f"{folder} was made with other settings: give another folder, or remove it.")
        if kept["settings"] == settings and kept["value"] is not None:
            return float(kept["value"])
    _keep(done, settings, None)
    print(f"--- {folder} ({recipe})", flush=True)
    arguments = [f"--{key}={value}" for key, value in changes.items()]
    if (folder / "config.yaml").is_file():
        arguments.append("--resume")
    os.environ.pop("ZOO_RESUME", None)  # of the stage before
    run(["run", recipe, "--run-dir", str(folder), "--seed_everything", str(seed), *arguments])
    logged: list[dict[str, str]] = []
    if (folder / "metrics.csv").is_file():  # a run that is too short logs nothing
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            logged = list(csv.DictReader(file))
    values = [row[metric] for row in logged if row.get(metric)]
    if not values:
        known = sorted({key for row in logged for key, value in row.items() if value and key.startswith("val/")})
        raise ZooError(f"{folder} ended without {metric}: it has {', '.join(known) or 'no metric'}.")
    _keep(done, settings, float(values[-1]))
    return float(values[-1])


def _keep(done: Path, settings: dict[str, Any], value: float | None) -> None:
    new = done.with_suffix(".new")
    try:
        done.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps({"settings": settings, "value": value}, indent=2), encoding="utf-8")
        os.replace(new, done)
    except OSError as error:
        raise ZooError(f"Cannot write {done.parent}: {error.strerror or error}.") from error


def _tokenizer_of(run: Path, path: Path) -> Path:
    """Writes the tokenizer that a run's weights carry along to `path`: the teacher has to read the same word pieces."""
    from zoo import loading
    from zoo.cli.predict_text import write

    tokenizer = getattr(loading.load(str(run)), "tokenizer", None)
    if tokenizer is None:
        raise ZooError(f"The model of {run} carries no tokenizer.")
    write(path, tokenizer.to_str())
    return path


def _size(word: str) -> tuple[int, int]:
    layers, _, width = word.partition("x")
    if not (layers.isdigit() and width.isdigit() and int(layers) > 0 and int(width) > 0):
        raise ZooError(f"A size is LAYERSxWIDTH, such as 2x128, not {word!r}.")
    return int(layers), int(width)


def _for(epochs: int) -> dict[str, Value]:
    """So many epochs, scored at the end of the last."""
    return {"trainer.max_epochs": epochs, "trainer.check_val_every_n_epoch": epochs}


def _offline_text(output: Path, *sources: str) -> tuple[str, str, str]:
    """The paths of the three sources; a word of OFFLINE stands for files that are written now."""
    from datamodules.text_made_up import write_made_up
    from datamodules.well_read_students import write_python_docs

    found = list(sources)
    for word, write in zip(OFFLINE, (write_made_up, write_python_docs), strict=True):
        if word in sources:
            files = write(output / "data" / word)
            found = [str(files[at]) if source == word else source for at, source in enumerate(found)]
    return found[0], found[1], found[2]


def _read(labelled: str, pair_column: str | None, transfer: str) -> float:
    """Reads both once, so that what is wrong with them is said now; the accuracy of guessing the largest class."""
    from datamodules.text_classification import TextClassificationDataModule
    from datamodules.text_records import read_texts

    read_texts(Path(transfer).expanduser(), pair_column=pair_column)
    return TextClassificationDataModule(labelled, pair_column=pair_column).guessing_accuracy()


def _report(output: Path, scores: dict[str, list[float]], guessing: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from zoo.papers.well_read_students.figures import draw_comparison

    titles = {"teacher": "the teacher itself"} | {method.key: method.title for method in METHODS}
    table = Table(title="Development accuracy", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("", "", "mean", "spread", "each seed"):
        table.add_column(column, justify="left" if column in ("", "each seed") else "right")
    rows: list[dict[str, Any]] = []
    for key, values in scores.items():
        mean, spread = statistics.fmean(values), statistics.pstdev(values)
        each = " ".join(f"{value:.1%}" for value in values)
        table.add_row(key, titles[key], f"{mean:.1%}", f"{spread * 100:.1f}" if len(values) > 1 else "", each)
        rows.append({"method": key, "title": titles[key], "mean": mean, "spread": spread, "seeds": values})
    table.caption = f"Always guessing the largest class: {guessing:.1%}."
    table.caption_justify = "left"
    Console().print(table)
    (output / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (output / "figures").mkdir(exist_ok=True)
    draw_comparison(scores, titles, guessing).savefig(
        output / "figures" / "comparison.png", dpi=150, bbox_inches="tight"
    )
    print(f"{output / 'results.json'}\n{output / 'figures' / 'comparison.png'}")
