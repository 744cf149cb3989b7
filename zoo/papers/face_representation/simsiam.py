"""SimSiam on faces: the paper's second alternative to SwAV (Chen & He 2021)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.module import StateDict, full_precision
from zoo.nn.contrastive import simsiam_loss
from zoo.papers.face_representation import weights
from zoo.papers.face_representation.encoder import Crops, FaceEncoder, two_views
from zoo.papers.face_representation.network import mlp


class SimSiam(FaceEncoder):
    """A face encoder that predicts one view's embedding from the other's, with nothing to compare against.

    Args:
        network, network_options, image_size, sync_bn_group, channels_last: as in `SwAV`.
        embed_dim: D; the predictor's inner width is a quarter of it. The released face code passes 128.
        official_init: start every convolution and linear layer uniformly within 1 / sqrt(inputs), as the released code
            does.
        base_lr: learning rate for 256 images; `lr` overrides it.
        warmup_epochs, warmup_start, final, momentum, weight_decay: SGD and the schedule, as in `SwAV`.
    """

    def __init__(
        self,
        network: str = "resnet50",
        network_options: dict[str, Any] | None = None,
        image_size: int = 224,
        embed_dim: int = 2048,
        official_init: bool = True,
        base_lr: float = 0.05,
        lr: float | None = None,
        warmup_start: float = 0.0625,
        final: float = 0.0,
        warmup_epochs: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        sync_bn_group: int = 8,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._init_encoder(network, network_options, channels_last)
        for block in self.backbone.modules():
            if hasattr(block, "zero_init_last"):
                block.zero_init_last()  # this method starts residual blocks as identities
        self.projector = mlp([self.backbone.num_features, embed_dim, embed_dim, embed_dim], last_norm=True)
        self.predictor = mlp([embed_dim, max(embed_dim // 4, 1), embed_dim])
        if official_init:
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    bound = layer.weight[0].numel() ** -0.5
                    nn.init.uniform_(layer.weight, -bound, bound)
                    if layer.bias is not None:
                        nn.init.uniform_(layer.bias, -bound, bound)

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.simsiam_from_official(state_dict)

    def official_state_dict(self) -> StateDict:
        """The weights under the names of the released face code."""
        return weights.simsiam_to_official(self.state_dict())

    def siamese_loss(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The symmetric loss (-1 at best), and how much the embeddings spread: about 1 / sqrt(D), 0 when collapsed."""
        embeddings = [self.projector(self.backbone(self._layout(view))) for view in (first, second)]
        predictions = [self.predictor(embedding) for embedding in embeddings]
        with full_precision(first.device.type):
            loss = simsiam_loss(*predictions, *embeddings)
            spread = F.normalize(embeddings[0].detach().float(), dim=1).std(dim=0, correction=0).mean()
        return loss, spread

    def training_step(self, crops: Crops, batch_idx: int) -> Tensor:
        loss, spread = self.siamese_loss(*two_views(crops))
        self._log_step("train", {"loss": loss, "spread": spread}, crops[0].shape[0])
        return loss

    def validation_step(self, crops: Crops, batch_idx: int) -> None:
        loss, spread = self.siamese_loss(*two_views(crops))
        self._log_step("val", {"loss": loss, "spread": spread}, crops[0].shape[0])
