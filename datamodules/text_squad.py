"""SQuAD's JSON, versions 1.1 and 2.0: reading it, and cutting contexts into overlapping windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.errors import ZooError
from zoo.nn.text import SpecialIds, read_utf8

_SPACES = " \t\r\n\u202f"  # what separates words in the released code
Bad = Callable[[str], None]


@dataclass
class Question:
    """A question about a context.

    Attributes:
        id, text: as in the file.
        context: number of the context.
        answers: every annotated answer; none if there is no answer in the context (SQuAD 2.0), or in a test file.
        start: place of the first answer in the context, in characters; None without answer.
        impossible: SQuAD 2.0's mark.
    """

    id: str
    text: str
    context: int
    answers: list[str] = field(default_factory=list)
    start: int | None = None
    impossible: bool = False


@dataclass
class Squad:
    """A file: its contexts, its questions, and whether it marks questions without answer (2.0)."""

    contexts: list[str]
    questions: list[Question]
    no_answer: bool


def read_squad(path: Path, bad: Bad) -> Squad:
    """Reads the official layout: data, paragraphs, context, qas, with id, question, answers and is_impossible.

    Args:
        bad: is told of every question that cannot be used; it raises, or returns to pass over it.

    Raises:
        ZooError: the file cannot be read, or is no SQuAD file.
    """
    try:
        articles = json.loads(read_utf8(path))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ZooError(f"{path} is no SQuAD file ({type(error).__name__}: {error}): it has data, paragraphs, context, "
                       "qas.") from error  # fmt: skip
    squad = Squad([], [], False)
    seen: set[str] = set()
    for number, paragraph in enumerate(paragraphs):
        where = f"{path}, paragraph {number}"
        context, asked = (paragraph.get(key) for key in ("context", "qas")) if isinstance(paragraph, dict) else (0, 0)
        if not isinstance(context, str) or not isinstance(asked, list):
            raise ZooError(f"{where} has no context or no qas.")
        if not context.strip():
            bad(f"{where}: an empty context")
            continue
        for raw in asked:
            question = _question(raw, len(squad.contexts), where, bad)
            if question is None:
                continue
            if question.id in seen:
                bad(f"{where}: the id {question.id!r} comes twice")
                continue
            seen.add(question.id)
            squad.no_answer |= "is_impossible" in raw
            squad.questions.append(question)
        squad.contexts.append(context)
    return squad


def _question(raw: Any, context: int, where: str, bad: Bad) -> Question | None:
    if not isinstance(raw, dict) or not isinstance(raw.get("question"), str) or "id" not in raw:
        raise ZooError(f"{where}: a question has no id or no question.")
    name = str(raw["id"])
    if not raw["question"].strip():
        bad(f"{where}: the question {name!r} is empty")
        return None
    answers = raw.get("answers") or []
    try:
        texts, starts = [str(a["text"]) for a in answers], [int(a["answer_start"]) for a in answers]
    except (KeyError, TypeError, ValueError) as error:
        raise ZooError(f"{where}: an answer of {name!r} has no text or no answer_start.") from error
    impossible = bool(raw.get("is_impossible", False))
    return Question(name, raw["question"], context, texts, starts[0] if starts else None, impossible)


class _Context:
    """A tokenised context: `ids` (n,), character `offsets` (n, 2), and the number of the word of each piece (n,)."""

    def __init__(self, text: str, encoding: Any) -> None:
        self.text = text
        self.ids = np.array(encoding.ids, dtype=np.int32)
        self.offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        letters = np.array([letter not in _SPACES for letter in text])
        begins = letters & ~np.concatenate([[False], letters[:-1]])
        self.word_of_char = np.cumsum(begins) - 1
        self.words = self.word_of_char[self.offsets[:, 0]] if len(self.ids) else np.zeros(0, dtype=np.int64)

    def pieces(self, question: Question, answer_ids: list[int]) -> tuple[int, int] | str:
        """First and last piece of the first answer, or what is wrong with it.

        As officially: the pieces of the whole words that it touches, and within these the first run that reads exactly
        like the answer, if there is one.
        """
        answer = question.answers[0]
        start = question.start or 0
        end = start + len(answer) - 1
        if start < 0 or end < start or end >= len(self.text):
            return f"the answer at {start} lies outside the context"
        first_word, last_word = int(self.word_of_char[start]), int(self.word_of_char[end])
        words = self._words(first_word, last_word)
        if " ".join(answer.split()).lower() not in words.lower():
            return f"the answer {answer[:40]!r} is not at {start}: there stands {words[:40]!r}"
        first = int(np.searchsorted(self.words, first_word, "left"))
        last = int(np.searchsorted(self.words, last_word, "right")) - 1
        if last < first:
            return f"the answer {answer[:40]!r} has no tokens"
        ids, size = self.ids[first : last + 1].tolist(), len(answer_ids)
        for at in range(len(ids) - size + 1 if size else 0):
            if ids[at : at + size] == answer_ids:
                return first + at, first + at + size - 1
        return first, last

    def _words(self, first: int, last: int) -> str:
        where = np.flatnonzero((self.word_of_char >= first) & (self.word_of_char <= last))
        text = self.text[where[0] : where[-1] + 1] if len(where) else ""
        for space in _SPACES[1:]:
            text = text.replace(space, " ")
        return " ".join(part for part in text.split(" ") if part)


class SquadWindows(Dataset):
    """Questions beside windows of their contexts: [CLS] question [SEP] window [SEP], segment 1 from the window on.

    Item i has `input_ids`, `attention_mask`, `token_type_ids` (max_length,) and `window` (its number); of training data
    `start`, `end` (both 0 where the window does not hold the answer) and `impossible` too.

    Args:
        squad: what to cut.
        doc_stride: tokens from one window to the next.
        max_query: longer questions are cut to so many tokens.
        train: with answers. Questions whose answer is not where it should be are told to `bad`.
    """

    def __init__(
        self,
        squad: Squad,
        tokenizer: Any,
        max_length: int = 384,
        doc_stride: int = 128,
        max_query: int = 64,
        train: bool = False,
        bad: Bad | None = None,
    ) -> None:
        self.special, self.max_length, self.train = SpecialIds.of(tokenizer), max_length, train
        encoded = tokenizer.encode_batch(squad.contexts, add_special_tokens=False)
        self.contexts = [_Context(text, code) for text, code in zip(squad.contexts, encoded, strict=True)]
        self.questions = squad.questions
        queries = tokenizer.encode_batch([question.text for question in squad.questions], add_special_tokens=False)
        self.queries = [np.array(query.ids[:max_query], dtype=np.int32) for query in queries]
        self.spans = self._spans(tokenizer, bad) if train else [None] * len(self.questions)
        rows = []
        for number, question in enumerate(self.questions):
            if train and self.spans[number] is None:
                continue
            size = len(self.contexts[question.context].ids)
            room = max_length - len(self.queries[number]) - 3
            if room < 1:
                raise ZooError(f"No context fits beside the question {question.id!r}: raise data.max_length.")
            begin = 0
            while begin < size:
                length = min(room, size - begin)
                rows.append((number, begin, length))
                if begin + length == size:
                    break
                begin += min(length, doc_stride)
        self.rows = np.array(rows, dtype=np.int64).reshape(-1, 3)
        self._first_row = np.searchsorted(self.rows[:, 0], np.arange(len(self.questions) + 1))

    def _spans(self, tokenizer: Any, bad: Bad | None) -> list[tuple[int, int] | None]:
        texts = [question.answers[0] if question.answers else "" for question in self.questions]
        codes = tokenizer.encode_batch(texts, add_special_tokens=False)
        spans: list[tuple[int, int] | None] = []
        for question, code in zip(self.questions, codes, strict=True):
            span: tuple[int, int] | str | None = (-1, -1)
            if not question.impossible:
                span = "it has no answer"
                if question.answers:
                    span = self.contexts[question.context].pieces(question, code.ids)
            if isinstance(span, str):
                if bad is not None:
                    bad(f"question {question.id!r}: {span}")
                span = None
            spans.append(span)
        return spans

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each window's input."""
        queries = np.array([len(query) for query in self.queries])
        return queries[self.rows[:, 0]] + self.rows[:, 2] + 3

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number, begin, length = self.rows[index].tolist()
        query, special = self.queries[number], self.special
        context = self.contexts[self.questions[number].context]
        ids = np.full(self.max_length, special.pad, dtype=np.int64)
        first, size = len(query) + 2, len(query) + 3 + length
        ids[0], ids[first - 1], ids[size - 1] = special.cls, special.sep, special.sep
        ids[1 : first - 1], ids[first : size - 1] = query, context.ids[begin : begin + length]
        places = np.arange(self.max_length)
        item = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy((places < size).astype(np.int64)),
            "token_type_ids": torch.from_numpy(((places >= first) & (places < size)).astype(np.int64)),
            "window": torch.tensor(index),
        }
        span = self.spans[number]
        if self.train and span is not None:
            inside = begin <= span[0] and span[1] < begin + length
            start, end = (place - begin + first if inside else 0 for place in span)
            item |= {"start": torch.tensor(start), "end": torch.tensor(end)}
            item["impossible"] = torch.tensor(self.questions[number].impossible)
        return item

    # ------------------------------------------------------------------ what reading the answers needs

    def place(self, window: int) -> tuple[int, int, np.ndarray]:
        """Number of the question, place of the window's first token in the input, and (length,) bool.

        The latter marks the tokens that have more context here than in any other window (the lesser of left and right
        counts; the longer window is favoured, then the earlier one).
        """
        number, begin, length = self.rows[window].tolist()
        places = begin + np.arange(length)
        best, winner = np.full(length, -np.inf), np.full(length, -1)
        for row in range(self._first_row[number], self._first_row[number + 1]):
            other, size = self.rows[row, 1:].tolist()
            left, right = places - other, other + size - 1 - places
            score = np.where((left >= 0) & (right >= 0), np.minimum(left, right) + 0.01 * size, -np.inf)
            better = score > best
            best, winner = np.where(better, score, best), np.where(better, row, winner)
        return number, len(self.queries[number]) + 2, winner == window

    def text(self, window: int, first: int, last: int) -> str:
        """The original text under context tokens `first` to `last` of a window, white space made single spaces."""
        number, begin, _ = self.rows[window].tolist()
        context = self.contexts[self.questions[number].context]
        start, end = context.offsets[begin + first, 0], context.offsets[begin + last, 1]
        return " ".join(context.text[start:end].split())
