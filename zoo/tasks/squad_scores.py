"""SQuAD's official scoring, versions 1.1 and 2.0.

torchmetrics' `SQuAD` gives the same numbers for 1.1 (the tests compare them), but only as means: the no-answer
threshold of 2.0 needs each question's own score.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answered(Protocol):
    """A question as scoring sees it: its id and the texts that are right, none for "no answer"."""

    id: str
    answers: Sequence[str]


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and surplus white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(gold: str, found: str) -> float:
    """1 if both are the same after `normalize_answer`."""
    return float(normalize_answer(gold) == normalize_answer(found))


def token_f1(gold: str, found: str, empty_agrees: bool = True) -> float:
    """F1 of the bags of normalised words. Two empty answers agree (2.0), or score nothing (1.1: not `empty_agrees`)."""
    wanted, given = normalize_answer(gold).split(), normalize_answer(found).split()
    if empty_agrees and not (wanted and given):
        return float(wanted == given)
    same = sum((Counter(wanted) & Counter(given)).values())
    if not same:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def scores_v1(questions: Sequence[Answered], predictions: Mapping[str, str]) -> dict[str, float]:
    """`exact_match` and `f1` in percent; a question without a prediction scores 0."""
    exact = f1 = 0.0
    for question in questions:
        if question.id in predictions:
            found = predictions[question.id]
            exact += max(exact_match(gold, found) for gold in question.answers)
            f1 += max(token_f1(gold, found, empty_agrees=False) for gold in question.answers)
    count = max(1, len(questions))
    return {"exact_match": 100 * exact / count, "f1": 100 * f1 / count}


def scores_v2(
    questions: Sequence[Answered],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """`exact`, `f1`, `total`, also of questions with (`HasAns_`) and without answer (`NoAns_`), in percent.

    Args:
        predictions: answer texts by question id, "" for none. Questions without one are left out, as officially.
        null_odds: how much each question looks unanswerable; above `threshold` the prediction counts as none. With it
            come `best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh`: the best that any threshold gives.
    """
    exact: dict[str, float] = {}
    f1: dict[str, float] = {}
    answerable = {question.id: bool(question.answers) for question in questions}
    for question in questions:
        if question.id in predictions:
            gold = [text for text in question.answers if normalize_answer(text)] or [""]
            exact[question.id] = max(exact_match(text, predictions[question.id]) for text in gold)
            f1[question.id] = max(token_f1(text, predictions[question.id]) for text in gold)
    odds = dict.fromkeys(predictions, 0.0) if null_odds is None else null_odds

    def decided(scores: dict[str, float]) -> dict[str, float]:
        return {key: float(not answerable[key]) if odds[key] > threshold else score for key, score in scores.items()}

    final, found = (decided(exact), decided(f1)), {}
    for prefix, keep in (("", None), ("HasAns_", True), ("NoAns_", False)):
        keys = [key for key in exact if keep is None or answerable[key] == keep]
        if keys:
            for name, scores in zip(("exact", "f1"), final, strict=True):
                found[prefix + name] = 100 * sum(scores[key] for key in keys) / len(keys)
            found[prefix + "total"] = float(len(keys))
    if null_odds is not None and exact:
        for name, scores in (("exact", exact), ("f1", f1)):
            best, at = _best_threshold(predictions, scores, odds, answerable)
            found[f"best_{name}"], found[f"best_{name}_thresh"] = best, at
    return found


def _best_threshold(
    predictions: Mapping[str, str], scores: dict[str, float], odds: Mapping[str, float], answerable: dict[str, bool]
) -> tuple[float, float]:
    """The best score in percent, and the odds up to which answers have to be given for it."""
    current = best = float(sum(not known for known in answerable.values()))
    at = 0.0
    for key in sorted(odds, key=odds.__getitem__):
        if key not in scores:
            continue
        current += scores[key] if answerable[key] else -1.0 if predictions[key] else 0.0
        if current > best:
            best, at = current, odds[key]
    return 100 * best / len(scores), at
