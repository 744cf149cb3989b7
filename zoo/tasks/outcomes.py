"""What a task found on held-out data, in a form that a report can score, resample, draw and tabulate.

A task has `outcome_rows(batch) -> Any` (what it keeps of a batch) and `outcome(rows, data) -> Outcome` (all of them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Scores = dict[str, float]


@dataclass
class Outcome:
    """Base class: `count` held-out samples with `names`, and scores of any selection of them.

    Attributes:
        headline: the score to look at first.
        resample: whether a selection with repetitions makes sense, that is whether there are confidence intervals.
    """

    count: int
    headline: str
    names: list[str] = field(default_factory=list)
    resample: bool = True

    def scores(self, index: Array) -> Scores:
        """Scores of the samples `index` (n,), which may repeat."""
        raise NotImplementedError

    def table(self) -> dict[str, Sequence[Any]]:
        """{column: a value for each sample}."""
        return {}

    def figures(self) -> dict[str, Any]:
        """{title: matplotlib Figure}."""
        return {}

    def extras(self) -> dict[str, Any]:
        """What else goes into `report.json`."""
        return {}


@dataclass
class ClassOutcome(Outcome):
    """Classes: `labels` (n,) and `probabilities` (n, C) of `classes`.

    Scores: accuracy; balanced accuracy and macro F1 over the classes that there are; log loss; ECE, the gap between
    confidence and accuracy in 15 bins (Guo et al. 2017); for two classes AUROC.
    """

    labels: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    probabilities: Array = field(default_factory=lambda: np.zeros((0, 2)))
    classes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A bootstrap asks for these hundreds of times: once over (n, C) is enough.
        self._found = self.probabilities.argmax(1)
        self._confidence = self.probabilities.max(1, initial=0.0)
        self._right = self._found == self.labels
        self._of_truth = self.probabilities[np.arange(len(self.labels)), self.labels]

    @classmethod
    def of(cls, rows: Sequence[tuple[torch.Tensor, torch.Tensor]], classes: Sequence[str]) -> ClassOutcome:
        """From (labels (B,), probabilities (B, C)) of batches."""
        labels = torch.cat([row[0].cpu() for row in rows]).numpy()
        probabilities = torch.cat([row[1].float().cpu() for row in rows]).numpy()
        return cls(len(labels), "accuracy", labels=labels, probabilities=probabilities, classes=list(classes))

    def confusion(self, index: Array | None = None) -> Array:
        """(C, C) counts, true class first."""
        index = np.arange(self.count) if index is None else index
        size = len(self.classes)
        return np.bincount(self.labels[index] * size + self._found[index], minlength=size * size).reshape(size, size)

    def scores(self, index: Array) -> Scores:
        matrix = self.confusion(index)
        there = matrix.sum(1) > 0
        right = np.diag(matrix)
        recall = right[there] / matrix.sum(1)[there]
        f1 = 2 * right[there] / (matrix.sum(1) + matrix.sum(0))[there]
        labels, true, confidence = self.labels[index], self._of_truth[index], self._confidence[index]
        found = {
            "accuracy": float(right.sum() / matrix.sum()),
            "balanced accuracy": float(recall.mean()),
            "macro F1": float(f1.mean()),
            "log loss": float(-np.log(np.clip(true, 1e-12, 1)).mean()),
            "ECE": calibration_error(confidence, self._right[index]),
        }
        if len(self.classes) == 2 and there.all():
            from sklearn.metrics import roc_auc_score

            found["AUROC"] = float(roc_auc_score(labels, self.probabilities[index, 1]))
        return found

    def table(self) -> dict[str, Sequence[Any]]:
        found = self.probabilities.argmax(1)
        columns: dict[str, Sequence[Any]] = {
            "true": [self.classes[label] for label in self.labels],
            "found": [self.classes[label] for label in found],
        }
        if len(self.classes) > 50:  # a column a class is for tables that a person opens
            return columns | {"confidence": self._confidence.round(5).tolist()}
        return columns | {name: self.probabilities[:, i].round(5).tolist() for i, name in enumerate(self.classes)}

    def figures(self) -> dict[str, Any]:
        from zoo.tasks.outcome_figures import draw_calibration, draw_confusion

        return {
            "confusion": draw_confusion(self.confusion(), self.classes),
            "calibration": draw_calibration(self.labels, self.probabilities),
        }


@dataclass
class NumberOutcome(Outcome):
    """Numbers: `target` and `prediction` (n,). Scores: mean absolute error, RMSE, R2, Pearson, Spearman."""

    target: Array = field(default_factory=lambda: np.zeros(0))
    prediction: Array = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> NumberOutcome:
        """From (targets (B,), predictions (B,)) of batches."""
        target, prediction = (torch.cat([row[i].double().cpu() for row in rows]).numpy() for i in (0, 1))
        return cls(len(target), "Spearman", target=target, prediction=prediction)

    def scores(self, index: Array) -> Scores:
        from scipy.stats import pearsonr, spearmanr

        target, prediction = self.target[index], self.prediction[index]
        error = prediction - target
        varies = target.std() > 0 and prediction.std() > 0
        nan = float("nan")
        return {
            "Spearman": float(spearmanr(target, prediction).statistic) if varies else nan,
            "Pearson": float(pearsonr(target, prediction).statistic) if varies else nan,
            "mean absolute error": float(np.abs(error).mean()),
            "RMSE": float(np.sqrt((error**2).mean())),
            "R2": float(1 - (error**2).sum() / ((target - target.mean()) ** 2).sum()) if target.std() > 0 else nan,
        }

    def table(self) -> dict[str, Sequence[Any]]:
        return {"true": self.target.tolist(), "found": self.prediction.tolist()}

    def figures(self) -> dict[str, Any]:
        from zoo.tasks.outcome_figures import draw_numbers

        return {"found against true": draw_numbers(self.target, self.prediction)}


@dataclass
class SampleOutcome(Outcome):
    """A score of each sample, {name: (n,)}, NaN where it is not defined (a region that is not there); means count."""

    values: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], headline: str, names: Sequence[str] = ()) -> SampleOutcome:
        """From {score: (B,)} of batches."""
        values = {
            key: np.concatenate(
                [np.atleast_1d(np.asarray(torch.as_tensor(row[key]).cpu(), np.float64)) for row in rows]
            )
            for key in rows[0]
        }
        return cls(len(next(iter(values.values()))), headline, list(names), values=values)

    def scores(self, index: Array) -> Scores:
        means = {}
        for name, values in self.values.items():
            chosen = values[index]
            chosen = chosen[np.isfinite(chosen)]
            means[name] = float(chosen.mean()) if len(chosen) else float("nan")
        return means

    def table(self) -> dict[str, Sequence[Any]]:
        return {name: values.round(5).tolist() for name, values in self.values.items()}

    def figures(self) -> dict[str, Any]:
        from zoo.tasks.outcome_figures import draw_spread

        return {"samples": draw_spread(self.values)}


@dataclass
class FunctionOutcome(Outcome):
    """Scores that a function of the selected samples gives (entities of sentences, concordance)."""

    function: Callable[[Array], Scores] = dict  # type: ignore[assignment]
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)

    def scores(self, index: Array) -> Scores:
        return self.function(index)

    def table(self) -> dict[str, Sequence[Any]]:
        return self.columns


def calibration_error(confidence: Array, right: Array, bins: int = 15) -> float:
    """Expected calibration error of (n,) confidences and whether each answer was right, in bins of equal width.

    As torchmetrics' `multiclass_calibration_error` has it, in a fraction of the time: it need not see all classes.
    """
    at = np.clip((confidence * bins).astype(int), 0, bins - 1)
    gap = np.bincount(at, right, bins) - np.bincount(at, confidence, bins)
    return float(np.abs(gap).sum() / len(confidence))


@dataclass(frozen=True)
class Interval:
    """A score with the limits of its bootstrap interval; the same number thrice where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.value == self.high:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def intervals(outcome: Outcome, rounds: int = 300, level: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Percentile bootstrap over the samples (Efron 1979): `rounds` selections with repetition, as many as there are.

    Samples are taken to be independent; a selection in which a score is not defined does not count for it.
    """
    whole = outcome.scores(np.arange(outcome.count))
    if not outcome.resample or outcome.count < 2 or rounds < 1:
        return {name: Interval(value, value, value) for name, value in whole.items()}
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(rounds):
        for name, value in outcome.scores(generator.integers(0, outcome.count, outcome.count)).items():
            if name in drawn and np.isfinite(value):
                drawn[name].append(value)
    tails = [(1 - level) / 2, (1 + level) / 2]
    limits = {name: np.quantile(v, tails) if v else np.full(2, np.nan) for name, v in drawn.items()}
    return {name: Interval(value, float(limits[name][0]), float(limits[name][1])) for name, value in whole.items()}
