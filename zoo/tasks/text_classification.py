"""Fine-tuning a text encoder for classification or regression of sentences and pairs, as BERT and ELECTRA do it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassMatthewsCorrCoef,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from zoo.errors import ZooError
from zoo.module import full_precision
from zoo.optim_text import Schedule
from zoo.tasks.outcomes import ClassOutcome, NumberOutcome, Outcome
from zoo.tasks.start import classes_in_data, weights_of_classes
from zoo.tasks.text_heads import ClassificationHead
from zoo.tasks.text_task import Batch, TextTask


class TextClassification(TextTask):
    """An encoder of the zoo with dropout and a linear layer on [CLS].

    A checkpoint carries the encoder's description and the tokenizer, so it loads without the backbone it started from.

    Args:
        backbone: a zoo name, a checkpoint or a run folder of a text model, or of this task (its classifier is kept if
            the classes are as many); `{class_path, init_args}` starts from scratch.
        pretrained: False takes the backbone's network with random weights: the from-scratch baseline.
        truncate_layers: keep only this many of the encoder's bottom layers.
        num_classes: None takes it from the data; 1 is regression. classes: their names, taken from the data too.
        regression: predict a number (squared error) instead of a class.
        loss_reduction: "mean", or "sum" over the batch before clipping, as ELECTRA's released code has it.
        dropout: before the linear layer.
        lr, weight_decay, betas, eps, clip_grad: Adam without bias correction.
        warmup: share of all steps, or a number of steps; schedule: "electra" or "bert" (`zoo.optim_text`).
        layer_decay: learning-rate factor from one layer to the one below; official_layer_decay as ELECTRA's code.
        tokenizer, vocab_size, max_positions: filled in from the backbone.
        class_weights: of the classes in the training loss: a list, "balanced", or None.
        tuning: what is trained, such as {mode: frozen}, {mode: partial, blocks: 2} or {mode: lora, rank: 8}; see
            `zoo.tasks.tuning.Tuning`.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any],
        pretrained: bool = True,
        truncate_layers: int | None = None,
        num_classes: int | None = None,
        classes: list[str] | None = None,
        regression: bool = False,
        loss_reduction: Literal["mean", "sum"] = "mean",
        dropout: float = 0.1,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        warmup: float = 0.1,
        schedule: Schedule = "electra",
        layer_decay: float = 0.8,
        official_layer_decay: bool = False,
        clip_grad: float | None = 1.0,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        max_positions: int | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        tuning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Not through hparams: a subclass need not have these arguments.
        self.regression = regression
        self.classes = classes
        self.class_weight: Tensor | None = None
        self.official_layer_decay = official_layer_decay
        self._start_head = self.start_from(backbone, pretrained, truncate_layers, tokenizer)
        if num_classes is not None or regression:
            self._build(1 if regression else int(num_classes))  # type: ignore[arg-type]

    def _build(self, num_outputs: int) -> None:
        if not self.regression and num_outputs < 2:
            raise ZooError(f"There must be at least two classes to tell apart, not {num_outputs}.")
        self.num_outputs = num_outputs
        width = self.encoder.backbone.config.hidden_size
        self.head = ClassificationHead(width, num_outputs, self.hparams.dropout)
        if self._start_head is not None and self._start_head["dense.bias"].shape[0] == num_outputs:
            self.head.load_state_dict(self._start_head)
        self._start_head = None
        if self.regression:
            self.metrics = MetricCollection({"spearman": SpearmanCorrCoef(), "pearson": PearsonCorrCoef()})
        else:
            scores: dict[str, Any] = {
                "acc": MulticlassAccuracy(num_outputs, average="micro"),
                "mcc": MulticlassMatthewsCorrCoef(num_outputs),
            }
            if num_outputs == 2:
                scores["f1"] = BinaryF1Score()
            self.metrics = MetricCollection(scores)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(self, "head"):
            self._build(classes_in_data(self))
        names = getattr(data, "classes", None)
        if stage == "fit" and names and len(names) == self.num_outputs:
            self.classes = list(names)
        if data is not None and getattr(data, "num_classes", self.num_outputs) != self.num_outputs:
            raise ZooError(
                f"The data has {data.num_classes} classes, the model {self.num_outputs}: set model.num_classes."
            )

    # ------------------------------------------------------------------ the representation

    def forward(self, batch: Batch) -> Tensor:
        """To (B, D): what the head classifies, the encoder's [CLS] (through its pooler, where it has one)."""
        if hasattr(self.encoder, "pooled"):
            return self.encoder.pooled(batch)
        return self.encoder.forward_tokens(batch)[:, 0]

    def classify(self, batch: Batch) -> Tensor:
        """To logits (B, num_classes), or (B, 1) scores, in float32."""
        features = self(batch)
        with full_precision(features.device.type):
            return self.head(features.float())

    # ------------------------------------------------------------------ training

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) cross-entropy or squared error."""
        if self.regression:
            return (logits[:, 0] - labels.float()) ** 2
        return F.cross_entropy(logits, labels, reduction="none")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        given = self.hparams.get("class_weights")
        if given is not None and self.regression:
            raise ZooError("Numbers have no classes: set model.class_weights to null for a regression.")
        weights = weights_of_classes(self, given, self.num_outputs)
        self.class_weight = None if weights is None else weights.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(self.classify(batch), batch["label"])
        if self.class_weight is not None:
            losses = losses * self.class_weight[batch["label"]]
        self.log("train/loss", losses.mean().detach(), batch_size=len(losses))
        return self.reduce(losses)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, num_classes) probabilities, or (B,) scores."""
        logits = self.classify(batch)
        return logits[:, 0] if self.regression else logits.softmax(-1)

    def outcome_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a report keeps of a batch: labels and probabilities, or numbers."""
        return batch["label"], self.predict_step(batch, 0)

    def outcome(self, rows: list[tuple[Tensor, Tensor]], data: Any) -> Outcome:
        """What was found in all held-out texts."""
        if self.regression:
            return NumberOutcome.of(rows)
        return ClassOutcome.of(rows, self.classes or [str(i) for i in range(self.num_outputs)])

    def _evaluate(self, batch: Batch, stage: str) -> None:
        logits, labels = self.classify(batch), batch["label"]
        self.log(f"{stage}/loss", self.losses(logits, labels).mean(), sync_dist=True, batch_size=len(labels))
        self.metrics.update(logits[:, 0] if self.regression else logits.argmax(-1), labels)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        # Computed once over the whole set: correlations are no means of batches.
        if self.trainer.sanity_checking:
            self.metrics.reset()
            return
        values = {f"{stage}/{name}": torch.as_tensor(value).float() for name, value in self.metrics.compute().items()}
        self.log_dict(values, prog_bar=True)
        self.metrics.reset()

    def became(self) -> dict[str, Any]:
        return {"num_classes": self.num_outputs, "classes": self.classes}
