"""Fine-tuning a text encoder for classification or regression of sentences and pairs, as BERT and ELECTRA do it."""

from __future__ import annotations

import inspect
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
from zoo.module import StateDict, ZooModule, full_precision
from zoo.nn.text import pack_tokenizer
from zoo.nn.text_module import FROM_DATA, TextModule
from zoo.optim import clip_gradients
from zoo.optim_text import BertAdam, Schedule, linear_schedule, text_groups
from zoo.tasks.start import classes_in_data, describe_model, start_model
from zoo.tasks.text_heads import ClassificationHead

Batch = dict[str, Tensor]


class TextClassification(TextModule):
    """An encoder of the zoo with dropout and a linear layer on [CLS].

    A checkpoint carries the encoder's description and the tokenizer, so it loads without the backbone it started from.

    Args:
        backbone: a zoo name, a checkpoint or a run folder of a text model, or of this task (its classifier is kept if
            the classes are as many); `{class_path, init_args}` starts from scratch.
        pretrained: False takes the backbone's network with random weights: the from-scratch baseline.
        truncate_layers: keep only this many of the encoder's bottom layers.
        num_classes: None takes it from the data; 1 is regression.
        regression: predict a number (squared error) instead of a class.
        loss_reduction: "mean", or "sum" over the batch before clipping, as ELECTRA's released code has it.
        dropout: before the linear layer.
        lr, weight_decay, betas, eps, clip_grad: Adam without bias correction.
        warmup: share of all steps, or a number of steps; schedule: "electra" or "bert" (`zoo.optim_text`).
        layer_decay: learning-rate factor from one layer to the one below; official_layer_decay as ELECTRA's code.
        tokenizer, vocab_size, max_positions: filled in from the backbone.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any],
        pretrained: bool = True,
        truncate_layers: int | None = None,
        num_classes: int | None = None,
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
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Not through hparams: a subclass need not have these arguments.
        self.regression, self.loss_reduction = regression, loss_reduction
        self.official_layer_decay = official_layer_decay
        model = start_model(backbone)
        if not pretrained:
            known, model = getattr(model, "tokenizer", None), start_model(describe_model(model))
            if known is not None and isinstance(model, TextModule):
                model.carry(known)  # it may have travelled with the weights
        self._start_head: StateDict | None = None
        if isinstance(model, TextClassification):  # go on from a distilled or fine-tuned one, its classifier included
            self._start_head = model.head.state_dict() if pretrained else None
            model = model.encoder
        if not isinstance(model, TextModule) or not hasattr(model, "forward_tokens"):
            raise ZooError(f"{backbone} is no text model: this task fine-tunes encoders of text.")
        self.encoder: Any = model.train()
        if truncate_layers is not None:
            layers = model.backbone.encoder.layer
            if not 0 < truncate_layers <= len(layers):
                raise ZooError(f"truncate_layers lies from 1 to the encoder's {len(layers)}, not at {truncate_layers}.")
            del layers[truncate_layers:]
        self._drop_pretraining_parts(model)
        own = tokenizer or (None if model.hparams.get("tokenizer") == FROM_DATA else model.hparams.get("tokenizer"))
        self.hparams.update(
            tokenizer=own, vocab_size=model.hparams.vocab_size, max_positions=model.hparams.max_positions
        )
        if num_classes is not None or regression:
            self._build(1 if regression else int(num_classes))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Any:
        """The task's own tokenizer, else the encoder's."""
        return super().tokenizer or self.encoder.tokenizer

    @staticmethod
    def _drop_pretraining_parts(model: ZooModule) -> None:
        for name, child in list(model.named_children()):
            if child is not model.backbone and name != "pooler":
                setattr(model, name, None)

    @property
    def backbone(self) -> Any:  # type: ignore[override]
        """The bare encoder."""
        return self.encoder.backbone

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
        elif data is not None and getattr(data, "num_classes", self.num_outputs) != self.num_outputs:
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

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(self.classify(batch), batch["label"])
        self.log("train/loss", losses.mean().detach(), batch_size=len(losses))
        return losses.sum() if self.loss_reduction == "sum" else losses.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(B, num_classes) probabilities, or (B,) scores."""
        logits = self.classify(batch)
        return logits[:, 0] if self.regression else logits.softmax(-1)

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

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        groups = text_groups(
            self,
            lr=h.lr,
            weight_decay=h.weight_decay,
            layer_decay=h.layer_decay,
            num_layers=len(self.backbone.encoder.layer),
            official_layer_decay=self.official_layer_decay,
        )
        optimizer = BertAdam(groups, lr=h.lr, betas=tuple(h.betas), eps=h.eps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": linear_schedule(self, optimizer, warmup=h.warmup, kind=h.schedule),
        }

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip_gradients(self, self.hparams.clip_grad, "global", gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # What it became, not where it started.
        hparams = dict(checkpoint.get("hyper_parameters") or self.hparams)
        hparams |= {"backbone": describe_model(self.encoder), "pretrained": True, "num_classes": self.num_outputs}
        if self.encoder.tokenizer is None and self._tokenizer is not None:  # it came with the data
            hparams["tokenizer"] = pack_tokenizer(self._tokenizer)
        known = inspect.signature(type(self).__init__).parameters
        checkpoint["hyper_parameters"] = {key: value for key, value in hparams.items() if key in known}
