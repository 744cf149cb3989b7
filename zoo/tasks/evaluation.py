"""What image classifiers share: classes that agree with the data's, held-out accuracy, probabilities of new images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from zoo.errors import ZooError
from zoo.tasks.outcomes import ClassOutcome
from zoo.tasks.start import classes_in_data, weights_of_classes
from zoo.tasks.tuning import TunedTask


class ImageClassifier(TunedTask):
    """Base of the classification tasks: a subclass gives `classify` and builds its network in `_build(num_classes)`.

    `_build` calls `_count_classes(num_classes)`. Logged are `{val,test}/loss` (cross-entropy of the plain labels,
    whatever the training loss), `acc1`, and `acc5` where there are more than five classes.
    """

    num_classes: int
    class_weight: Tensor | None = None

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, num_classes)."""
        raise NotImplementedError(f"{type(self).__name__} has no classify yet")

    def _build(self, num_classes: int) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no _build yet")

    def _count_classes(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ZooError(f"There must be at least two classes to tell apart, not {num_classes}.")
        self.num_classes = num_classes
        scores = {"acc1": 1} | ({"acc5": 5} if num_classes > 5 else {})
        self.accuracy = nn.ModuleDict(
            {name: MulticlassAccuracy(num_classes, top_k=k, average="micro") for name, k in scores.items()}
        )

    def _match_classes(self) -> None:
        """Builds for the classes of the trainer's data, or raises `ZooError` where they are not the network's."""
        if not hasattr(self, "num_classes"):
            self._build(classes_in_data(self))
        elif getattr(self.trainer, "datamodule", None) is not None and classes_in_data(self) != self.num_classes:
            raise ZooError(
                f"The data has {classes_in_data(self)} classes, the model {self.num_classes}: set model.num_classes."
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
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
        return {"classes": self.class_names(), "view": self.view() or None}

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """(B, num_classes) probabilities."""
        return self.classify(batch[0] if isinstance(batch, list | tuple) else batch).float().softmax(-1)

    def outcome_rows(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What a report keeps of a batch: labels and probabilities."""
        return batch[1], self.predict_step(batch, 0)

    def outcome(self, rows: list[tuple[Tensor, Tensor]], data: Any) -> ClassOutcome:
        """What was found on all held-out images."""
        return ClassOutcome.of(rows, self.class_names())

    def _evaluate(self, batch: tuple[Tensor, ...], stage: str) -> None:
        images, labels = batch[:2]
        logits = self.classify(images).float()
        self.log(f"{stage}/loss", nn.functional.cross_entropy(logits, labels), sync_dist=True, batch_size=len(images))
        for name, metric in self.accuracy.items():
            metric(logits, labels)
            self.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=len(images))
