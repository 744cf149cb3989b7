"""What the three pre-training methods share: a ResNet for faces, its preprocessing, and batch norm over devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.module import ZooModule
from zoo.nn.batch_norm import SyncOnCPU
from zoo.nn.images import preprocess_images
from zoo.optim import resolve_lr
from zoo.papers.face_representation.network import build_resnet, pyramid
from zoo.papers.face_representation.optim import parameter_groups, warmup_cosine_schedule

MEAN = (0.485, 0.456, 0.406)
STD = (0.228, 0.224, 0.225)
"""The first value is 0.229 elsewhere: SwAV's code has 0.228, and all published face weights were trained with it."""

Crops = Sequence[Tensor]
"""One tensor a resolution, (B, n, 3, s, s): n crops of each of B images."""


class FaceEncoder(ZooModule):
    """Base of `SwAV`, `MoCo` and `SimSiam`: `backbone` is timm's ResNet without classifier."""

    static_graph = False  # SimSiam and MoCo run their networks twice a step

    def _init_encoder(self, network: str, network_options: Mapping[str, Any] | None, channels_last: bool) -> None:
        self.backbone = build_resnet(network, network_options)
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # ------------------------------------------------------------------ the representation

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images of cropped faces (one or a list) to a batch (B, 3, image_size, image_size).

        The shorter side is brought to image_size and the centre kept: nothing of a square crop is cut off. Photographs
        are turned upright by their EXIF note.
        """
        return preprocess_images(raw, self.hparams.image_size, crop_pct=1.0, mean=MEAN, std=STD, exif=True)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to pooled features (B, D); D is 2048 for a ResNet-50."""
        return self.backbone(self._layout(images))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the maps of the four stages, C2 at a quarter of the size to C5 at a 32nd."""
        return pyramid(self.backbone, self._layout(images))

    def _layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.hparams.channels_last else images

    # ------------------------------------------------------------------ shared by the training of all three

    def setup(self, stage: str) -> None:
        world, size = self.trainer.world_size, self.hparams.sync_bn_group
        if stage != "fit" or world == 1 or not size:
            return
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        if on_cpu and world > size:
            raise ZooError(f"On CPUs all processes share batch norm: set sync_bn_group to {world}, or to 0 for none.")
        if world > size and world % size:
            raise ZooError(f"sync_bn_group {size} does not divide the {world} devices: take a divisor, or 0 for none.")
        self.synchronise(self._group_of(size) if world > size else None, on_cpu)

    def on_train_end(self) -> None:
        # What comes after training may run on one device alone.
        SyncOnCPU().revert(self)
        for name, child in list(self.named_children()):
            setattr(self, name, TorchSyncBatchNorm().revert(child))

    def _group_of(self, size: int) -> Any:
        """The process group of `size` devices that this one belongs to."""
        mine = None
        for first in range(0, self.trainer.world_size, size):
            made = dist.new_group(list(range(first, first + size)))  # every process takes part in making every group
            if first <= self.trainer.global_rank < first + size:
                mine = made
        return mine

    def synchronise(self, group: Any = None, on_cpu: bool = False) -> None:
        """Batch norm over the devices of `group`, or over all; on CPUs a plain version stands in for torch's."""
        if on_cpu:
            SyncOnCPU().apply(self)
            return
        for name, child in list(self.named_children()):
            setattr(self, name, nn.SyncBatchNorm.convert_sync_batchnorm(child, group))

    def configure_optimizers(self) -> dict[str, Any]:
        """Plain SGD (MoCo, SimSiam); SwAV has its own."""
        h = self.hparams
        lr = resolve_lr(self, h.base_lr, h.lr)
        groups = parameter_groups(self, False)
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=h.momentum, weight_decay=h.weight_decay)
        schedule = warmup_cosine_schedule(
            self, optimizer, lr=lr, start=h.warmup_start, final=h.final, warmup=h.warmup_epochs
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _log_step(self, stage: str, values: dict[str, Tensor], batch_size: int) -> None:
        validating = stage == "val"
        self.log_dict(
            {f"{stage}/{name}": value.detach() for name, value in values.items()},
            prog_bar=True,
            on_step=not validating,
            on_epoch=validating,
            sync_dist=validating,
            batch_size=batch_size,
        )


def two_views(crops: Crops) -> tuple[Tensor, Tensor]:
    """The two large crops of every image, each (B, 3, s, s): what MoCo and SimSiam look at."""
    large = crops[0]
    if large.ndim != 5 or large.shape[1] != 2:
        raise ZooError("This method looks at two large crops of an image: set data.num_crops to [2].")
    return large[:, 0], large[:, 1]
