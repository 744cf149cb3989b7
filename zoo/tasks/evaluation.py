"""What image classifiers share: targets that agree with the data's, held-out scores, predictions of new images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from zoo.errors import ZooError
from zoo.tasks.image_targets import KINDS, ColumnTargets, LabelTargets, NumberTargets
from zoo.tasks.outcomes import ClassOutcome, Outcome
from zoo.tasks.start import classes_in_data, weights_of_classes
from zoo.tasks.tuning import TunedTask


class ImageClassifier(TunedTask):
    """Base of the classification tasks: a subclass gives `classify` and builds its network in `_build(num_classes)`.

    `_build` calls `_count_classes(num_classes)`. What is predicted follows the hyper-parameter `targets`, or the data:
    "classes", one of which each picture has; "labels", any of which it may have; or "numbers". Logged are
    `{val,test}/loss` (of the plain targets, whatever the training loss) and, of classes, `acc1` and, where there are
    more than five, `acc5`; of labels `mAP`, `auroc` and `f1`; of numbers `spearman`, of a single one `mae` and `r2`.

    Attributes:
        num_classes: classes, labels or numbers. columns: what labels and numbers need; None for classes.
    """

    num_classes: int
    class_weight: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.columns: ColumnTargets | None = None  # on the class it would hide the part that is set later

    @property
    def targets(self) -> str:
        """ "classes", "labels" or "numbers"."""
        data = getattr(self._trainer, "datamodule", None)
        kind = self.hparams.get("targets") or getattr(data, "targets", None) or "classes"
        if kind not in KINDS:
            raise ZooError(f"model.targets is {', '.join(KINDS)} or null, which takes the data's, not {kind!r}.")
        return kind

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, num_classes)."""
        raise NotImplementedError(f"{type(self).__name__} has no classify yet")

    def _build(self, num_classes: int) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no _build yet")

    def _count_classes(self, num_classes: int) -> None:
        kind = self.targets
        if kind != "classes":
            if num_classes < 1:
                raise ZooError(f"There must be one column of {kind} at least.")
            self.num_classes = num_classes
            smoothing = float(self.hparams.get("label_smoothing") or 0.0)
            self.columns = LabelTargets(num_classes, smoothing) if kind == "labels" else NumberTargets(num_classes)
            return
        if num_classes < 2:
            raise ZooError(f"There must be at least two classes to tell apart, not {num_classes}.")
        self.num_classes = num_classes
        scores = {"acc1": 1} | ({"acc5": 5} if num_classes > 5 else {})
        self.accuracy = nn.ModuleDict(
            {name: MulticlassAccuracy(num_classes, top_k=k, average="micro") for name, k in scores.items()}
        )

    def _match_classes(self) -> None:
        """Builds for the classes of the trainer's data, or raises `ZooError` where they are not the network's."""
        given = getattr(getattr(self.trainer, "datamodule", None), "targets", "classes")
        if given != self.targets:
            raise ZooError(f"The data gives {given}, the model wants {self.targets}: set model.targets to null.")
        if not hasattr(self, "num_classes"):
            self._build(classes_in_data(self))
        elif getattr(self.trainer, "datamodule", None) is not None and classes_in_data(self) != self.num_classes:
            raise ZooError(
                f"The data has {classes_in_data(self)} classes, the model {self.num_classes}: set model.num_classes."
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.columns is not None:
            self.columns.learn(self.trainer.datamodule, self.hparams.get("class_weights"))  # type: ignore[attr-defined]
            return
        weights = weights_of_classes(self, self.hparams.get("class_weights"), self.num_classes)
        self.class_weight = None if weights is None else weights.to(self.device)

    def view(self) -> dict[str, Any]:
        """How held-out images were shown (crop_pct, mean, std), for `preprocess`; empty if it is not known."""
        data = getattr(self._trainer, "datamodule", None)
        if data is not None and getattr(data, "mean", None) is not None and hasattr(data, "view"):
            shown = {"mean": [float(v) for v in data.mean], "std": [float(v) for v in data.std]}
            crop = data.hparams.get("eval_crop_pct")
            return shown if crop is None else {"crop_pct": float(crop), **shown}
        return dict(self.hparams.get("view") or {})

    def class_names(self) -> list[str]:
        """Names of the classes: the data's, else those of the checkpoint, else numbers."""
        data = getattr(self._trainer, "datamodule", None)
        names = getattr(data, "classes", None) or self.hparams.get("classes")
        return list(names) if names else [str(number) for number in range(self.num_classes)]

    def became(self) -> dict[str, Any]:
        """Hyper-parameters that the data decided, for the checkpoint."""
        return {"classes": self.class_names(), "view": self.view() or None, "targets": self.targets}

    def column_loss(self, images: Tensor, target: Tensor, share: Any = None) -> Tensor:
        """Training loss of labels or numbers; `share` mixes each picture's target with that of its mirror place."""
        assert self.columns is not None
        if share is not None:
            target = share * target + (1 - share) * target.flip(0)
        return self.columns.loss(self.classify(images), target)

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """(B, num_classes) probabilities, or numbers in their own units."""
        logits = self.classify(batch[0] if isinstance(batch, list | tuple) else batch).float()
        return logits.softmax(-1) if self.columns is None else self.columns.read(logits)

    def outcome_rows(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What a report keeps of a batch: targets and predictions."""
        return batch[1], self.predict_step(batch, 0)

    def outcome(self, rows: list[tuple[Tensor, Tensor]], data: Any) -> Outcome:
        """What was found on all held-out images."""
        if self.columns is not None:
            return self.columns.outcome(*(torch.cat(parts) for parts in zip(*rows, strict=True)), self.class_names())
        return ClassOutcome.of(rows, self.class_names())

    def _evaluate(self, batch: tuple[Tensor, ...], stage: str) -> None:
        images, labels = batch[:2]
        logits = self.classify(images).float()
        if self.columns is not None:
            loss = self.columns.loss(logits, labels)
            self.log(f"{stage}/loss", loss, sync_dist=True, batch_size=len(images))
            self.columns.metrics[stage].update(labels, self.columns.read(logits))
            return
        self.log(f"{stage}/loss", nn.functional.cross_entropy(logits, labels), sync_dist=True, batch_size=len(images))
        for name, metric in self.accuracy.items():
            metric(logits, labels)
            self.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=len(images))

    def on_validation_epoch_end(self) -> None:
        self._log_columns("val")

    def on_test_epoch_end(self) -> None:
        self._log_columns("test")

    def _log_columns(self, stage: str) -> None:
        if self.columns is None:
            return
        metric = self.columns.metrics[stage]
        if not self.trainer.sanity_checking:
            self.log_dict({f"{stage}/{name}": value for name, value in metric.compute().items()}, prog_bar=True)
        metric.reset()
