"""What a picture classifier may predict besides one class: labels that may each be there, and numbers.

B: pictures, L: columns. Targets are float (B, L), NaN where a value is not known: it does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from zoo.errors import ZooError
from zoo.tasks.column_outcomes import LabelOutcome, NumbersOutcome
from zoo.tasks.outcomes import Outcome

KINDS = ("classes", "labels", "numbers")


class Collected(Metric):
    """Targets and predictions of a whole side, from all devices, for scores that are no means of batches."""

    full_state_update = False

    def __init__(self, score: Callable[[Tensor, Tensor], dict[str, float]]) -> None:
        super().__init__()
        self.score = score
        for name in ("target", "prediction"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, target: Tensor, prediction: Tensor) -> None:
        self.target.append(target.detach().float())
        self.prediction.append(prediction.detach().float())

    def compute(self) -> dict[str, float]:
        parts = (self.target, self.prediction)
        return self.score(*(part if isinstance(part, Tensor) else torch.cat(part) for part in parts))


class ColumnTargets(nn.Module):
    """Base: `loss(logits, target)`, `read(logits)` (what is predicted), `outcome`, and metrics by stage."""

    headline: ClassVar[dict[str, str]]
    weight: Tensor | None = None

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.metrics = nn.ModuleDict({stage: Collected(self._scores) for stage in ("val", "test")})

    def _scores(self, target: Tensor, prediction: Tensor) -> dict[str, float]:
        found = self.outcome(target, prediction, [str(k) for k in range(self.columns)])
        scores = found.scores(np.arange(found.count))
        return {key: scores[name] for key, name in self.headline.items() if name in scores}

    def learn(self, data: Any, weights: Any) -> None:
        """What training data say before training starts; `weights` is the task's `class_weights`."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def read(self, logits: Tensor) -> Tensor:
        raise NotImplementedError

    def outcome(self, target: Tensor, prediction: Tensor, names: Sequence[str]) -> Outcome:
        raise NotImplementedError


class LabelTargets(ColumnTargets):
    """Binary cross-entropy of each label, with a weight of its positives if wanted."""

    headline: ClassVar[dict[str, str]] = {"mAP": "mAP", "auroc": "macro AUROC", "f1": "macro F1"}

    def __init__(self, columns: int, smoothing: float = 0.0) -> None:
        super().__init__(columns)
        self.smoothing = smoothing

    def learn(self, data: Any, weights: Any) -> None:
        if weights is None:
            self.weight = None
            return
        if weights == "balanced":
            counts = getattr(data, "label_counts", lambda: None)()
            if counts is None or not all(positive for positive, _ in counts):
                raise ZooError(
                    "The data does not count its labels, or one has no positive: give model.class_weights a list."
                )
            given = [negative / positive for positive, negative in counts]
        else:
            given = list(weights)
        if len(given) != self.columns or min(given) < 0:
            raise ZooError(
                f"model.class_weights has {len(given)} numbers; there are {self.columns} labels, none below 0."
            )
        self.weight = torch.tensor([float(value) for value in given])

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        wanted = target.nan_to_num() * (1 - self.smoothing) + self.smoothing / 2
        weight = None if self.weight is None else self.weight.to(logits.device)
        losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=weight, reduction="none")
        return (losses * known).sum() / known.sum().clamp_min(1)

    def read(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid()

    def outcome(self, target: Tensor, prediction: Tensor, names: Sequence[str]) -> Outcome:
        arrays = (part.cpu().double().numpy() for part in (target, prediction))
        return LabelOutcome(len(target), "mAP", [], True, *arrays, list(names))


class NumberTargets(ColumnTargets):
    """Huber's loss in units of each column's standard deviation over the training pictures: squared up to one, then
    straight, so that a stray number or a high rate does not throw the weights off."""

    headline: ClassVar[dict[str, str]] = {
        "spearman": "Spearman",
        "mae": "mean absolute error",
        "r2": "R2",
        "mean_spearman": "mean Spearman",
    }

    def __init__(self, columns: int) -> None:
        super().__init__(columns)
        self.register_buffer("shift", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))

    def learn(self, data: Any, weights: Any) -> None:
        if weights is not None:
            raise ZooError("Numbers have no classes: set model.class_weights to null for a regression.")
        found = getattr(data, "target_statistics", lambda: None)()
        if found is not None:
            self.shift.copy_(torch.as_tensor(found[0]))
            self.scale.copy_(torch.as_tensor(found[1]))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        wanted = ((target - self.shift) / self.scale).nan_to_num()
        return (F.huber_loss(logits.float(), wanted, reduction="none") * known).sum() / known.sum().clamp_min(1)

    def read(self, logits: Tensor) -> Tensor:
        return logits.float() * self.scale + self.shift

    def outcome(self, target: Tensor, prediction: Tensor, names: Sequence[str]) -> Outcome:
        return NumbersOutcome.of(*(part.cpu().double().numpy() for part in (target, prediction)), names)

    def _scores(self, target: Tensor, prediction: Tensor) -> dict[str, float]:
        found = super()._scores(target, prediction)
        # One name for one column and for several, so that a recipe can watch it.
        return {"spearman": found.pop("mean_spearman"), **found} if "mean_spearman" in found else found
