"""The five downstream tasks: which head, which loss, which numbers; for the fine-tuning module and the few-shot tables.

A sample of a task is a dict: `image` uint8 (3, S, S), `target`, and for landmarks and meshes `scale`, what its error is
divided by. Targets: recognition the identity's number; landmarks (K, 2) shares of the image, NaN where unknown; action
units (A,) intensities; valence_arousal (2,); reconstruction3d (V, 3). A sixth, attributes, is no part of the benchmark:
one class a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError, did_you_mean
from zoo.module import full_precision
from zoo.papers.face_representation import metrics
from zoo.papers.face_representation.heads import (
    EmbeddingHead,
    HeatmapHead,
    LinearHead,
    MarginSoftmax,
    expected_points,
    heatmap_loss,
)
from zoo.papers.face_representation.mesh_decoder import MeshDecoder

TASKS = ("recognition", "landmarks", "action_units", "valence_arousal", "reconstruction3d")
EVERY_TASK = (*TASKS, "attributes")


@dataclass(frozen=True)
class Headline:
    """The number by which a task is compared: its key among the metrics, its name, and whether more is better."""

    key: str
    title: str
    higher: bool


HEADLINES = {
    "recognition": Headline("tar", "recognition, TAR at FAR 1e-2 (%)", True),
    "landmarks": Headline("nme", "landmarks, NME inter-ocular (%)", False),
    "action_units": Headline("icc", "action units, mean ICC(3,1)", True),
    "valence_arousal": Headline("ccc", "valence and arousal, mean CCC", True),
    "reconstruction3d": Headline("nme", "3D shape, vertex NME (%)", False),
    "attributes": Headline("acc1", "attributes, accuracy (%)", True),
}


class TaskHead(nn.Module):
    """A task's head with its loss and its prediction.

    Args:
        task: one of `EVERY_TASK`.
        widths: channels of the backbone's maps, finest first; the last is the width of the pooled features.
        outputs: identities, landmarks, action units, 2, vertices, or classes.
        options: arguments of the head: `width` of the pyramid; `embed_dim`, `kind`, `scale`, `margin` of recognition;
            `triangles`, `template`, `channels`, `blocks` of the mesh decoder; `loss` "mse" or "ccc" of valence_arousal.
            All but landmarks also take `grid`: look at the middle stages' maps, averaged over so many fields a side,
            instead of the pooled features, from which pre-training removes where things are.
    """

    def __init__(
        self, task: str, widths: Sequence[int], outputs: int, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if task not in EVERY_TASK:
            raise ZooError(
                f"There is no task {task!r}.{did_you_mean(task, EVERY_TASK)} They are {', '.join(EVERY_TASK)}."
            )
        options = dict(options or {})
        self.task, self.loss_kind, self.grid = task, options.pop("loss", "mse"), int(options.pop("grid", 0) or 0)
        if self.grid < 0 or (self.grid and task == "landmarks"):
            raise ZooError("grid is a number of fields a side; landmarks look at whole maps already.")
        self.width = width = self.grid**2 * sum(middle(widths)) if self.grid else widths[-1]
        if self.loss_kind not in ("mse", "ccc"):
            raise ZooError(f"loss is 'mse' or 'ccc', not {self.loss_kind!r}.")
        try:
            if task == "landmarks":
                self.head: nn.Module = HeatmapHead(widths, outputs, **options)
            elif task == "recognition":
                embed_dim = options.pop("embed_dim", 512)
                self.head = EmbeddingHead(width, embed_dim)
                self.margin = MarginSoftmax(embed_dim, outputs, **options)
            elif task == "reconstruction3d":
                self.head = MeshDecoder(width, outputs, **options)
            else:
                self.head = LinearHead(width, outputs, bounded=task == "valence_arousal", **options)
        except TypeError as error:
            raise ZooError(f"The head of {task} does not take these options: {error}.") from error

    def look(self, encoder: Encoder, images: Tensor) -> list[Tensor]:
        """What the head needs of (B, 3, S, S): the maps for landmarks, else one tensor (B, D)."""
        if self.task == "landmarks":
            return encoder.maps(images)
        return [encoder.grid(images, self.grid) if self.grid else encoder.pooled(images)]

    def forward(self, given: Sequence[Tensor]) -> Tensor:
        """What the head says to what `look` gave it: heat maps, embeddings, intensities or vertices."""
        return self.head(given if self.task == "landmarks" else given[0])

    @torch.no_grad()
    def start_from(self, mean: Tensor) -> None:
        """Lets a regression start at the mean of its training targets, which then is all it knows."""
        mean = mean.float()
        if self.task == "reconstruction3d":
            self.head.template.copy_(mean)
            nn.init.zeros_(self.head.out.weight)
            nn.init.zeros_(self.head.out.bias)
        elif self.task in ("action_units", "valence_arousal"):
            nn.init.zeros_(self.head.linear.weight)
            self.head.linear.bias.copy_(mean.clamp(-0.99, 0.99).atanh() if self.head.bounded else mean)

    def loss(self, out: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The training loss of a batch, a float32 scalar; `weight` (C,) of the classes of attributes."""
        if self.task == "recognition":
            return self.margin(out, target)
        if self.task == "landmarks":
            return heatmap_loss(out, target)
        with full_precision(out.device.type):
            out = out.float()
            if self.task == "attributes":
                return F.cross_entropy(out, target, weight)
            target = target.float()
            if self.task == "reconstruction3d":
                return (out - target).norm(dim=-1).mean()
            if self.task == "valence_arousal" and self.loss_kind == "ccc":
                return ccc_loss(out, target)
            return F.mse_loss(out, target)

    def predict(self, out: Tensor) -> Tensor:
        """What is scored: points for heat maps, the rest as it is."""
        return expected_points(out) if self.task == "landmarks" else out.float()


def middle(levels: Sequence[Any]) -> Sequence[Any]:
    """The third and fourth stage of four (C3 and C4), where places are still told apart; a lone map stays."""
    return levels[-3:-1] or levels


def ccc_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - the mean concordance correlation over the columns of (B, n)."""
    mean_p, mean_t = prediction.mean(dim=0), target.mean(dim=0)
    covariance = ((prediction - mean_p) * (target - mean_t)).mean(dim=0)
    spread = prediction.var(dim=0, correction=0) + target.var(dim=0, correction=0) + (mean_p - mean_t).square()
    return 1 - (2 * covariance / spread.clamp_min(1e-8)).mean()


def score(
    task: str, prediction: np.ndarray, target: np.ndarray, scale: np.ndarray | None = None,
    pairs: np.ndarray | None = None, rates: Sequence[float] = (1e-2, 1e-3),
) -> dict[str, float]:  # fmt: skip
    """All numbers of a task over its test set; shares are in per cent.

    Args:
        prediction, target: (n, ...) as in `TaskHead.predict` and the samples.
        scale: (n,) what a landmark's or vertex's error is divided by, in the unit of the targets.
        pairs: (P, 3) first image, second image, 1 for the same person; None takes all pairs of the test set, or
            `metrics.choose_pairs` of a large one.
        rates: false acceptance rates; the first one is the headline's.
    """
    if task == "landmarks":
        assert scale is not None
        errors = metrics.nme(prediction, target, scale)
        return {"nme": 100 * float(errors.mean()), "fr10": 100 * metrics.failure_rate(errors),
                "auc10": 100 * metrics.auc(errors)}  # fmt: skip
    if task == "reconstruction3d":
        assert scale is not None
        return {"nme": 100 * float(metrics.nme(prediction, target, scale).mean())}
    if task == "action_units":
        columns = range(target.shape[1])
        values = {"icc": metrics.icc, "pcc": metrics.pcc}
        found = {
            name: float(np.mean([f(prediction[:, k], target[:, k]) for k in columns])) for name, f in values.items()
        }
        error = prediction - target
        each = {f"icc_{k}": metrics.icc(prediction[:, k], target[:, k]) for k in columns}
        return {**found, "mae": float(np.abs(error).mean()), "mse": float((error**2).mean()), **each}
    if task == "valence_arousal":
        found = {}
        for column, name in enumerate(("valence", "arousal")):
            p, t = prediction[:, column], target[:, column]
            found |= {f"ccc_{name}": metrics.ccc(p, t), f"pcc_{name}": metrics.pcc(p, t)}
            found |= {f"rmse_{name}": metrics.rmse(p, t), f"sagr_{name}": metrics.sagr(p, t)}
        means = {key: (found[f"{key}_valence"] + found[f"{key}_arousal"]) / 2 for key in ("ccc", "pcc", "rmse", "sagr")}
        return {**means, **found}
    if task == "attributes":
        return {"acc1": 100 * float((prediction.argmax(axis=1) == target).mean())}
    pairs = metrics.choose_pairs(target) if pairs is None else pairs
    similarity = metrics.pair_similarity(prediction, pairs)
    same = pairs[:, 2].astype(bool)
    found_rates = metrics.tar_at_far(similarity, same, rates)
    accuracy, _ = metrics.pair_accuracy(similarity, same)
    return {"tar": 100 * found_rates[rates[0]], "pairs": 100 * accuracy,
            **{f"tar@{rate:g}": 100 * value for rate, value in found_rates.items()}}  # fmt: skip


class Encoder(nn.Module):
    """Any timm network, or a model of the zoo with one, as pooled features and maps.

    Args:
        backbone: a timm network; `feature_info` says where its maps are. Networks without maps (plain ViTs) give their
            patch tokens as one map.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def pooled(self, images: Tensor) -> Tensor:
        """(B, D)."""
        features = self.backbone.forward_features(images)
        return self.backbone.forward_head(features, pre_logits=True)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w), finest first."""
        from timm.models.resnet import ResNet

        if isinstance(self.backbone, ResNet):
            from zoo.papers.face_representation.network import pyramid

            return pyramid(self.backbone, images)
        if hasattr(self.backbone, "forward_intermediates"):
            found = self.backbone.forward_intermediates(images, intermediates_only=True)
            return list(found)[-4:] if found[0].shape[-1] != found[-1].shape[-1] else [found[-1]]
        raise ZooError(f"A {type(self.backbone).__name__} gives no feature maps: landmarks need a network of timm.")

    def grid(self, images: Tensor, side: int) -> Tensor:
        """(B, side^2 (C3 + C4)): the `middle` maps averaged over side x side fields."""
        return torch.cat([F.adaptive_avg_pool2d(level, side).flatten(1) for level in middle(self.maps(images))], dim=1)

    @torch.no_grad()
    def widths(self, image_size: int) -> list[int]:
        """Channels of the maps; the last one replaced by the width of the pooled features where they differ."""
        training = self.backbone.training
        device = next(self.backbone.parameters()).device
        images = torch.zeros(2, 3, image_size, image_size, device=device)
        self.backbone.eval()
        widths = [level.shape[1] for level in self.maps(images)]
        pooled = self.pooled(images).shape[1]
        self.backbone.train(training)
        if pooled != widths[-1]:
            raise ZooError(
                f"Pooled features are {pooled} wide, the last map {widths[-1]}: this network is not supported."
            )
        return widths
