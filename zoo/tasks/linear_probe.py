"""Linear classification on frozen features, by MAE's protocol."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from zoo.module import ZooModule
from zoo.optim import resolve_lr, warmup_cosine
from zoo.tasks.start import check_image_size, classes_in_data, describe_model, image_size_of, start_model


class LinearProbe(ZooModule):
    """Batch normalisation without parameters, then one linear layer, on the features of a frozen model.

    The protocol of MAE (He et al. 2022, appendix A.1): LARS, no weight decay, base_lr 0.1 for 256 images, ten epochs
    of warm-up. The features are what the model's own `forward` gives.

    Args:
        backbone: a zoo name, a manifest, a checkpoint or a run folder (or what `describe_model` gives).
        num_classes: None takes it from the data.
        base_lr: learning rate for 256 images; `lr` overrides it.
        momentum, weight_decay, warmup_epochs, min_lr: LARS and its schedule.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any],
        num_classes: int | None = None,
        base_lr: float = 0.1,
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_epochs: float = 10.0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.frozen = start_model(backbone).requires_grad_(False).eval()
        self.head: nn.Sequential | None = None
        if num_classes is not None:
            self._build(num_classes)

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        return self.frozen.backbone

    def _build(self, num_classes: int) -> None:
        # LazyLinear would leave the optimiser without shapes: ask the frozen model once.
        images = torch.zeros(1, *self.frozen.preprocess(_blank()).shape[1:])
        with torch.no_grad():
            dim = self.frozen(images).shape[1]
        linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.num_classes = num_classes
        self.head = nn.Sequential(nn.BatchNorm1d(dim, affine=False, eps=1e-6), linear)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def setup(self, stage: str) -> None:
        check_image_size(self, image_size_of(self.frozen))
        if self.head is None:
            self._build(classes_in_data(self))

    def train(self, mode: bool = True) -> LinearProbe:
        super().train(mode)
        self.frozen.eval()  # no dropout, no moving statistics
        return self

    def preprocess(self, raw: Any) -> Tensor:
        """As the frozen model's."""
        return self.frozen.preprocess(raw)

    def forward(self, images: Tensor) -> Tensor:
        """Frozen features (B, D)."""
        with torch.no_grad():
            return self.frozen(images)

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, num_classes)."""
        assert self.head is not None, "the number of classes is not known yet"
        return self.head(self(images).float())

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        images, labels = batch[:2]
        loss = nn.functional.cross_entropy(self.classify(images), labels)
        self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, ...], stage: str) -> None:
        images, labels = batch[:2]
        self.accuracy(self.classify(images), labels)
        self.log(f"{stage}/acc1", self.accuracy, prog_bar=True, batch_size=len(images))

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        lr = resolve_lr(self, h.base_lr, h.lr)
        linear = self.head[1]
        # As in MAE: the trust ratio scales matrices even without weight decay, and leaves 1-D parameters alone.
        groups = [
            {"params": [linear.weight], "always_adapt": True},
            {"params": [linear.bias], "always_adapt": False, "weight_decay": 0.0},
        ]
        optimizer = Lars(groups, lr=lr, momentum=h.momentum, weight_decay=h.weight_decay)
        schedule = warmup_cosine(self, optimizer, lr=lr, min_lr=h.min_lr, warmup_epochs=h.warmup_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        hparams = dict(checkpoint.get("hyper_parameters") or self.hparams)
        hparams |= {"backbone": describe_model(self.frozen), "num_classes": self.num_classes}
        checkpoint["hyper_parameters"] = hparams


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (8, 8))
