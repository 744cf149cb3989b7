"""What a segmentation of several classes found: pixels of each picture by true and found class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.nn.segmentation import IGNORE
from zoo.tasks.outcomes import Array, Outcome, Scores

MOST_NAMED = 30
"""Classes up to which each has scores of its own in the results; of more only the means."""


def count_regions(found: Tensor, true: Tensor, classes: int) -> Tensor:
    """Labels (B, H, W), `IGNORE` where a true one does not count, to pixels (B, C, C) of true and found class."""
    known = true != IGNORE
    at = (true.long().masked_fill(~known, 0) * classes + found.long()).flatten(1)
    counts = torch.zeros(len(found), classes * classes, dtype=torch.long, device=found.device)
    return counts.scatter_add_(1, at, known.long().flatten(1)).unflatten(1, (classes, classes)).cpu()


@dataclass
class RegionOutcome(Outcome):
    """Pixels `counts` (n, C, C) of each picture, the true class first.

    Scores are those of all pixels of the selected pictures together: IoU and Dice of each class that is there or was
    found, their means (mIoU as in PASCAL VOC), and the share of pixels that are right.
    """

    counts: Array = field(default_factory=lambda: np.zeros((0, 2, 2), dtype=np.int64))
    classes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[Tensor], classes: Sequence[str]) -> RegionOutcome:
        """From (B, C, C) of batches."""
        counts = torch.cat(list(rows)).numpy()
        return cls(len(counts), "mean IoU", counts=counts, classes=list(classes))

    def __post_init__(self) -> None:
        # A bootstrap asks hundreds of times: three numbers a class are all it needs.
        self._both = np.diagonal(self.counts, axis1=1, axis2=2)
        self._true, self._found = self.counts.sum(2), self.counts.sum(1)

    def scores(self, index: Array) -> Scores:
        both, true, found = (part[index].sum(0) for part in (self._both, self._true, self._found))
        iou, dice = _overlap(both, true, found)
        scores = {
            "mean IoU": _mean(iou),
            "mean Dice": _mean(dice),
            "pixel accuracy": float(both.sum() / max(1, true.sum())),
        }
        if len(self.classes) <= MOST_NAMED:
            for name, values in (("IoU", iou), ("Dice", dice)):
                scores |= {f"{name} {label}": float(v) for label, v in zip(self.classes, values, strict=True)}
        return scores

    def table(self) -> dict[str, Sequence[Any]]:
        iou, dice = _overlap(self._both, self._true, self._found)
        columns: dict[str, Sequence[Any]] = {
            "mean IoU": [round(_mean(row), 5) for row in iou],
            "mean Dice": [round(_mean(row), 5) for row in dice],
        }
        for name, values in (("IoU", iou), ("Dice", dice)):
            columns |= {f"{name} {label}": values[:, k].round(5).tolist() for k, label in enumerate(self.classes)}
        return columns

    def figures(self) -> dict[str, Any]:
        from zoo.tasks.outcome_figures import draw_confusion, draw_spread

        iou, _ = _overlap(self._both, self._true, self._found)
        share = self.counts.sum(0)
        shown = {"confusion": draw_confusion(share, self.classes, "pixels of held-out pictures", numbers="share")}
        if len(self.classes) <= 10:
            shown["pictures"] = draw_spread({f"IoU {name}": iou[:, k] for k, name in enumerate(self.classes)})
        return shown


def _overlap(both: Array, true: Array, found: Array) -> tuple[Array, Array]:
    """IoU and Dice, NaN of a class that is neither there nor found."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / (true + found - both), 2 * both / (true + found)


def _mean(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
