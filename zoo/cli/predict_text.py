"""What a fine-tuned text model says of a file. Used by `zoo predict`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.errors import ZooError

Batch = dict[str, Any]


@torch.inference_mode()
def run_batches(model: Any, items: Sequence[Batch], batch_size: int, step: Callable[[Batch], Any]) -> Iterator[Any]:
    """`step` of batches of items of like length, in no particular order; each item has a number under `index`."""
    from torch.utils.data import default_collate

    from datamodules.text_base import trim_padding

    order = np.argsort([int(item["attention_mask"].sum()) for item in items], kind="stable")
    for at in range(0, len(order), batch_size):
        batch = trim_padding(default_collate([items[i] for i in order[at : at + batch_size]]))
        yield step({key: value.to(model.device) for key, value in batch.items()})


def classify(model: Any, texts: Sequence[Any], max_length: int, batch_size: int) -> np.ndarray:
    """(n, classes) probabilities, or (n, 1) scores, in the order of the texts."""
    from zoo.nn.text import encode_texts

    encoded = encode_texts(model.tokenizer, list(texts), max_length)
    items = [{key: value[i] for key, value in encoded.items()} | {"index": i} for i in range(len(texts))]
    out: np.ndarray | None = None
    for numbers, part in run_batches(model, items, batch_size, lambda b: (b["index"], model.predict_step(b, 0))):
        values = part.float().cpu().numpy().reshape(len(numbers), -1)
        out = np.zeros((len(texts), values.shape[1]), dtype=np.float32) if out is None else out
        out[numbers.cpu().numpy()] = values
    assert out is not None
    return out


def _names(model: Any) -> list[str]:
    return list(model.classes or [str(i) for i in range(model.num_outputs)])


def class_table(model: Any, texts: Sequence[Any], values: np.ndarray) -> str:
    pairs = any(isinstance(text, tuple) for text in texts)
    header = ["text", *(["pair"] if pairs else []), *(["score"] if model.regression else ["label", *_names(model)])]
    rows: list[list[str]] = [header]
    for text, value in zip(texts, values, strict=True):
        parts = list(text) if isinstance(text, tuple) else [text, *([""] if pairs else [])]
        numbers = [f"{v:.4f}" for v in value]
        label = [] if model.regression else [_names(model)[int(value.argmax())]]
        rows.append([" ".join(part.split()) for part in parts] + label + numbers)
    return "".join("\t".join(row) + "\n" for row in rows)


def glue(model: Any, source: Path, output: Path, task: str, length: int, batch_size: int, force: bool) -> None:
    from datamodules.text_glue import GLUE, glue_test_sets
    from zoo.errors import did_you_mean

    if task not in GLUE:
        raise ZooError(f"There is no task {task!r}.{did_you_mean(task, GLUE)}")
    labels = GLUE[task].labels
    if (len(labels) or 1) != model.num_outputs or (labels and model.classes and list(labels) != list(model.classes)):
        raise ZooError(f"This model was not fine-tuned on {task}: it gives {', '.join(_names(model)) or 'a score'}.")
    for stem, texts in glue_test_sets(source, task).items():
        path = output / f"{stem}.tsv"
        if path.exists() and not force:
            raise ZooError(f"{path} exists already: choose another folder, or overwrite it with --force.")
        values = classify(model, texts, length, batch_size)
        scores = [f"{v:.3f}" for v in (5 * values[:, 0]).clip(0, 5)]  # STS-B goes from 0 to 5
        found = [labels[i] for i in values.argmax(1)] if labels else scores
        write(path, "index\tprediction\n" + "".join(f"{i}\t{label}\n" for i, label in enumerate(found)))
        print(f"{path}: {len(texts)} predictions")


def answer(model: Any, source: Path, output: Path, length: int, batch_size: int) -> None:
    from datamodules.text_squad import SquadWindows, read_squad
    from zoo.tasks.spans import write_answers

    def refuse(message: str) -> None:
        raise ZooError(f"{message}.")

    if output.suffix != ".json":
        raise ZooError(f"Predictions are a .json file, not {output}.")
    squad = read_squad(source, refuse)
    if not squad.questions:
        raise ZooError(f"There are no questions in {source}.")
    windows = SquadWindows(squad, model.tokenizer, length)
    parts = run_batches(model, windows, batch_size, lambda batch: model.predict_step(batch, 0))
    scores = [score for part in parts for score in part]
    answers = model.read(windows, scores)
    write_answers(output, answers)
    print(f"{output}: {len(answers.best)} answers")
    if any(question.answers for question in squad.questions):
        print("  ".join(f"{name} {value:.2f}" for name, value in model.evaluate(windows, answers).items()))


def tag(model: Any, source: Path, output: Path, length: int, batch_size: int) -> None:
    from datamodules.text_tags import TaggedWords, read_conll
    from zoo.nn.text import read_utf8

    lines = [line for line in read_utf8(source).split("\n") if line.strip()]
    if source.suffix == ".txt" and any(len(line.split()) > 4 for line in lines):
        sentences = [(line.split(), ["O"] * len(line.split())) for line in lines]  # one sentence a line
    else:
        sentences = read_conll(source, tag_column=None)
    if not sentences:
        raise ZooError(f"There are no words in {source}.")
    blank = [(words, [model.tags[0]] * len(words)) for words, _ in sentences]
    words = TaggedWords(blank, model.tags, model.tokenizer, length, model.hparams.segment or 0)
    parts = run_batches(model, words, batch_size, lambda batch: model.predict_step(batch, 0))
    rows = [row for part in parts for row in part]
    out = io.StringIO()
    for (sentence, _), tags in zip(sentences, words.joined(rows, model.tags), strict=True):
        out.writelines(f"{word} {tag}\n" for word, tag in zip(sentence, tags, strict=True))
        out.write("\n")
    write(output, out.getvalue())
    print(f"{output}: {len(sentences)} sentences")


def write(path: Path, content: str) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(content, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        raise ZooError(f"Cannot write {path}: {error.strerror or error}.") from error
