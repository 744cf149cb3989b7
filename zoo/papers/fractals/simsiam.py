"""SimSiam on fractals: two views of one fractal on two backgrounds should look the same (Anderson & Farrell 2022).

The paper's self-supervised variant: a million systems, one picture each, no labels. The method is Chen & He 2021
(arXiv 2011.10566), on the paper's schedule. Shape letters: B pictures, D features, Z projected features.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.module import StateDict, ZooModule, full_precision
from zoo.nn.contrastive import simsiam_loss
from zoo.nn.images import preprocess_images
from zoo.nn.resnets import build_resnet
from zoo.optim import norm_bias_groups, one_cycle
from zoo.papers.fractals import weights


class FractalSimSiam(ZooModule):
    """A ResNet trained on pairs of views (task "views" of `FractalsDataModule`). Defaults are the official run's.

    Args:
        network: name of a timm ResNet.
        image_size: side of the pictures; `preprocess` brings images to it.
        projection_dim, predictor_dim: Z, and the width of the predictor's hidden layer.
        lr, momentum, weight_decay: SGD; norm layers and biases of ResNet and projector do not decay.
        warmup, final_div_factor, cycle_momentum: the one-cycle schedule, see `FractalPretraining`. The predictor's rate
            stays at `lr` throughout.
        mean, std: the normalisation of the images that it was trained on, for `preprocess`.
        channels_last: memory layout of the convolutions.
    """

    sync_batchnorm: ClassVar[bool] = True  # as Chen & He; small batches of a device would say too little

    def __init__(
        self,
        network: str = "resnet50",
        image_size: int = 224,
        projection_dim: int = 2048,
        predictor_dim: int = 512,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        warmup: float = 0.0,
        final_div_factor: float = 1e3,
        cycle_momentum: bool = True,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if image_size < 32:
            raise ZooError(f"A ResNet divides the side by 32: image_size {image_size} is too small.")
        if min(projection_dim, predictor_dim) < 1:
            raise ZooError("projection_dim and predictor_dim are at least 1.")
        self.backbone = build_resnet(network, num_classes=0)
        width = self.backbone.num_features
        self.projector = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Linear(width, projection_dim, bias=False), nn.BatchNorm1d(projection_dim, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(
            nn.Linear(projection_dim, predictor_dim, bias=False), nn.BatchNorm1d(predictor_dim), nn.ReLU(inplace=True),
            nn.Linear(predictor_dim, projection_dim),
        )  # fmt: skip
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # ------------------------------------------------------------------ the representation

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images (one or a list) to a (B, 3, image_size, image_size) batch, scaled as in training."""
        h = self.hparams
        return preprocess_images(raw, h.image_size, mean=h.mean, std=h.std)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D): what the projector gets."""
        if self.hparams.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.backbone(images)

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        if not weights.is_official(state_dict):
            return state_dict
        return weights.from_official_simsiam(state_dict)

    def official_state_dict(self) -> StateDict:
        """The weights under the names of the official script."""
        return weights.to_official_simsiam(self.state_dict())

    # ------------------------------------------------------------------ training

    def project(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to prediction and projection, (B, Z) each."""
        projected = self.projector(self(view))
        return self.predictor(projected), projected

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val")

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        if batch[0].shape != batch[1].shape or batch[1].ndim != 4:
            raise ZooError("SimSiam compares two views of a fractal: set data.task to views.")
        # One after the other, so that each has its own statistics.
        (p1, z1), (p2, z2) = (self.project(view) for view in batch)
        with full_precision(p1.device.type):
            loss = simsiam_loss(p1, p2, z1, z2)
            # Spread of the unit vectors: 1 when they point everywhere, 0 when all of them are the same (a collapse).
            spread = F.normalize(z1.detach().float()).std(dim=0).mean() * z1.shape[1] ** 0.5
        validating = stage == "val"
        self.log_dict(
            {f"{stage}/loss": loss.detach(), f"{stage}/spread": spread},
            prog_bar=True, on_step=not validating, on_epoch=validating, sync_dist=validating, batch_size=len(batch[0]),
        )  # fmt: skip
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            if group.get("fixed_lr"):
                group["lr"] = self.hparams.lr

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        groups = norm_bias_groups(nn.ModuleList([self.backbone, self.projector]), h.lr, h.weight_decay)
        predictor = {"params": list(self.predictor.parameters()), "lr": h.lr, "weight_decay": h.weight_decay}
        optimizer = torch.optim.SGD([predictor | {"fixed_lr": True}, *groups], lr=h.lr, momentum=h.momentum)
        schedule = one_cycle(
            optimizer,
            int(self.trainer.estimated_stepping_batches),
            warmup=h.warmup,
            final_div_factor=h.final_div_factor,
            cycle_momentum=h.cycle_momentum,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}
