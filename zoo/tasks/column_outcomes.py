"""What was found of several columns at once: labels that may each be there or not, and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo.tasks.outcomes import Array, NumberOutcome, Outcome, Scores

MOST_NAMED = 20
"""Columns up to which each has scores of its own in the results; of more only the means."""


class Ranking:
    """Average precision and AUROC of columns of scores, for any weights of the samples: sorted once, summed often.

    Args:
        target: (n, L) 1, 0, or NaN where it is not known. score: (n, L).

    Equal scores count as one threshold, as in scikit-learn.
    """

    def __init__(self, target: Array, score: Array) -> None:
        self.order = np.argsort(-score, axis=0, kind="stable")
        ordered = np.take_along_axis(score, self.order, 0)
        places = np.arange(len(score))[:, None]
        new = np.vstack([np.ones((1, score.shape[1]), bool), ordered[1:] != ordered[:-1]])[: len(score)]
        self.first = np.maximum.accumulate(np.where(new, places, 0), axis=0)
        ends = np.vstack([new[1:], np.ones((1, score.shape[1]), bool)])[: len(score)]
        last = np.where(ends, places, len(score))
        self.last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
        target = np.take_along_axis(target, self.order, 0)
        self.positive, self.known = target == 1, np.isfinite(target)

    def scores(self, weight: Array) -> tuple[Array, Array]:
        """(n,) weights to average precision and AUROC (L,), NaN where a column has no positive (or no negative)."""
        w = weight[self.order]
        positive = w * self.positive
        hits, seen = positive.cumsum(0), (w * self.known).cumsum(0)
        misses = seen - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.take_along_axis(hits, self.last, 0) / np.take_along_axis(seen, self.last, 0)
            average = np.where(positive > 0, positive * precision, 0).sum(0) / hits[-1]
            above = np.take_along_axis(np.vstack([np.zeros((1, w.shape[1])), misses]), self.first, 0)
            level = np.take_along_axis(misses, self.last, 0)
            area = 1 - (positive * (above + level) / 2).sum(0) / (hits[-1] * misses[-1])
        return average, np.where(hits[-1] > 0, area, np.nan)


@dataclass
class LabelOutcome(Outcome):
    """Labels: `target` (n, L) of 1, 0 and NaN where unknown, `probabilities` (n, L), `classes` their names.

    Scores: mAP, macro AUROC and macro F1 at 0.5, means over the labels that have positives (and negatives); log loss;
    up to 20 labels also those of each.
    """

    target: Array = field(default_factory=lambda: np.zeros((0, 1)))
    probabilities: Array = field(default_factory=lambda: np.zeros((0, 1)))
    classes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ranking = Ranking(self.target, self.probabilities)
        self._known, self._positive = np.isfinite(self.target), self.target == 1
        right = np.where(self._positive, self.probabilities, 1 - self.probabilities)
        self._log = np.where(self._known, -np.log(np.clip(right, 1e-12, 1)), 0)

    def scores(self, index: Array) -> Scores:
        weight = np.bincount(index, minlength=self.count).astype(np.float64)
        average, area = self._ranking.scores(weight)
        f1 = self._f1(weight, np.full(len(self.classes), 0.5))
        known = (weight @ self._known).sum()
        scores = {
            "mAP": _mean(average),
            "macro AUROC": _mean(area),
            "macro F1": _mean(f1),
            "log loss": float((weight @ self._log).sum() / known) if known else float("nan"),
        }
        if len(self.classes) <= MOST_NAMED:
            for what, values in (("AP", average), ("AUROC", area), ("F1", f1)):
                scores |= {f"{what} {name}": float(v) for name, v in zip(self.classes, values, strict=True)}
        return scores

    def _f1(self, weight: Array, threshold: Array) -> Array:
        """(L,) at thresholds (L,); NaN of a label without positives."""
        found = (self.probabilities >= threshold) & self._known
        hits, marked, true = weight @ (found & self._positive), weight @ found, weight @ self._positive
        return np.where(true > 0, 2 * hits / np.maximum(marked + true, 1e-12), np.nan)

    def thresholds(self) -> dict[str, float]:
        """The probability of each label from which F1 on these samples is best; 0.5 where there is no positive."""
        best = {}
        for k, name in enumerate(self.classes):
            known = self._known[:, k]
            order = np.argsort(-self.probabilities[known, k], kind="stable")
            p, y = self.probabilities[known, k][order], self._positive[known, k][order]
            if not y.any():
                best[name] = 0.5
                continue
            f1 = 2 * y.cumsum() / (np.arange(1, len(y) + 1) + y.sum())
            f1[:-1][p[:-1] == p[1:]] = -1  # a threshold lies between different probabilities only
            at = int(f1.argmax())
            below = p[at + 1] if at + 1 < len(p) else 0.0
            best[name] = round(float((p[at] + below) / 2), 5)
        return best

    def extras(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds()}

    def table(self) -> dict[str, Sequence[Any]]:
        columns: dict[str, Sequence[Any]] = {
            f"true {name}": ["" if np.isnan(v) else int(v) for v in self.target[:, k]]
            for k, name in enumerate(self.classes)
        }
        return columns | {name: self.probabilities[:, k].round(5).tolist() for k, name in enumerate(self.classes)}

    def figures(self) -> dict[str, Any]:
        from zoo.tasks.outcome_figures import draw_labels

        weight = np.ones(self.count)
        average, area = self._ranking.scores(weight)
        best = np.array(list(self.thresholds().values()))
        rows = {"average precision": average, "AUROC": area, "F1 at 0.5": self._f1(weight, np.full_like(best, 0.5)),
                "F1 at the best threshold": self._f1(weight, best)}  # fmt: skip
        return {"labels": draw_labels(self.classes, rows, self._positive.sum(0), best)}


@dataclass
class NumbersOutcome(Outcome):
    """Numbers of several `columns`, each an outcome of its own; the headline is the mean of their Spearman."""

    columns: dict[str, NumberOutcome] = field(default_factory=dict)

    @classmethod
    def of(cls, target: Array, prediction: Array, names: Sequence[str]) -> Outcome:
        """From (n, L) targets, NaN where unknown, and predictions; a single column is a plain `NumberOutcome`."""
        columns = {
            name: NumberOutcome(len(target), "Spearman", target=target[:, k], prediction=prediction[:, k])
            for k, name in enumerate(names)
        }
        if len(columns) == 1 and np.isfinite(target).all():
            return columns[names[0]]
        return cls(len(target), "mean Spearman", columns=columns)

    def scores(self, index: Array) -> Scores:
        found = {}
        for name, outcome in self.columns.items():
            found[name] = outcome.scores(index[np.isfinite(outcome.target[index])])
        scores = {"mean Spearman": _mean(np.array([each["Spearman"] for each in found.values()]))}
        if len(found) <= MOST_NAMED:
            scores |= {f"{what} {name}": value for name, each in found.items() for what, value in each.items()}
        return scores

    def table(self) -> dict[str, Sequence[Any]]:
        every: dict[str, Sequence[Any]] = {}
        for name, outcome in self.columns.items():
            every |= {f"{what} {name}": values for what, values in outcome.table().items()}
        return every

    def figures(self) -> dict[str, Any]:
        return {
            name: outcome.figures()["found against true"] for name, outcome in list(self.columns.items())[:MOST_NAMED]
        }


def _mean(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
