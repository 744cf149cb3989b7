"""Few-shot classification with the Dual-Path Adapter: two frozen towers, two small adapters, text features as classes.

This is the adapter of the released code and of the paper's first version. The ICCV text describes a gated one, for
which no code or weights were published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from zoo.errors import ZooError
from zoo.module import StateDict, ZooModule, full_precision
from zoo.nn.points import is_single, preprocess_shapes
from zoo.papers.clip2point import weights
from zoo.papers.clip2point.clip import CLIP, PROMPT, fill_prompts, fixed_vectors, load_clip
from zoo.papers.clip2point.module import CLIP2Point, load_start
from zoo.papers.clip2point.network import ViewAdapter, build_tower
from zoo.papers.clip2point.rendering import RADIUS, DepthRenderer, clip_images
from zoo.tasks.outcomes import ClassOutcome

NETWORK: dict[str, int] = dict(image_size=224, patch_size=32, width=768, depth=12, num_heads=12, dim=512)
"""Geometry of both towers, ViT-B/32."""


class DualPathAdapter(ZooModule):
    """Learns to classify from a few labelled clouds a class. Only the two adapters are trained.

    The depth maps of all views go through the pre-trained depth encoder and through the original CLIP, each with an
    adapter behind it; the mean of what these give, at length 1, is compared with the text features of the classes.

    Args:
        backbone: zoo name, manifest, checkpoint or run folder of the pre-trained `CLIP2Point`. None: random towers of
            the shape `network` (what a checkpoint of this module rebuilds before its weights are filled in).
        clip: the CLIP that gives the second tower and the text features. None: the second tower is the image tower
            that the backbone was pre-trained with, and classes are fixed random vectors.
        network: geometry of the towers where there is no backbone; any of the keys of `NETWORK`.
        class_names: None takes them from the data.
        views: 10 or 6.
        upright: the clouds are z-up and are turned first (ModelNet, always on in the official code).
        radius: of the points' discs; None takes the backbone's.
        num_points: points that `preprocess` draws.
        dropout: of the adapters.
        prompt: "{}" stands for the class name.
        lr, weight_decay: AdamW, at a constant rate.
    """

    def __init__(
        self,
        backbone: str | None = None,
        clip: str | None = "clip-vitb32",
        network: dict[str, int] | None = None,
        class_names: list[str] | None = None,
        views: int = 10,
        upright: bool = True,
        radius: float | None = None,
        num_points: int = 1024,
        dropout: float = 0.075,
        prompt: str = PROMPT,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        start: ZooModule | None = None
        if backbone is not None:
            start = load_start(backbone)
            if not isinstance(start, CLIP2Point | CLIP):
                raise ZooError(f"{backbone} is a {type(start).__name__}; few-shot learning starts from a CLIP2Point.")
            network = {key: start.hparams[key] for key in NETWORK}
        unknown = set(network or {}) - set(NETWORK)
        if unknown:
            raise ZooError(f"model.network does not know {min(unknown)}; it takes {', '.join(NETWORK)}.")
        network = NETWORK | (network or {})
        if radius is None:
            radius = start.hparams.get("radius", RADIUS) if start is not None else RADIUS
        # A checkpoint then says all that is needed to rebuild this module, without the weights it started from.
        self.hparams.update(network=network, radius=radius, backbone=None)
        self.backbone = build_tower(**network).requires_grad_(False)
        self.clip_tower = build_tower(**network).requires_grad_(False)
        if start is not None:
            self._start_from(start)
        self.render = DepthRenderer(views, network["image_size"], radius, upright)
        self.adapter1 = ViewAdapter(views, network["dim"], dropout)
        self.adapter2 = ViewAdapter(views, network["dim"], dropout)
        self.register_buffer("text_features", torch.zeros(len(class_names or ()), network["dim"]))

    text_features: Tensor

    def _start_from(self, start: ZooModule) -> None:
        self.backbone.load_state_dict(start.backbone.state_dict())
        if self.hparams.clip is not None:
            try:
                self.clip_tower.load_state_dict(load_clip(self.hparams.clip).backbone.state_dict())
            except RuntimeError as error:
                raise ZooError(
                    f"The towers of the backbone and of {self.hparams.clip} have different shapes: give the CLIP that "
                    "the backbone was pre-trained with, or model.clip null."
                ) from error
            return
        original = getattr(start, "image_tower", None)
        if original is None:
            raise ZooError("This backbone comes without the image tower it was pre-trained with: give model.clip.")
        self.clip_tower.load_state_dict(original.state_dict())

    # ------------------------------------------------------------------ weights

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.dpa_from_official(state_dict) if weights.is_official_dpa(state_dict) else state_dict

    def official_state_dict(self) -> StateDict:
        """The weights under the official names; for the authors' code take out `text_features`, the class vectors."""
        return weights.dpa_to_official(self.state_dict())

    def load_weights(self, state_dict: StateDict, source: str = "these weights") -> None:
        """As `ZooModule.load_weights`. Official checkpoints hold no class vectors: the text tower gives them later."""
        state = self.convert_state_dict(state_dict)
        if weights.is_official_dpa(state_dict):
            state = {"text_features": torch.zeros_like(self.text_features), **state}
        super().load_weights(state, source)

    def set_classes(self, names: Sequence[str]) -> None:
        """Gives the classes their vectors: from the text tower of `clip`, or fixed ones without it."""
        names, dim = list(names), self.hparams.network["dim"]
        if len(names) < 2:
            raise ZooError(f"There must be at least two classes to tell apart, not {len(names)}.")
        if self.hparams.clip is None:
            vectors = fixed_vectors(fill_prompts(names, self.hparams.prompt), dim)
        else:
            vectors = load_clip(self.hparams.clip).encode_names(names, self.hparams.prompt)
        self.text_features = vectors.to(self.device)
        self.hparams["class_names"] = names

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        names = self.hparams.class_names or getattr(data, "prompt_names", None)
        if names is None:
            raise ZooError("The data does not name its classes: give model.class_names.")
        given = getattr(data, "prompt_names", names)
        if len(given) != len(names):
            raise ZooError(f"The data has {len(given)} classes, the model {len(names)}: set model.class_names to null.")
        if not self.text_features.any():
            self.set_classes(names)
        self.accuracy = MulticlassAccuracy(len(names), average="micro")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["state_dict"].get("text_features")
        if saved is not None and saved.shape != self.text_features.shape:
            self.text_features = torch.zeros_like(saved)
        super().on_load_checkpoint(checkpoint)

    # ------------------------------------------------------------------ the method

    def preprocess(self, raw: Any) -> Tensor:
        """Paths (OFF, PLY, OBJ, STL, XYZ, NPY), arrays (N, 3) or trimesh meshes, one or a list, to (B, N, 3)."""
        return preprocess_shapes(raw, self.hparams.num_points)

    @torch.no_grad()
    def view_features(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, 3) in the unit sphere to what both frozen towers say of each view, (B, V, D) twice, not normalised."""
        maps = clip_images(self.render(points))
        images = maps.flatten(0, 1)
        pretrained, original = self.backbone(images), self.clip_tower(images)
        return pretrained.unflatten(0, maps.shape[:2]), original.unflatten(0, maps.shape[:2])

    def adapt(self, pretrained: Tensor, original: Tensor) -> Tensor:
        """View features (B, V, D) of both towers to the feature of the object (B, D), of length 1."""
        return F.normalize((self.adapter1(pretrained) + self.adapter2(original)).float() / 2, dim=-1)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) in the unit sphere to (B, D), of length 1."""
        return self.adapt(*self.view_features(points))

    def logits(self, points: Tensor) -> Tensor:
        """(B, N, 3) to (B, C): plain cosines in [-1, 1], without a temperature, as in the official code."""
        return self(points) @ self.text_features.t()

    def classify(
        self, shapes: Any, labels: Sequence[str] | None = None, *, upright: bool | None = None
    ) -> dict[str, float] | list[dict[str, float]]:
        """Cosines of the classes it learned, highest first; a dict for one shape, a list of them for several.

        `upright` must be what it was trained with; None takes that.
        """
        if upright not in (None, self.hparams.upright):
            raise ZooError(f"This model was trained with upright: {self.hparams.upright}, and takes no other.")
        names = self.hparams.class_names
        if not names:
            raise ZooError("This model has learned no classes yet: train it first.")
        if labels is not None and list(labels) != list(names):
            raise ZooError(f"This model was trained for {len(names)} classes of its own; leave the labels out.")
        if not self.text_features.any():
            self.set_classes(names)
        with torch.no_grad():
            scores = self.logits(self.preprocess(shapes).to(self.device)).tolist()
        ranked = [dict(sorted(zip(names, row, strict=True), key=lambda pair: pair[1], reverse=True)) for row in scores]
        return ranked[0] if is_single(shapes) else ranked

    # ------------------------------------------------------------------ training

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        points, labels = batch
        if len(points) < 2:
            raise ZooError("The adapters' BatchNorm needs 2 clouds or more in a batch: change data.batch_size.")
        with full_precision(points.device.type):
            logits = self.logits(points)
            loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict({"train/loss": loss.detach(), "train/acc1": accuracy}, batch_size=len(points), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        points, labels = batch
        self.accuracy(self.logits(points), labels)
        self.log("val/acc1", self.accuracy, on_epoch=True, prog_bar=True, batch_size=len(points))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        points, labels = batch
        self.accuracy(self.logits(points), labels)
        self.log("test/acc1", self.accuracy, on_epoch=True, prog_bar=True, batch_size=len(points))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.logits(batch[0])

    def class_names(self) -> list[str]:
        """Names of the classes that it learned."""
        return list(self.hparams.class_names or [])

    def outcome_rows(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What a report keeps of a batch: labels and probabilities (a softmax of the cosines, as in the loss)."""
        return batch[1], self.logits(batch[0]).float().softmax(-1)

    def outcome(self, rows: list[tuple[Tensor, Tensor]], data: Any) -> ClassOutcome:
        """What was found on all held-out clouds."""
        return ClassOutcome.of(rows, self.class_names())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
