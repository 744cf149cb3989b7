"""Zero-shot classification: view features against text features, as functions and as an evaluation that recipes run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from zoo.errors import ZooError
from zoo.module import ZooModule
from zoo.papers.clip2point.clip import CLIP, PROMPT, load_clip
from zoo.papers.clip2point.rendering import RADIUS, DepthRenderer, clip_images

CLIP_SCALE = 100.0
"""exp(logit_scale) that OpenAI's CLIP ended up with: turns a mean cosine into the logit of a probability."""


def zero_shot_logits(view_features: Tensor, text_features: Tensor) -> Tensor:
    """(B, V, D) features of views and (C, D) of texts to (B, C): the *sum* over the views of their cosines.

    No scale and no weights of views, as in the official evaluation: each logit lies in [-V, V].
    """
    return F.normalize(view_features.float(), dim=-1).sum(dim=1) @ F.normalize(text_features.float(), dim=-1).t()


def probabilities(logits: Tensor, num_views: int) -> Tensor:
    """Zero-shot logits (B, C) to probabilities: the mean cosine at CLIP's own scale. The order is the logits'."""
    return (logits / num_views * CLIP_SCALE).softmax(dim=-1)


class ZeroShot(ZooModule):
    """Evaluates a depth encoder on labelled clouds without training: `lightning run clip2point/zeroshot_modelnet40`.

    Args:
        backbone: zoo name, manifest, checkpoint or run folder of a `CLIP2Point` (its depth encoder), or of a `CLIP`
            (its image tower looks at the depth maps: the baseline that pre-training starts from).
        clip: the CLIP whose text tower names the classes.
        views: 6 as the paper evaluates, or 10.
        upright: the clouds are z-up and are turned first: true for ModelNet, false for ScanObjectNN and ShapeNet.
        prompt: "{}" stands for the class name.
        radius: of the points' discs; None takes the backbone's.
    """

    def __init__(
        self,
        backbone: str = "clip2point-vitb32",
        clip: str = "clip-vitb32",
        views: int = 6,
        upright: bool = True,
        prompt: str = PROMPT,
        radius: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        from zoo.papers.clip2point.module import CLIP2Point, load_start

        model = load_start(backbone)
        if not isinstance(model, CLIP2Point | CLIP):
            raise ZooError(f"{backbone} is a {type(model).__name__}; this evaluates a CLIP2Point or a CLIP.")
        self.backbone = model.backbone.requires_grad_(False)
        radius = model.hparams.get("radius", RADIUS) if radius is None else radius
        self.render = DepthRenderer(views, model.hparams.image_size, radius, upright)
        self.text_features: Tensor | None = None

    def setup(self, stage: str) -> None:
        names = self.trainer.datamodule.prompt_names  # type: ignore[attr-defined]
        self.text_features = load_clip(self.hparams.clip).encode_names(names, self.hparams.prompt, True)
        self.accuracy = MulticlassAccuracy(len(names), average="micro")
        self.class_accuracy = MulticlassAccuracy(len(names), average="macro")

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) to view features (B, V, D)."""
        maps = clip_images(self.render(points))
        return self.backbone(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        points, labels = batch
        assert self.text_features is not None
        logits = zero_shot_logits(self(points), self.text_features.to(points.device))
        for name, metric in (("acc1", self.accuracy), ("class_acc1", self.class_accuracy)):
            metric(logits, labels)
            self.log(f"test/{name}", metric, on_epoch=True, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.test_step(batch, batch_idx)

    def on_test_end(self) -> None:
        if self.trainer.is_global_zero:
            value = float(torch.as_tensor(self.trainer.callback_metrics.get("test/acc1", float("nan"))))
            print(f"Zero-shot top-1: {value:.2%} ({self.render.num_views} views, {len(self.text_features)} classes)")
