"""Segmentation of pictures: one foreground and the rest, or several classes, on a pre-trained ResNet or ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from zoo.errors import ZooError
from zoo.module import full_precision
from zoo.nn.images import preprocess_images, to_uint8
from zoo.nn.resnets import build_resnet
from zoo.nn.segmentation import (
    IGNORE,
    Segmenter,
    build_segmenter,
    class_segmentation_loss,
    on_whole,
    soft_dice_loss,
)
from zoo.optim import adamw, layer_decay_groups, norm_bias_groups, one_cycle, warmup_cosine
from zoo.tasks.outcomes import Outcome, SampleOutcome
from zoo.tasks.region_outcome import RegionOutcome, count_regions
from zoo.tasks.start import describe_model, start_model, weights_of_classes
from zoo.tasks.tuning import TunedTask


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
    """A U-Net (on a ResNet) or UPerNet (on a ViT) that starts from a backbone of the zoo, or from scratch.

    Needs the extra `segmentation`. With `num_classes: 1` the protocol of Anderson & Farrell 2022 for glands: soft Dice,
    mixup, SGD under a one-cycle schedule, and the mean IoU over the four corners of every held-out picture. With more
    classes cross-entropy plus soft Dice, and mean IoU and Dice over the pixels of whole held-out pictures. A checkpoint
    loads without the backbone it started from.

    Args:
        backbone: a zoo name, a manifest, a checkpoint or a run folder whose backbone is a timm ResNet or ViT (or what
            `describe_model` gives).
        network: instead of `backbone`: the name of such a network in timm, with random weights.
        num_classes: 1 is one kind of thing against the rest; None takes the data's.
        image_size: side of the squares that the network is trained on.
        decoder_width: channels of UPerNet's decoder.
        mixup: both parameters of the Beta distribution of the mixing share; 0 for none.
        optimizer: "sgd" under a one-cycle schedule, or "adamw" under a cosine, as ViTs like it.
        lr, momentum, weight_decay: norm layers and biases do not decay.
        layer_decay: factor of the rate from one block of a ViT to the one below ("adamw").
        warmup: share of all steps in which the rate rises. final_div_factor: how far below its start it ends ("sgd").
        class_weights: of the classes in the cross-entropy: a list, "balanced" (the rarer, the heavier) or None.
        mean, std: normalisation for `preprocess`; the data's, where there are data.
        short_side: pixels that the shorter side of a new picture is brought to; None leaves it as it is. Taken from
            the data, as are `classes`.
        tuning: what is trained, such as {mode: frozen}, {mode: partial, blocks: 2} or {mode: lora, rank: 8}; see
            `zoo.tasks.tuning.Tuning`.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any] | None = None,
        network: str | None = None,
        num_classes: int | None = 1,
        image_size: int = 448,
        decoder_width: int = 256,
        mixup: float = 0.5,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        layer_decay: float = 0.75,
        warmup: float = 0.1,
        final_div_factor: float = 1e3,
        class_weights: list[float] | Literal["balanced"] | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        short_side: int | None = None,
        classes: list[str] | None = None,
        tuning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if (backbone is None) == (network is None):
            raise ZooError("Give either model.backbone (a pre-trained start) or model.network (from scratch).")
        if lr <= 0 or mixup < 0:
            raise ZooError(f"A learning rate lies above 0 and mixup not below it, not at {lr} and {mixup}.")
        if optimizer not in ("sgd", "adamw"):
            raise ZooError(f"model.optimizer is sgd or adamw, not {optimizer!r}.")
        if backbone is not None:
            start = start_model(backbone)
            self._origin: dict[str, Any] = {"backbone": describe_model(start), "network": None}
            self._encoder, self._name = start.backbone, str(backbone)
        else:
            self._origin = {"backbone": None, "network": network}
            self._encoder, self._name = _from_scratch(str(network)), str(network)
        self.class_weight: Tensor | None = None
        if num_classes is not None:
            self._build(num_classes)

    def _build(self, num_classes: int) -> None:
        h = self.hparams
        if not 1 <= num_classes < IGNORE:
            raise ZooError(f"model.num_classes is 1 to {IGNORE - 1}, not {num_classes}.")
        self.num_classes = num_classes
        self.segmenter: Segmenter = build_segmenter(
            self._encoder, num_classes, h.image_size, h.decoder_width, self._name
        )
        del self._encoder
        stages = ("val", "test")
        if num_classes == 1:
            self.iou: nn.ModuleDict = nn.ModuleDict({stage: MeanMetric() for stage in stages})
        else:
            settings: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORE, "validate_args": False}
            self.iou = nn.ModuleDict({stage: MulticlassJaccardIndex(**settings) for stage in stages})
            self.dice = nn.ModuleDict({stage: MulticlassF1Score(average="macro", **settings) for stage in stages})

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        given = getattr(data, "num_classes", None)
        size = None if data is None else data.hparams.get("image_size")
        if size is not None and size != self.hparams.image_size:
            raise ZooError(
                f"The data gives squares of {size} pixels, the network takes {self.hparams.image_size}: set "
                "data.image_size and model.image_size alike."
            )
        if not hasattr(self, "segmenter"):
            if given is None:
                raise ZooError("The data does not say how many classes there are: give model.num_classes a value.")
            self._build(given)
            self.segmenter.to(self.device)
        elif (given or 1) != self.num_classes and data is not None:
            raise ZooError(
                f"The data has {given or 1} classes, the model {self.num_classes}: set model.num_classes to null, "
                "which takes the data's."
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.num_classes > 1 and self.hparams.class_weights is not None:
            weights = weights_of_classes(self, self.hparams.class_weights, self.num_classes)
            self.class_weight = None if weights is None else weights.to(self.device)

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        return self.segmenter.encoder if hasattr(self, "segmenter") else self._encoder

    @property
    def image_size(self) -> int:
        return self.hparams.image_size

    def view(self) -> dict[str, Any]:
        """How held-out pictures were shown: mean, std, short_side."""
        data = getattr(self._trainer, "datamodule", None)
        if data is not None and getattr(data, "mean", None) is not None:
            shown = {"mean": [float(v) for v in data.mean], "std": [float(v) for v in data.std]}
            return {**shown, "short_side": getattr(data, "short_side", None)}
        return {key: self.hparams[key] for key in ("mean", "std", "short_side")}

    def class_names(self) -> list[str]:
        """Names of the classes: the data's, else those of the checkpoint, else numbers."""
        data = getattr(self._trainer, "datamodule", None)
        names = getattr(data, "classes", None) or self.hparams.classes
        return list(names) if names else [str(number) for number in range(max(2, self.num_classes))]

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images (one or a list) to a normalised (B, 3, image_size, image_size) batch."""
        view = self.view()
        return preprocess_images(raw, self.image_size, mean=view["mean"], std=view["std"])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S), S `image_size` (of a ResNet, sides that are multiples of 32), to logits (B, C, S, S)."""
        return self.segmenter(images)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, masks = batch[:2]
        share, order = 1.0, None
        if self.hparams.mixup > 0:
            drawn = torch.distributions.Beta(*(torch.tensor(float(self.hparams.mixup)),) * 2).sample().to(images)
            order = torch.randperm(len(images), device=images.device)
            images = drawn * images + (1 - drawn) * images[order]
            share = drawn
        logits = self(images)
        if self.num_classes == 1:
            target = masks.to(images.dtype)
            loss = self._loss(logits, target if order is None else share * target + (1 - share) * target[order])
        else:
            loss = self._loss(logits, masks)
            if order is not None:
                loss = share * loss + (1 - share) * self._loss(logits, masks[order])
        self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def _loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        if self.num_classes > 1:
            return class_segmentation_loss(logits, masks[:, 0], self.class_weight)
        with full_precision(logits.device.type):  # sums over 200,000 pixels
            return soft_dice_loss(logits.float().sigmoid(), masks.float())

    # ------------------------------------------------------------------ held-out pictures

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """(B, 3, H, W) of any size to probabilities (B, C, H, W); one map, of the thing, where C is 1."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        logits = on_whole(self.segmenter, images).float()
        return logits.sigmoid() if self.num_classes == 1 else logits.softmax(1)

    @torch.inference_mode()
    def segment(self, picture: Image.Image) -> Tensor:
        """A picture to its labels, uint8 (H, W) at its own size: 1 for the thing, or the number of the class."""
        view = self.view()
        shown, short = picture.convert("RGB"), view["short_side"]
        if short is not None:
            factor = short / min(shown.size)
            shown = shown.resize([max(1, round(side * factor)) for side in shown.size], Image.Resampling.BILINEAR)  # type: ignore[arg-type]
        shift, scale = (torch.tensor(view[key])[:, None, None] for key in ("mean", "std"))
        images = ((to_uint8(shown).float() / 255 - shift) / scale).unsqueeze(0).to(self.device)
        found = self.predict_step(images, 0)
        if shown.size != picture.size:
            found = nn.functional.interpolate(found, picture.size[::-1], mode="bilinear", align_corners=False)
        return (found[0, 0] > 0.5 if self.num_classes == 1 else found[0].argmax(0)).to(torch.uint8).cpu()

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        count = len(batch[0])
        if self.num_classes > 1:
            logits, masks = on_whole(self.segmenter, batch[0]).float(), batch[1][:, 0].long()
            self.log(f"{stage}/loss", self._loss(logits, batch[1]), sync_dist=True, batch_size=count)
            for name, metric in (("iou", self.iou[stage]), ("dice", self.dice[stage])):
                metric.update(logits, masks)
                self.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=count)
            return
        images, masks = (corners(part, self.hparams.image_size) for part in batch[:2])
        logits = self(images)
        self.log(f"{stage}/loss", self._loss(logits, masks), sync_dist=True, batch_size=count)
        found, true = (logits > 0).flatten(1), masks.bool().flatten(1)
        union = (found | true).sum(dim=1)
        iou = (found & true).sum(dim=1)[union > 0] / union[union > 0]  # nothing there and nothing found says nothing
        if len(iou):
            self.iou[stage](iou)
        self.log(f"{stage}/iou", self.iou[stage], prog_bar=True, batch_size=count)

    def outcome_rows(self, batch: tuple[Tensor, Tensor]) -> Any:
        """What a report keeps of each whole picture: IoU and Dice of the thing, or pixels by true and found class."""
        found = self.predict_step(batch, 0)
        if self.num_classes > 1:
            return count_regions(found.argmax(1), batch[1][:, 0], self.num_classes)
        marked, true = (found > 0.5).flatten(1), batch[1].bool().flatten(1)
        both, either = (marked & true).sum(1).double(), (marked | true).sum(1).double()
        return {"IoU": both / either, "Dice": 2 * both / (both + either)}

    def outcome(self, rows: list[Any], data: Any) -> Outcome:
        """What was found on all held-out pictures."""
        return SampleOutcome.of(rows, "Dice") if self.num_classes == 1 else RegionOutcome.of(rows, self.class_names())

    def figures(self, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Pictures with what is true and what is found in them, for the Figures callback."""
        from zoo.tasks.segmentation_figures import draw_classes, draw_masks

        view = self.view()
        if self.num_classes > 1:
            images, masks = (part[:3] for part in batch[:2])
            found = self.predict_step(images, 0).argmax(1)
            figure = draw_classes(images, masks[:, 0], found, self.class_names(), view["mean"], view["std"])
        else:
            images, masks = (corners(part[:3], self.hparams.image_size)[: len(part[:3])] for part in batch[:2])
            figure = draw_masks(images, masks, self(images).sigmoid(), view["mean"], view["std"])
        return {"segmentation": figure}

    # ------------------------------------------------------------------ optimiser, checkpoint

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        if h.optimizer == "adamw":
            groups = _adamw_groups(self.segmenter, h.weight_decay, h.layer_decay)
            adam = adamw(self, groups, lr=h.lr, betas=(0.9, 0.999), weight_decay=h.weight_decay)
            epochs = h.warmup * (self.trainer.max_epochs or 0)
            return {"optimizer": adam, "lr_scheduler": warmup_cosine(self, adam, lr=h.lr, warmup_epochs=epochs)}
        optimizer = torch.optim.SGD(
            norm_bias_groups(self.segmenter, h.lr, h.weight_decay), lr=h.lr, momentum=h.momentum
        )
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
        hparams |= {**self._origin, "num_classes": self.num_classes, **self.view()}
        hparams["classes"] = self.class_names() if self.num_classes > 1 else None
        checkpoint["hyper_parameters"] = hparams


def _from_scratch(name: str) -> nn.Module:
    if not timm.list_models(name, module="vision_transformer"):
        return build_resnet(name, 0)
    return timm.create_model(name, num_classes=0)


def _adamw_groups(segmenter: Segmenter, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Layer-wise decay over a ViT's blocks; decoder and ResNets at the full rate."""
    encoder = segmenter.encoder
    groups = layer_decay_groups(encoder, weight_decay, layer_decay) if isinstance(encoder, VisionTransformer) else []
    done = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in segmenter.parameters() if p.requires_grad and id(p) not in done]
    for decays in (True, False):
        chosen = [p for p in rest if (p.ndim > 1) == decays]
        groups.append({"params": chosen, "lr_scale": 1.0, "weight_decay": weight_decay if decays else 0.0})
    return groups
