"""Fine-tuning a pre-trained ResNet for image classification with SGD, as Anderson & Farrell 2022 do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.module import StateDict
from zoo.nn.images import preprocess_images
from zoo.nn.resnets import build_resnet
from zoo.optim import norm_bias_groups, one_cycle
from zoo.tasks.evaluation import ImageClassifier
from zoo.tasks.start import check_image_size, describe_model, image_size_of, start_model


class ResNetClassification(ImageClassifier):
    """A timm ResNet with a fresh classifier, started from a backbone of the zoo or from scratch.

    Give `backbone` (start from pre-trained weights) or `network` (a timm ResNet with random weights). A checkpoint of
    this module carries the network's name and the number of classes, so it loads without the backbone it started from.
    Defaults are the official fine-tuning: SGD under a one-cycle schedule, a classifier that learns ten times as fast.
    From scratch the official runs take lr 0.15, weight_decay 1e-4 and head_lr_factor 1.

    Args:
        backbone: a zoo name, a manifest, a checkpoint or a run folder whose backbone is a timm ResNet (or what
            `describe_model` gives).
        network: instead of `backbone`: name of a timm ResNet. width: factor of its channels.
        num_classes: None takes it from the data.
        image_size: side of the images in pixels; None takes the data's (a ResNet takes any).
        lr, momentum, weight_decay: SGD; norm layers and biases do not decay.
        head_lr_factor: rate of the classifier relative to the rest. head_weight_decay: decay of its weight.
        warmup: share of all steps in which the rate rises.
        final_div_factor: how far below its start (lr / 25) the rate ends.
        label_smoothing: of the targets.
        mean, std: normalisation for `preprocess`; the official fine-tuning has 0.5 throughout, unlike pre-training.
        channels_last: memory layout of the convolutions.
        class_weights: of the classes (of labels: of their positives) in the training loss: a list, "balanced" (the
            rarer, the heavier) or None.
        targets: "classes", "labels" (any number of them a picture), "numbers", or None for what the data gives.
        classes, view: names of the classes, and how the data shows a held-out image; taken from the data.
        tuning: what is trained, such as {mode: frozen}, {mode: partial, blocks: 2} or {mode: lora, rank: 8}; see
            `zoo.tasks.tuning.Tuning`.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any] | None = None,
        network: str | None = None,
        width: float = 1.0,
        num_classes: int | None = None,
        image_size: int | None = None,
        lr: float = 0.015,
        momentum: float = 0.9,
        weight_decay: float = 5e-5,
        head_lr_factor: float = 10.0,
        head_weight_decay: float = 1e-4,
        warmup: float = 0.1,
        final_div_factor: float = 1e4,
        label_smoothing: float = 0.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        channels_last: bool = True,
        class_weights: list[float] | Literal["balanced"] | None = None,
        targets: Literal["classes", "labels", "numbers"] | None = None,
        tuning: dict[str, Any] | None = None,
        classes: list[str] | None = None,
        view: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if (backbone is None) == (network is None):
            raise ZooError("Give either model.backbone (a pre-trained start) or model.network (from scratch).")
        if lr <= 0:
            raise ZooError(f"A learning rate lies above 0, not at {lr}.")
        self._start: StateDict | None = None
        self._own: ResNet | None = None  # a shape that `network` and `width` do not describe
        self._origin: dict[str, Any] | None = None
        if backbone is not None:
            model = start_model(backbone)
            encoder = model.backbone
            if not isinstance(encoder, ResNet):
                raise ZooError(f"{backbone} has a {type(encoder).__name__}; this task fine-tunes timm's ResNets only.")
            network, width = str(model.hparams.get("network")), model.hparams.get("width", 1.0)
            image_size = image_size or image_size_of(model)
            if model.hparams.get("network_options"):
                self._own, self._origin = encoder, describe_model(model)
            else:
                self._start = encoder.state_dict()
        assert network is not None
        self.network, self.width, self.image_size = network, width, image_size
        if num_classes is not None:
            self._build(num_classes)

    def _build(self, num_classes: int) -> None:
        self._count_classes(num_classes)
        if self._own is not None:
            self._own.reset_classifier(num_classes)
            self.backbone, self._own = self._own, None
        else:
            self.backbone = build_resnet(self.network, num_classes, self.width)
        if self._start is not None:
            body = {key: value for key, value in self._start.items() if not key.startswith("fc.")}
            missing, unexpected = self.backbone.load_state_dict(body, strict=False)
            stray = [key for key in missing if not key.startswith("fc.")] + list(unexpected)
            if stray:
                raise ZooError(f"The backbone {self.hparams.backbone} does not fit: {', '.join(stray[:5])}.")
            self._start = None
        if self.hparams.channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.criterion = nn.CrossEntropyLoss(label_smoothing=self.hparams.label_smoothing)

    def setup(self, stage: str) -> None:
        # A ResNet takes images of any size, so only an explicit wish is held against the data.
        check_image_size(self, self.hparams.image_size, ", or model.image_size to what the data gives")
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.image_size = data.hparams.get("image_size") or self.image_size
        self._match_classes()

    # ------------------------------------------------------------------ the representation

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images (one or a list) to a normalised (B, 3, image_size, image_size) batch."""
        own = {"mean": self.hparams.mean, "std": self.hparams.std}
        return preprocess_images(raw, self.image_size or 224, **(own | self.view()))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to pooled features (B, D)."""
        return self.backbone.forward_head(self.backbone.forward_features(self._layout(images)), pre_logits=True)

    def classify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, num_classes)."""
        return self.backbone(self._layout(images))

    def _layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.hparams.channels_last else images

    # ------------------------------------------------------------------ training

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        images, labels = batch[:2]
        logits = self.classify(images).float()
        if self.columns is not None:
            loss = self.columns.loss(logits, labels)
        elif self.class_weight is None:
            loss = self.criterion(logits, labels)
        else:
            smoothing = self.hparams.label_smoothing
            loss = nn.functional.cross_entropy(logits, labels, self.class_weight, label_smoothing=smoothing)
        self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        heads = {
            "fc.weight": {"lr": h.lr * h.head_lr_factor, "weight_decay": h.head_weight_decay},
            "fc.bias": {"lr": h.lr * h.head_lr_factor, "weight_decay": 0.0},
        }
        groups = norm_bias_groups(self.backbone, h.lr, h.weight_decay, heads)
        optimizer = torch.optim.SGD(groups, lr=h.lr, momentum=h.momentum)
        schedule = one_cycle(
            optimizer,
            int(self.trainer.estimated_stepping_batches),
            warmup=h.warmup,
            final_div_factor=h.final_div_factor,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # What it became, not where it started: the checkpoint must load without the backbone's weights at hand.
        hparams = dict(checkpoint.get("hyper_parameters") or self.hparams)
        hparams |= {
            "backbone": self._origin,
            "network": self.network if self._origin is None else None,
            "width": self.width,
            "num_classes": self.num_classes,
            "image_size": self.image_size,
            **self.became(),
        }
        checkpoint["hyper_parameters"] = hparams
