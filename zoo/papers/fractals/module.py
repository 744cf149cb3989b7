"""Pre-training on fractals as a LightningModule (Anderson & Farrell, WACV 2022, arXiv 2110.03091).

Shape letters: B pictures, C classes, K labels a picture, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.module import StateDict, ZooModule, full_precision
from zoo.nn.images import preprocess_images
from zoo.nn.resnets import build_resnet
from zoo.optim import norm_bias_groups, one_cycle
from zoo.papers.fractals import weights
from zoo.papers.fractals.losses import average_precision, multi_hot, multi_instance_loss


class FractalPretraining(ZooModule):
    """A ResNet that tells which fractals are in a picture (multi-instance) or which one it is (multi-class).

    Defaults are the paper's: ResNet-50, 1000 systems, SGD under a one-cycle schedule without warm-up.

    Args:
        task: "multi_instance" (labels (B, K) with repeats, -1 for none) or "multi_class" (labels (B,)).
        num_classes: number of systems.
        network: name of a timm ResNet. width: factor of its channels.
        image_size: side of the pictures; `preprocess` brings images to it.
        optimizer: "sgd" (the paper's), or "adamw", which gets going in fewer steps: for runs of minutes.
        lr, momentum, weight_decay: of the optimiser; norm layers and biases do not decay. AdamW has no momentum to set.
        warmup: share of all steps in which the rate rises.
        final_div_factor: how far below its start (lr / 25) the rate ends.
        cycle_momentum: let the momentum rise from 0.85 to 0.95 as the rate falls (what the official runs do, by
            PyTorch's default); False keeps `momentum`.
        mean, std: the normalisation of the images that it was trained on, for `preprocess`. The paper's pixels lie
            between 0 and 1.
        channels_last: memory layout of the convolutions, the faster one on GPUs and most CPUs.
        compile: run the network through torch.compile.
    """

    def __init__(
        self,
        task: Literal["multi_instance", "multi_class"] = "multi_instance",
        num_classes: int = 1000,
        network: str = "resnet50",
        width: float = 1.0,
        image_size: int = 224,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        warmup: float = 0.0,
        final_div_factor: float = 1e3,
        cycle_momentum: bool = True,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if task not in ("multi_instance", "multi_class"):
            raise ZooError(f"task is 'multi_instance' or 'multi_class', not {task!r}.")
        if num_classes < 2:
            raise ZooError(f"There are at least two classes to tell apart, not {num_classes}.")
        if image_size < 32:
            raise ZooError(f"A ResNet divides the side by 32: image_size {image_size} is too small.")
        if lr <= 0:
            raise ZooError(f"A learning rate lies above 0, not at {lr}.")
        if optimizer not in ("sgd", "adamw"):
            raise ZooError(f"optimizer is 'sgd' or 'adamw', not {optimizer!r}.")
        self.backbone = build_resnet(network, num_classes, width)
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._classify = torch.compile(self._logits) if compile else self._logits

    # ------------------------------------------------------------------ the representation

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images (one or a list) to a (B, 3, image_size, image_size) batch, scaled as in training."""
        h = self.hparams
        return preprocess_images(raw, h.image_size, mean=h.mean, std=h.std)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D): what the classifier of the ResNet gets."""
        return self.backbone.forward_head(self.backbone.forward_features(self._layout(images)), pre_logits=True)

    def classify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, C)."""
        return self._classify(images)

    def _logits(self, images: Tensor) -> Tensor:
        return self.backbone(self._layout(images))

    def _layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.hparams.channels_last else images

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.from_official(state_dict) if weights.is_official(state_dict) else state_dict

    def official_state_dict(self) -> StateDict:
        """The weights under the names of the official script."""
        return weights.to_official(self.state_dict())

    # ------------------------------------------------------------------ training

    def compute_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss in float32 and the scores to log: average precision, or accuracy for multi_class."""
        with full_precision(logits.device.type):
            logits = logits.float()
            if self.hparams.task == "multi_class":
                accuracy = (logits.argmax(dim=1) == labels).float().mean()
                return F.cross_entropy(logits, labels), {"acc": accuracy}
            if labels.ndim != 2:
                raise ZooError("Multi-instance labels are (B, K): set data.task to multi_instance.")
            targets = multi_hot(labels, self.hparams.num_classes)
            return multi_instance_loss(logits, targets), {"average_precision": average_precision(logits, targets)}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val")

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        loss, scores = self.compute_loss(self.classify(images), labels)
        validating = stage == "val"
        self.log_dict(
            {f"{stage}/{name}": value.detach() for name, value in {"loss": loss, **scores}.items()},
            prog_bar=True,
            on_step=not validating,
            on_epoch=validating,
            sync_dist=validating,
            batch_size=len(images),
        )
        return loss

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        given = data.hparams.get("num_classes") if data is not None else None
        if stage == "fit" and given not in (None, self.hparams.num_classes):
            raise ZooError(
                f"The data has {given} classes, the model {self.hparams.num_classes}: set model.num_classes and "
                "data.num_classes to the same number."
            )

    def held_out_scores(self, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Average precision or accuracy on a batch of pictures, for `zoo.callbacks.transfer_report.TransferReport`."""
        name = "accuracy" if self.hparams.task == "multi_class" else "average precision"
        (score,) = self.compute_loss(self.classify(batch[0]), batch[1])[1].values()
        return {f"{name} on new fractal pictures": float(score)}

    def figures(self, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Pictures of a batch, for the Figures callback: classes side by side, and what the model finds in pictures."""
        from zoo.papers.fractals.figures import draw_classes, draw_predictions  # matplotlib is only needed here

        images, labels = batch
        scores = self.classify(images[:4]).float()
        scores = scores.sigmoid() if self.hparams.task == "multi_instance" else scores.softmax(-1)
        look = getattr(getattr(self.trainer, "datamodule", None), "class_picture", None)
        drawn = {
            "predictions": draw_predictions(images[:4], labels[:4], scores, self.hparams.mean, self.hparams.std, look)
        }
        if look is not None:
            drawn["classes"] = draw_classes(look, min(self.hparams.num_classes, 40))
        return drawn

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        groups = norm_bias_groups(self.backbone, h.lr, h.weight_decay)
        if h.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=h.lr, momentum=h.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=h.lr, weight_decay=h.weight_decay)
        schedule = one_cycle(
            optimizer,
            int(self.trainer.estimated_stepping_batches),
            warmup=h.warmup,
            final_div_factor=h.final_div_factor,
            cycle_momentum=h.cycle_momentum and h.optimizer == "sgd",
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}
