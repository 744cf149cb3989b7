"""What image classifiers share: classes that agree with the data's, held-out accuracy, probabilities of new images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from zoo.errors import ZooError
from zoo.module import ZooModule
from zoo.tasks.start import classes_in_data


class ImageClassifier(ZooModule):
    """Base of the classification tasks: a subclass gives `classify` and builds its network in `_build(num_classes)`.

    `_build` calls `_count_classes(num_classes)`. Logged are `{val,test}/loss` (cross-entropy of the plain labels,
    whatever the training loss), `acc1`, and `acc5` where there are more than five classes.
    """

    num_classes: int

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

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """(B, num_classes) probabilities."""
        return self.classify(batch[0] if isinstance(batch, list | tuple) else batch).float().softmax(-1)

    def _evaluate(self, batch: tuple[Tensor, ...], stage: str) -> None:
        images, labels = batch[:2]
        logits = self.classify(images).float()
        self.log(f"{stage}/loss", nn.functional.cross_entropy(logits, labels), sync_dist=True, batch_size=len(images))
        for name, metric in self.accuracy.items():
            metric(logits, labels)
            self.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=len(images))
