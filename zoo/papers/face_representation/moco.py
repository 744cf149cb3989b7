"""MoCo (v1, and v2 with the MLP head) on faces: the paper's first alternative to SwAV (He et al. 2020)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.module import StateDict, full_precision
from zoo.nn.gather import gather_with_gradient, world_size
from zoo.papers.face_representation import weights
from zoo.papers.face_representation.encoder import Crops, FaceEncoder, two_views
from zoo.papers.face_representation.losses import contrast_with_queue


class MoCo(FaceEncoder):
    """A face encoder that tells the other view of a face from a queue of other faces.

    `backbone` and `head` are the query encoder; the key encoder follows them slowly. Defaults are those of the
    released face code.

    Args:
        network, network_options, image_size, sync_bn_group, channels_last: as in `SwAV`.
        embed_dim: D. queue_length: keys that a query is told from; a multiple of the global batch.
        key_momentum: share that the key encoder keeps in a step.
        temperature: of the logits; MoCo v2 has 0.2.
        mlp_head: two layers with a ReLU (MoCo v2) instead of one.
        shuffle: over several devices, exchange the key images, so that batch norm gives nothing away.
        base_lr: learning rate for 256 images; `lr` overrides it.
        warmup_epochs, warmup_start, final, momentum, weight_decay: SGD and the schedule, as in `SwAV`.
    """

    def __init__(
        self,
        network: str = "resnet50",
        network_options: dict[str, Any] | None = None,
        image_size: int = 224,
        embed_dim: int = 128,
        queue_length: int = 65536,
        key_momentum: float = 0.999,
        temperature: float = 0.07,
        mlp_head: bool = False,
        shuffle: bool = True,
        base_lr: float = 0.03,
        lr: float | None = None,
        warmup_start: float = 0.0625,
        final: float = 0.0,
        warmup_epochs: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        sync_bn_group: int = 0,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 0 <= key_momentum <= 1:
            raise ZooError(f"key_momentum is a share from 0 to 1, not {key_momentum}.")
        if temperature <= 0 or queue_length < 1:
            raise ZooError("temperature and queue_length lie above 0.")
        self._init_encoder(network, network_options, channels_last)
        width = self.backbone.num_features
        last = nn.Linear(width, embed_dim)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last) if mlp_head else last
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(embed_dim, queue_length), dim=0))
        self.register_buffer("queue_at", torch.zeros((), dtype=torch.long))

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.moco_from_official(state_dict)

    def official_state_dict(self) -> StateDict:
        """The weights under the names of the released face code."""
        return weights.moco_to_official(self.state_dict())

    # ------------------------------------------------------------------ the method

    @torch.no_grad()
    def follow(self) -> None:
        """The key encoder's weights move towards the query encoder's; its batch norm counts for itself."""
        m = self.hparams.key_momentum
        keys = [*self.key_backbone.parameters(), *self.key_head.parameters()]
        queries = [*self.backbone.parameters(), *self.head.parameters()]
        torch._foreach_mul_(keys, m)
        torch._foreach_add_(keys, queries, alpha=1 - m)

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to unit-length keys (B, D), computed on whichever device the shuffle sends an image to."""
        order = None
        if self.hparams.shuffle and world_size() > 1:
            everything = gather_with_gradient(images)
            order = torch.randperm(len(everything), device=images.device)
            dist.broadcast(order, src=0)
            images = everything[_mine(order)]
        key = self.key_head(self.key_backbone(self._layout(images)))
        key = F.normalize(key.float(), dim=1)
        return key if order is None else gather_with_gradient(key)[_mine(order.argsort())]

    def moco_logits(self, query_images: Tensor, key_images: Tensor) -> Tensor:
        """Logits (B, 1 + K) of one step, the right class first; the key encoder follows, the keys enter the queue."""
        h = self.hparams
        if h.queue_length % (len(query_images) * world_size()):
            raise ZooError(
                f"queue_length {h.queue_length} is no multiple of the global batch, "
                f"{len(query_images) * world_size()}: change one of them."
            )
        query = self.head(self.backbone(self._layout(query_images)))
        self.follow()
        key = self.keys(key_images)
        with full_precision(query.device.type):
            query = F.normalize(query.float(), dim=1)
            logits = contrast_with_queue(query, key, self.queue.clone(), h.temperature)
        self._enqueue(gather_with_gradient(key))
        return logits

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        at = self.queue_at + torch.arange(len(keys), device=keys.device)
        self.queue[:, at] = keys.T
        self.queue_at.copy_((self.queue_at + len(keys)) % self.hparams.queue_length)

    # ------------------------------------------------------------------ training

    def training_step(self, crops: Crops, batch_idx: int) -> Tensor:
        query, key = two_views(crops)
        logits = self.moco_logits(query, key)
        right = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        with full_precision(logits.device.type):
            loss = F.cross_entropy(logits, right)
        self._log_step("train", {"loss": loss, "acc1": (logits.argmax(dim=1) == 0).float().mean()}, len(logits))
        return loss

    def validation_step(self, crops: Crops, batch_idx: int) -> None:
        query, key = two_views(crops)
        query = F.normalize(self.head(self.backbone(self._layout(query))).float(), dim=1)
        key = F.normalize(self.key_head(self.key_backbone(self._layout(key))).float(), dim=1)
        logits = contrast_with_queue(query, key, self.queue, self.hparams.temperature)
        right = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        self._log_step("val", {"loss": F.cross_entropy(logits, right)}, len(logits))


def _mine(order: Tensor) -> Tensor:
    """This device's part of an order over all devices' samples."""
    return order.chunk(world_size())[dist.get_rank()]
