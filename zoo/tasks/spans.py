"""From scores of span ends in overlapping windows to the best answers of each question: SQuAD's post-processing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from zoo.errors import ZooError
from zoo.tasks.squad_scores import Answered
from zoo.tasks.text_heads import SpanOutput


class Windows(Protocol):
    """The data's side: the questions, and what each window shows of its question's context."""

    questions: Sequence[Answered]

    def __len__(self) -> int:
        """How many windows there are."""

    def place(self, window: int) -> tuple[int, int, np.ndarray]:
        """Number of its question, place of its first context token, and which of these tokens may begin an answer:

        (length,) bool, those that have their most context in this window.
        """

    def text(self, window: int, first: int, last: int) -> str:
        """What stands in the original text under context tokens `first` to `last` of the window."""


@dataclass(frozen=True)
class SpanScores:
    """The best starts of one window and the best ends of each of them.

    Attributes:
        window: its number.
        start_index, start_score: (K,); end_index, end_score: (K, M). Places in the input.
        null_score: how much the window looks like one without an answer.
    """

    window: int
    start_index: np.ndarray
    start_score: np.ndarray
    end_index: np.ndarray
    end_score: np.ndarray
    null_score: float


@dataclass(frozen=True)
class Answer:
    text: str
    start_score: float
    end_score: float

    @property
    def score(self) -> float:
        return self.start_score + self.end_score


@dataclass
class Answers:
    """What a model answers.

    Attributes:
        best: question id to text, "" for none.
        nbest: question id to answers, best first.
        null_odds: question id to how much it looks unanswerable (for SQuAD 2.0).
        given: `best` before the threshold on `null_odds`: what the official scoring takes.
    """

    best: dict[str, str]
    nbest: dict[str, list[Answer]]
    null_odds: dict[str, float]
    given: dict[str, str]


def span_scores(out: SpanOutput, windows: Sequence[int], beam: int = 20) -> list[SpanScores]:
    """The output of a head in prediction, one entry a window of the batch (`windows`: their numbers).

    A joint head brings its beam; of independent ends (`end_logits`) the best `beam` of each are taken.
    """
    if out.end_logits is None:
        parts = (out.start_index, out.start_log_probs, out.end_index, out.end_log_probs)
        null = out.answerable_logit
    else:
        count = min(beam, out.start_logits.shape[1])
        # Ties in order of place, as Python's sort has it.
        starts, ends = (x.sort(descending=True, stable=True) for x in (out.start_logits, out.end_logits))
        rows = [x[:, None, :count].expand(-1, count, -1) for x in (ends.indices, ends.values)]
        parts = (starts.indices[:, :count], starts.values[:, :count], *rows)
        null = out.start_logits[:, 0] + out.end_logits[:, 0]
    arrays = [_numpy(part) for part in (*parts, null)]
    return [SpanScores(number, *(array[row] for array in arrays)) for row, number in enumerate(windows)]


def _numpy(values: Tensor | None) -> np.ndarray:
    assert values is not None
    values = values.detach()
    return (values.float() if values.is_floating_point() else values).cpu().numpy()


def read_answers(
    windows: Windows,
    scores: Iterable[SpanScores],
    *,
    no_answer: bool,
    relative_null: bool,
    threshold: float,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> Answers:
    """The answers of every question over all its windows; of questions that were seen, if not all windows were.

    Args:
        no_answer: questions may have none (SQuAD 2.0).
        relative_null: the odds of "no answer" are its score minus that of the best answer (BERT), and not its score
            (ELECTRA's classifier).
        threshold: odds above it mean no answer.
        n_best: so many different texts are kept; max_answer_length: in tokens.
    """
    by_question: dict[int, list[SpanScores]] = {}
    for score in sorted(scores, key=lambda s: s.window):
        by_question.setdefault(windows.place(score.window)[0], []).append(score)
    answers = Answers({}, {}, {}, {})
    complete = sum(len(part) for part in by_question.values()) >= len(windows)
    for number, question in enumerate(windows.questions):
        mine = by_question.get(number, [])
        if not (mine or complete):  # a dry run
            continue
        found = _nbest(windows, mine, n_best, max_answer_length) or [Answer("empty", 0.0, 0.0)]
        null = min((float(score.null_score) for score in mine), default=0.0)
        odds = null - found[0].score if relative_null else null
        answers.nbest[question.id], answers.given[question.id] = found, found[0].text
        if no_answer:
            answers.null_odds[question.id] = odds
        answers.best[question.id] = "" if no_answer and odds > threshold else found[0].text
    return answers


def _nbest(windows: Windows, scores: list[SpanScores], n_best: int, max_answer_length: int) -> list[Answer]:
    spans: list[tuple[np.ndarray, ...]] = []
    for score in scores:
        _, first, may_start = windows.place(score.window)
        starts, ends = np.broadcast_arrays(score.start_index[:, None] - first, score.end_index - first)
        inside = (starts >= 0) & (starts < len(may_start)) & (ends < len(may_start))
        length = ends - starts + 1
        keep = inside & (length >= 1) & (length <= max_answer_length)
        keep &= may_start[np.where(inside, starts, 0)] if len(may_start) else False
        start_score = np.broadcast_to(score.start_score[:, None], keep.shape)
        window = np.full(int(keep.sum()), score.window)
        spans.append((window, starts[keep], ends[keep], start_score[keep], score.end_score[keep]))
    if not spans:
        return []
    window, start, end, first_score, last_score = (np.concatenate(column) for column in zip(*spans, strict=True))
    found: dict[str, Answer] = {}
    for at in np.argsort(-(first_score + last_score), kind="stable"):
        text = windows.text(int(window[at]), int(start[at]), int(end[at]))
        if text not in found:
            found[text] = Answer(text, float(first_score[at]), float(last_score[at]))
            if len(found) == n_best:
                break
    return list(found.values())


def write_answers(predictions: Path, answers: Answers) -> None:
    """Writes the official files: `predictions` and, beside it, `nbest_<name>` and, for 2.0, `null_odds_<name>`.

    Of `predictions.json` the last is `null_odds.json`.
    """
    nbest = {}
    for key, found in answers.nbest.items():
        scores = np.array([answer.score for answer in found])
        shares = np.exp(scores - scores.max())
        nbest[key] = [
            {"text": a.text, "probability": float(p), "start_logit": a.start_score, "end_logit": a.end_score}
            for a, p in zip(found, shares / shares.sum(), strict=True)
        ]
    name, folder = predictions.name, predictions.parent
    files: dict[str, object] = {name: answers.best, f"nbest_{name}": nbest}
    if answers.null_odds:
        files["null_odds.json" if name == "predictions.json" else f"null_odds_{name}"] = answers.null_odds
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = folder / name
            new = path.with_name(f".{path.name}.new")
            new.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(new, path)
    except OSError as error:
        raise ZooError(f"Cannot write to {folder}: {error.strerror or error}.") from error
