"""Segmentation of images into one foreground and the rest, by a U-Net on a pre-trained ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchmetrics import MeanMetric

from zoo.errors import ZooError
from zoo.extras import require
from zoo.module import StateDict, full_precision
from zoo.nn.images import preprocess_images
from zoo.optim import norm_bias_groups, one_cycle
from zoo.tasks.outcomes import SampleOutcome
from zoo.tasks.start import start_model
from zoo.tasks.tuning import TunedTask


def soft_dice_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """One minus the mean over the images of 2 |p t| / (|p| + |t|); both (B, 1, H, W), the target may be mixed."""
    p, t = probabilities.flatten(1), target.flatten(1).to(probabilities.dtype)
    return 1 - (2 * (p * t).sum(dim=1) / (p.sum(dim=1) + t.sum(dim=1) + 1e-6)).mean()


def corners(images: Tensor, size: int) -> Tensor:
    """The four corner squares of (B, C, H, W), side by side in the batch: (4 B, C, size, size)."""
    if min(images.shape[-2:]) < size:
        raise ZooError(f"Images of {tuple(images.shape[-2:])} pixels have no corners of {size}.")
    rows, columns = (
        (slice(size), slice(images.shape[-2] - size, None)),
        (slice(size), slice(images.shape[-1] - size, None)),
    )
    return torch.cat([images[..., row, column] for column in columns for row in rows])


class ImageSegmentation(TunedTask):
    """A U-Net whose encoder starts from a backbone of the zoo, or from scratch. Needs the extra `segmentation`.

    The protocol of Anderson & Farrell 2022 for glands: soft Dice, mixup, SGD under a one-cycle schedule with the same
    rate throughout, and the mean IoU over the four corners of every held-out image. A checkpoint carries the network's
    name, so it loads without the backbone it started from.

    Args:
        backbone: a zoo name, a manifest, a checkpoint or a run folder whose backbone is a ResNet of torchvision's
            shape (resnet18 to resnet152).
        network: instead of `backbone`: such a name, with random weights.
        image_size: side of the squares that the network sees.
        mixup: both parameters of the Beta distribution of the mixing share; 0 for none.
        lr, momentum, weight_decay: SGD; norm layers and biases do not decay.
        warmup: share of all steps in which the rate rises. final_div_factor: how far below its start it ends.
        mean, std: normalisation for `preprocess`.
        tuning: what is trained, such as {mode: frozen}, {mode: partial, blocks: 2} or {mode: lora, rank: 8}; see
            `zoo.tasks.tuning.Tuning`.
    """

    def __init__(
        self,
        backbone: str | None = None,
        network: str | None = None,
        image_size: int = 448,
        mixup: float = 0.5,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        warmup: float = 0.1,
        final_div_factor: float = 1e3,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        tuning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require("segmentation_models_pytorch", extra="segmentation", why="the U-Net comes from that library")
        from segmentation_models_pytorch import Unet
        from segmentation_models_pytorch.encoders import get_encoder_names

        self.save_hyperparameters()
        if (backbone is None) == (network is None):
            raise ZooError("Give either model.backbone (a pre-trained start) or model.network (from scratch).")
        if lr <= 0 or mixup < 0:
            raise ZooError(f"A learning rate lies above 0 and mixup not below it, not at {lr} and {mixup}.")
        start: StateDict = {}
        if backbone is not None:
            model = start_model(backbone)
            if not isinstance(model.backbone, ResNet):
                raise ZooError(f"{backbone} has a {type(model.backbone).__name__}; the U-Net takes ResNets only.")
            network, width = str(model.hparams.get("network")), model.hparams.get("width", 1.0)
            if width != 1:
                raise ZooError(
                    f"{backbone} has {width} times the channels of {network}; the U-Net takes whole ones only."
                )
            start = {key: value for key, value in model.backbone.state_dict().items() if not key.startswith("fc.")}
        assert network is not None
        if not network.startswith("resnet") or network not in get_encoder_names():
            raise ZooError(f"The U-Net has no encoder {network!r}: it takes resnet18, 34, 50, 101 and 152.")
        self.network = network
        self.unet = Unet(network, encoder_weights=None, classes=1)
        if backbone is not None:
            own = self.unet.encoder.state_dict()
            stray = list(own.keys() ^ start.keys()) or [k for k in own if own[k].shape != start[k].shape]
            if stray:
                raise ZooError(f"The backbone {backbone} does not fit {network}: {', '.join(sorted(stray)[:5])}.")
            self.unet.encoder.load_state_dict(start)
        self.iou = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        return self.unet.encoder

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images (one or a list) to a normalised (B, 3, image_size, image_size) batch."""
        h = self.hparams
        return preprocess_images(raw, h.image_size, mean=h.mean, std=h.std)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), sides multiples of 32, to logits (B, 1, H, W)."""
        return self.unet(images)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, masks = batch[0], batch[1].to(batch[0].dtype)
        if self.hparams.mixup > 0:
            share = torch.distributions.Beta(*(torch.tensor(float(self.hparams.mixup)),) * 2).sample().to(images)
            order = torch.randperm(len(images), device=images.device)
            images = share * images + (1 - share) * images[order]
            masks = share * masks + (1 - share) * masks[order]
        loss = self._loss(self(images), masks)
        self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def _loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        with full_precision(logits.device.type):  # sums over 200,000 pixels
            return soft_dice_loss(logits.float().sigmoid(), masks.float())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """(B, 3, H, W) to probabilities (B, 1, H, W); sides that are no multiples of 32 are filled up on the way."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        height, width = images.shape[-2:]
        filled = nn.functional.pad(images, (0, -width % 32, 0, -height % 32))
        return self(filled).float().sigmoid()[..., :height, :width]

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, masks = (corners(part, self.hparams.image_size) for part in batch[:2])
        logits = self(images)
        self.log(f"{stage}/loss", self._loss(logits, masks), sync_dist=True, batch_size=len(batch[0]))
        found, true = (logits > 0).flatten(1), masks.bool().flatten(1)
        union = (found | true).sum(dim=1)
        iou = (found & true).sum(dim=1)[union > 0] / union[union > 0]  # nothing there and nothing found says nothing
        if len(iou):
            self.iou[stage](iou)
        self.log(f"{stage}/iou", self.iou[stage], prog_bar=True, batch_size=len(batch[0]))

    def outcome_rows(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """IoU and Dice of each whole picture, NaN where nothing is there and nothing was found."""
        found, true = (self.predict_step(batch, 0) > 0.5).flatten(1), batch[1].bool().flatten(1)
        both, either = (found & true).sum(1).double(), (found | true).sum(1).double()
        return {"IoU": both / either, "Dice": 2 * both / (both + either)}

    def outcome(self, rows: list[dict[str, Tensor]], data: Any) -> SampleOutcome:
        """What was found on all held-out pictures."""
        return SampleOutcome.of(rows, "Dice")

    def figures(self, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Pictures with what is true and what is found in them, for the Figures callback."""
        from zoo.tasks.segmentation_figures import draw_masks

        images, masks = (corners(part[:3], self.hparams.image_size)[: len(part[:3])] for part in batch[:2])
        return {"segmentation": draw_masks(images, masks, self(images).sigmoid(), self.hparams.mean, self.hparams.std)}

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        optimizer = torch.optim.SGD(norm_bias_groups(self.unet, h.lr, h.weight_decay), lr=h.lr, momentum=h.momentum)
        schedule = one_cycle(
            optimizer,
            int(self.trainer.estimated_stepping_batches),
            warmup=h.warmup,
            final_div_factor=h.final_div_factor,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        hparams = dict(checkpoint.get("hyper_parameters") or self.hparams)
        checkpoint["hyper_parameters"] = hparams | {"backbone": None, "network": self.network}
