"""CLIP2Point as a LightningModule: a depth encoder learns what CLIP's image tower sees (Huang et al., ICCV 2023,
arXiv 2210.01055).

Shape letters: B clouds, V views, N points, S picture side, D width of CLIP's shared space.
"""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from zoo.errors import ZooError
from zoo.module import StateDict, ZooModule, full_precision
from zoo.nn.points import is_single, preprocess_shapes
from zoo.papers.clip2point import losses, weights
from zoo.papers.clip2point.clip import CLIP, PROMPT, fill_prompts, load_clip, to_clip_scale
from zoo.papers.clip2point.network import build_tower
from zoo.papers.clip2point.optim import Lamb
from zoo.papers.clip2point.rendering import RADIUS, DepthRenderer, clip_images
from zoo.papers.clip2point.zeroshot import probabilities, zero_shot_logits


@dataclass(frozen=True)
class CLIP2PointOutput:
    """What one step gives: scalar losses, and the features (B, D) of both depth maps and of the image."""

    loss: Tensor
    image_loss: Tensor
    depth_loss: Tensor
    depth_features: tuple[Tensor, Tensor]
    image_features: Tensor


class CLIP2Point(ZooModule):
    """Pre-trains a depth encoder by contrast with a frozen image tower, and with itself at another distance.

    For each object one view is drawn; its picture goes through CLIP's image tower, two depth maps of the same view at
    slightly different distances go through the depth encoder, which starts as a copy of that tower. Defaults are the
    paper's.

    Args:
        clip: zoo name, manifest or checkpoint of the CLIP that both towers start from when training starts (its text
            tower scores validation). None: random towers, the same in both.
        image_size, patch_size, width, depth, num_heads, dim: the towers.
        image_tower: False leaves the image tower and the loss weight out: a depth encoder for use alone.
        views: of `forward` and of validation: 10 or 6.
        upright: clouds given to `forward` and validation are z-up and are turned first. Pre-training never turns them.
        radius: of the points' discs, in units of half the picture.
        num_points: points that `preprocess` draws.
        temperature: of both contrasts.
        distance_jitter: width of the range of relative distances: 0.2 is +-10 %.
        gather: contrast with the samples of all devices, as one large device would. False: with those of the same
            device alone, as the official DataParallel run does.
        text: CLIP whose text tower `classify` asks.
        prompt: "{}" stands for the class name.
        lr, weight_decay: LAMB.
        restart_epochs: the cosine schedule starts anew every so many epochs, from `lr` down to `min_lr`.
    """

    def __init__(
        self,
        clip: str | None = None,
        image_size: int = 224,
        patch_size: int = 32,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        dim: int = 512,
        image_tower: bool = True,
        views: int = 10,
        upright: bool = False,
        radius: float = RADIUS,
        num_points: int = 1024,
        temperature: float = 0.07,
        distance_jitter: float = 0.2,
        gather: bool = True,
        text: str = "clip-vitb32",
        prompt: str = PROMPT,
        lr: float = 0.006,
        weight_decay: float = 1e-4,
        restart_epochs: float = 2.0,
        min_lr: float = 1e-5,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._check_arguments()
        geometry = (image_size, patch_size, width, depth, num_heads, dim)
        self.backbone = build_tower(*geometry)
        self.image_tower: nn.Module | None = None
        self.loss_weight: nn.Parameter | None = None
        if image_tower:
            self.image_tower = build_tower(*geometry).requires_grad_(False)
            self.image_tower.load_state_dict(self.backbone.state_dict())
            self.loss_weight = nn.Parameter(torch.tensor(1.0))
        self.render = DepthRenderer(views, image_size, radius, upright)
        self._render_pairs = DepthRenderer(views, image_size, radius)
        self._has_weights = False  # from a CLIP or a checkpoint; else training starts from `clip`
        self.class_features: list[Tensor] = []  # of the validation sets' names, where a CLIP gave them

    def _check_arguments(self) -> None:
        h = self.hparams
        if h.image_size % h.patch_size:
            raise ZooError(f"image_size {h.image_size} is not a multiple of patch_size {h.patch_size}.")
        if h.width % h.num_heads:
            raise ZooError(f"width {h.width} is not a multiple of num_heads {h.num_heads}.")
        if not 0 <= h.distance_jitter < 2:
            raise ZooError(f"distance_jitter lies from 0 to below 2, not at {h.distance_jitter}.")
        for name in ("temperature", "lr", "restart_epochs"):
            if h[name] <= 0:
                raise ZooError(f"{name} lies above 0, not at {h[name]}.")
        fill_prompts(["name"], h.prompt)

    # ------------------------------------------------------------------ weights

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        if weights.is_official_pretrain(state_dict):
            return weights.pretrain_from_official(state_dict)
        return state_dict

    def official_state_dict(self) -> StateDict:
        """The weights under the official names, for the authors' own code."""
        return weights.pretrain_to_official(self.state_dict())

    def load_weights(self, state_dict: StateDict, source: str = "these weights") -> None:
        """As `ZooModule.load_weights`. Without an image tower, that of the checkpoint and its loss weight are left."""
        state = self.convert_state_dict(state_dict)
        if self.image_tower is None:
            state = {key: value for key, value in state.items() if not key.startswith(("image_tower.", "loss_weight"))}
        super().load_weights(state, source)
        self._has_weights = True

    def start_from(self, clip: CLIP) -> None:
        """Both towers become the image tower of `clip`. Raises `ZooError` if it has another shape."""
        for tower in (self.backbone, self.image_tower):
            if tower is not None:
                try:
                    tower.load_state_dict(clip.backbone.state_dict())
                except RuntimeError as error:
                    raise ZooError(
                        "The image tower of the CLIP has another shape than this model: set image_size, patch_size, "
                        f"width, depth, num_heads and dim to those of {self.hparams.clip}."
                    ) from error
        self._has_weights = True

    def setup(self, stage: str) -> None:
        if self.hparams.clip is None:
            return
        clip = load_clip(self.hparams.clip)
        if stage == "fit" and not (self._has_weights or self.trainer.ckpt_path):
            self.start_from(clip)
        sets = getattr(getattr(self.trainer, "datamodule", None), "prompt_sets", [])
        self.class_features = [clip.encode_names(names, self.hparams.prompt) for names in sets]

    # ------------------------------------------------------------------ the representation

    def preprocess(self, raw: Any) -> Tensor:
        """Paths (OFF, PLY, OBJ, STL, XYZ, NPY), arrays (N, 3) or trimesh meshes, one or a list, to (B, N, 3)."""
        return preprocess_shapes(raw, self.hparams.num_points)

    def encode_views(self, points: Tensor, render: DepthRenderer | None = None) -> Tensor:
        """(B, N, 3) in the unit sphere to features of its views (B, V, D), not normalised."""
        maps = clip_images((self.render if render is None else render)(points))
        return self.backbone(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) in the unit sphere to (B, D): the mean of the views' unit features."""
        return F.normalize(self.encode_views(points), dim=-1).mean(dim=1)

    # ------------------------------------------------------------------ zero-shot classification

    @torch.no_grad()
    def classify(
        self,
        shapes: Any,
        labels: Sequence[str],
        *,
        views: int = 6,
        upright: bool | None = None,
        prompt: str | None = None,
        text_features: Tensor | None = None,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Probabilities of free-text labels, most likely first: a dict for one shape, a list of them for several.

        Args:
            shapes: what `preprocess` takes, or a batch (B, N, 3).
            labels: two or more class names, such as `["chair", "mug"]`.
            views: 6 as the paper's zero-shot evaluation, or 10.
            upright: turn z-up shapes first; None takes the model's own setting.
            prompt: "{}" stands for the label; None takes the model's own.
            text_features: (C, D) of the labels, instead of asking the text tower.

        Raises `ZooError` for fewer than two labels, for shapes that cannot be used, and where the text tower's weights
        are not at hand (saying how to get them).
        """
        labels = [labels] if isinstance(labels, str) else list(labels)
        if len(labels) < 2:
            raise ZooError(f"Classifying needs at least two labels to choose from, not {len(labels)}: {labels}.")
        fill_prompts(labels)
        points = self.preprocess(shapes)
        if text_features is None:
            text_features = self._text_tower().encode_names(labels, prompt or self.hparams.prompt, True)
        upright = self.hparams.upright if upright is None else upright
        render = DepthRenderer(views, self.hparams.image_size, self.hparams.radius, upright).to(self.device)
        logits = zero_shot_logits(self.encode_views(points.to(self.device), render), text_features.to(self.device))
        scores = probabilities(logits, views).tolist()
        ranked = [dict(sorted(zip(labels, row, strict=True), key=lambda pair: pair[1], reverse=True)) for row in scores]
        return ranked[0] if is_single(shapes) else ranked

    def _text_tower(self) -> CLIP:
        # Kept outside the module's parameters: it is no part of this model's weights.
        cached = self.__dict__.get("_clip")
        if cached is None or cached[0] != self.hparams.text:
            cached = self.__dict__["_clip"] = (self.hparams.text, load_clip(self.hparams.text))
        return cached[1]

    # ------------------------------------------------------------------ the method

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) to (B, D) without a gradient; features (B, D) that were kept pass through."""
        if images.ndim == 2:
            return images
        if self.image_tower is None:
            raise ZooError("This model has no image tower (image_tower: false), so it cannot pre-train.")
        with torch.no_grad():
            return self.image_tower(to_clip_scale(images))

    def contrast(
        self,
        points: Tensor,
        images: Tensor,
        elev: Tensor,
        azim: Tensor,
        dist: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> CLIP2PointOutput:
        """One step on B objects, each seen from one view.

        Args:
            points: (B, N, 3) in the unit sphere.
            images: (B, 3, S, S) of the same view, uint8 or on CLIP's scale, or their features (B, D).
            elev, azim: (B, 1) angles of the view in degrees; dist: (B, 1), None is 1.
            draws: (2, B, 1) uniform in [0, 1), the two distances; drawn here unless given.
        """
        h = self.hparams
        if self.loss_weight is None:
            raise ZooError("This model has no image tower (image_tower: false), so it cannot pre-train.")
        # 1. The same view twice, at two distances drawn within +-10 %.
        if draws is None:
            draws = torch.rand(len(points), 2, 1, device=points.device).transpose(0, 1)
        base = torch.ones_like(elev) if dist is None else dist
        distances = torch.cat([base * (1 + (draw - 0.5) * h.distance_jitter) for draw in draws], dim=1)
        maps = self._render_pairs(points, elev.expand(-1, 2), azim.expand(-1, 2), distances)

        # 2. Encode both depth maps in one pass, and the picture without a gradient.
        first, second = self.backbone(clip_images(maps).transpose(0, 1).flatten(0, 1)).chunk(2)
        image = self.encode_images(images)

        # 3. Contrast the mean of the depth features with the image, and the depth features with each other.
        with full_precision(points.device.type):
            first, second, image = first.float(), second.float(), image.float()
            if h.gather and self._trainer is not None and self.trainer.world_size > 1 and torch.is_grad_enabled():
                first, second, image = (
                    self.all_gather(x, sync_grads=True).flatten(0, 1) for x in (first, second, image)
                )
            image_loss = losses.nt_xent((first + second) / 2, image, h.temperature)
            depth_loss = losses.nt_xent(first, second, h.temperature)
            loss = losses.weighted_sum(image_loss, depth_loss, self.loss_weight)
        return CLIP2PointOutput(loss, image_loss, depth_loss, (first, second), image)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        images, points, elev, azim, _ = batch
        out = self.contrast(points, images, elev, azim)
        values = {"loss": out.loss, "image_loss": out.image_loss, "depth_loss": out.depth_loss}
        assert self.loss_weight is not None
        logged = {f"train/{name}": value.detach() for name, value in values.items()}
        self.log_dict(logged | {"train/loss_weight": self.loss_weight.detach()}, batch_size=len(points))
        return out.loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int, dataloader_idx: int = 0) -> None:
        if len(batch) == 5:  # pairs of the pre-training data
            images, points, elev, azim, labels = batch
            out = self.contrast(
                points, images, elev, azim, draws=torch.full((2, len(points), 1), 0.5, device=self.device)
            )
            top1 = losses.retrieval_accuracy(out.image_features, out.depth_features[0])
            self._log("val/loss", out.loss, len(points))
            self._log("val/retrieval_top1", top1, len(points), bar=True)
        else:
            points, labels = batch
        if dataloader_idx < len(self.class_features):
            names = self.class_features[dataloader_idx].to(points.device)
            features = self.encode_views(points, self._renderer_of(dataloader_idx))
            right = (zero_shot_logits(features, names).argmax(dim=1) == labels).float().mean()
            self._log(f"val/zero_shot_acc{dataloader_idx or ''}", right, len(points), bar=True)

    def _renderer_of(self, dataloader_idx: int) -> DepthRenderer:
        # A second validation set is ModelNet, which is z-up; the first is of the pre-training data's kind.
        return self._render_pairs if dataloader_idx == 0 else self._upright_renderer()

    def _upright_renderer(self) -> DepthRenderer:
        h = self.hparams
        return DepthRenderer(h.views, h.image_size, h.radius, upright=True).to(self.device)

    def _log(self, name: str, value: Tensor, batch_size: int, bar: bool = False) -> None:
        self.log(
            name, value, on_epoch=True, sync_dist=True, batch_size=batch_size, prog_bar=bar, add_dataloader_idx=False
        )

    def figures(self, batch: tuple[Tensor, ...]) -> dict[str, Any]:
        """Pictures of a batch of pairs, for the Figures callback."""
        from zoo.papers.clip2point.figures import draw_retrieval  # matplotlib is only needed here

        images, points, elev, azim, labels = batch
        if images.dtype != torch.uint8:
            return {}  # features that were kept in place of pictures
        maps = self._render_pairs(points, elev, azim)
        depth = self.backbone(clip_images(maps).flatten(0, 1))
        similarity = F.normalize(depth, dim=1) @ F.normalize(self.encode_images(images), dim=1).t()
        # Objects of different classes, where there are some.
        order = torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()][:6])
        views = self._render_pairs(points[order])
        return {"retrieval": draw_retrieval(images, views, maps[:, 0], similarity, order)}

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = Lamb(trained, lr=h.lr, weight_decay=h.weight_decay)
        self.trainer.fit_loop.setup_data()  # with max_steps alone Lightning would count the batches only later
        steps = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        period = max(1, round(h.restart_epochs * steps))
        schedule = CosineAnnealingWarmRestarts(optimizer, T_0=period, eta_min=min(h.min_lr, h.lr))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}


def load_start(backbone: str) -> ZooModule:
    """The model behind a zoo name, a manifest, a checkpoint or a run folder, for another module to start from."""
    from zoo.loading import load

    return contextvars.Context().run(load, backbone)
