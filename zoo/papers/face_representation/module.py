"""SwAV on faces as a LightningModule (Bulat et al., ECCV 2022, arXiv 2103.16554; Caron et al., NeurIPS 2020).

Shape letters: B images of this device, V crops of an image, K prototypes, D embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.module import StateDict, full_precision
from zoo.nn.gather import gather_with_gradient, world_size
from zoo.optim import resolve_lr
from zoo.papers.face_representation import weights
from zoo.papers.face_representation.encoder import Crops, FaceEncoder
from zoo.papers.face_representation.losses import sinkhorn, swapped_prediction
from zoo.papers.face_representation.network import mlp
from zoo.papers.face_representation.optim import LARC, parameter_groups, warmup_cosine_schedule


class SwAV(FaceEncoder):
    """A face encoder that learns by predicting, from one crop of a face, the prototype of another.

    The defaults are the paper's ResNet-50 recipe as the released code has it. Learning rates are written for 256
    images and follow the effective batch: 0.3 gives the published 4.8 at 4096 images.

    Args:
        network, network_options: a timm ResNet and how it differs (`network.build_resnet`).
        image_size: side of the images that `preprocess` gives.
        hidden_dim, embed_dim: the projector: features to `hidden_dim` to `embed_dim`.
        num_prototypes: K.
        assigned_crops: which of the crops are assigned to prototypes, numbered through all resolutions.
        temperature: of the prediction. epsilon, sinkhorn_iterations: of the assignment.
        queue_length: earlier embeddings that take part in the assignment, over all devices; 0 for none. Cut to a
            multiple of the global batch.
        queue_from_epoch: when the queue starts to fill; it counts once it is full.
        freeze_prototypes_steps: optimiser steps in which the prototypes get no gradient.
        base_lr: learning rate for 256 images; `lr` overrides it.
        warmup_start, final: rates at the start and at the end as shares of the full one.
        warmup_epochs, momentum, weight_decay, trust: the schedule, SGD and LARC.
        exclude_norm_bias: leave norm layers and biases out of weight decay and LARC; the official code does not.
        sync_bn_group: devices that share the statistics of batch norm; 0 for each its own.
        channels_last: memory layout of the convolutions.
        compile: run the backbone through torch.compile.
    """

    static_graph = True

    def __init__(
        self,
        network: str = "resnet50",
        network_options: dict[str, Any] | None = None,
        image_size: int = 224,
        hidden_dim: int = 2048,
        embed_dim: int = 128,
        num_prototypes: int = 3000,
        assigned_crops: list[int] = [0, 1],  # noqa: B006 - jsonargparse shows it
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        queue_length: int = 0,
        queue_from_epoch: int = 15,
        freeze_prototypes_steps: int = 313,
        base_lr: float = 0.3,
        lr: float | None = None,
        warmup_start: float = 0.0625,
        final: float = 0.001,
        warmup_epochs: float = 10.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
        exclude_norm_bias: bool = False,
        sync_bn_group: int = 8,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._check_arguments()
        self._init_encoder(network, network_options, channels_last)
        self.projector = mlp([self.backbone.num_features, hidden_dim, embed_dim])
        self.prototypes = nn.Linear(embed_dim, num_prototypes, bias=False)
        if queue_length:
            self.register_buffer("queue", torch.zeros(len(assigned_crops), queue_length, embed_dim))
            self.register_buffer("queue_filled", torch.zeros((), dtype=torch.long))
        self._encode = torch.compile(self.forward) if compile else self.forward

    def _check_arguments(self) -> None:
        h = self.hparams
        for name in ("temperature", "epsilon"):
            if h[name] <= 0:
                raise ZooError(f"{name} lies above 0, not at {h[name]}.")
        if h.num_prototypes < 2 or h.sinkhorn_iterations < 1:
            raise ZooError("SwAV needs two prototypes and one Sinkhorn iteration at the least.")
        if not h.assigned_crops or min(h.assigned_crops) < 0 or len(set(h.assigned_crops)) < len(h.assigned_crops):
            raise ZooError(f"assigned_crops are different numbers of crops from 0 on, not {h.assigned_crops}.")
        if h.queue_length < 0 or h.freeze_prototypes_steps < 0:
            raise ZooError("queue_length and freeze_prototypes_steps are 0 or more.")

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.swav_from_official(state_dict)

    def official_state_dict(self) -> StateDict:
        """The weights under the names of the released face code."""
        return weights.swav_to_official(self.state_dict())

    # ------------------------------------------------------------------ the method

    def embed(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """One forward of the backbone for each resolution, one of the head for all crops.

        Returns unit-length embeddings (V, B, D) and their cosines with the prototypes (V, B, K), float32. In training
        the prototypes must be of unit length already (`normalize_prototypes`); in evaluation they are left as they are.
        """
        features = []
        for same_size in crops:
            crop_major = same_size.transpose(0, 1).flatten(0, 1)  # batch norm sees all crops of a size together
            features.append(self._encode(crop_major))
        projected = self.projector(torch.cat(features))
        with full_precision(projected.device.type):
            embedding = F.normalize(projected.float(), dim=1)
            weight = self.prototypes.weight
            scores = F.linear(embedding, weight if self.training else F.normalize(weight, dim=1))
        batch = crops[0].shape[0]
        return embedding.unflatten(0, (-1, batch)), scores.unflatten(0, (-1, batch))

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Every prototype to unit length, in place; before each training step, as the official code does."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    @torch.no_grad()
    def assign(self, embedding: Tensor, scores: Tensor, use_queue: bool = False) -> list[Tensor]:
        """(V, B, D) and (V, B, K) to the assignments (B, K) of each of `assigned_crops`.

        With `use_queue` the queue's embeddings, scored by today's prototypes, are balanced together with the batch once
        it is full; then the batch enters it.
        """
        h = self.hparams
        batch = scores.shape[1]
        rows = h.queue_length - h.queue_length % (batch * world_size())
        use_queue = use_queue and h.queue_length > 0
        if use_queue and not rows:
            raise ZooError(f"queue_length {h.queue_length} is less than the global batch of {batch * world_size()}.")
        full = use_queue and int(self.queue_filled) >= rows
        assigned = []
        for index, crop in enumerate(h.assigned_crops):
            to_balance = scores[crop]
            if full:
                earlier = self.queue[index, :rows].unflatten(0, (-1, world_size(), batch))
                mine = earlier[:, dist.get_rank() if world_size() > 1 else 0].flatten(0, 1)
                to_balance = torch.cat([self.prototypes(mine), to_balance])
            assigned.append(sinkhorn(to_balance, h.epsilon, h.sinkhorn_iterations)[-batch:])
            if use_queue:
                # Every device keeps the queue of all: what a resumed run needs is then in one checkpoint.
                newest = gather_with_gradient(embedding[crop].detach())
                self.queue[index] = torch.cat([newest, self.queue[index]])[: h.queue_length]
        if use_queue:
            self.queue_filled += batch * world_size()
        return assigned

    def swav_loss(self, crops: Crops, use_queue: bool = False) -> Tensor:
        """The objective on a batch of crops; `normalize_prototypes` comes first."""
        h = self.hparams
        embedding, scores = self.embed(crops)
        if max(h.assigned_crops) >= len(scores):
            raise ZooError(f"assigned_crops is {h.assigned_crops}, but the data gives {len(scores)} crops of an image.")
        with full_precision(scores.device.type):
            assigned = self.assign(embedding, scores, use_queue)
            return swapped_prediction(scores, assigned, h.assigned_crops, h.temperature)

    # ------------------------------------------------------------------ training

    def training_step(self, crops: Crops, batch_idx: int) -> Tensor:
        self.normalize_prototypes()
        use_queue = bool(self.hparams.queue_length) and self.current_epoch >= self.hparams.queue_from_epoch
        loss = self.swav_loss(crops, use_queue)
        self._log_step("train", {"loss": loss}, crops[0].shape[0])
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.trainer.global_step < self.hparams.freeze_prototypes_steps:
            self.prototypes.weight.grad = None  # not zero: SGD would start a momentum

    def validation_step(self, crops: Crops, batch_idx: int) -> None:
        self._log_step("val", {"loss": self.swav_loss(crops)}, crops[0].shape[0])

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        lr = resolve_lr(self, h.base_lr, h.lr)
        groups = parameter_groups(self, h.exclude_norm_bias)
        optimizer = LARC(groups, lr=lr, momentum=h.momentum, weight_decay=h.weight_decay, trust=h.trust)
        schedule = warmup_cosine_schedule(
            self, optimizer, lr=lr, start=h.warmup_start, final=h.final, warmup=h.warmup_epochs
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}
