"""Fine-tuning a pre-trained ViT for image classification, as MAE and its family do it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from timm.data import Mixup
from timm.layers import LayerScale, resample_abs_pos_embed
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from zoo.errors import ZooError, did_you_mean
from zoo.module import StateDict
from zoo.nn.images import preprocess_images
from zoo.nn.patches import sincos_positions
from zoo.optim import adamw, clip_gradients, layer_decay_groups, resolve_lr, warmup_cosine
from zoo.tasks.evaluation import ImageClassifier
from zoo.tasks.start import check_image_size, start_model

NETWORK: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "class_token": True,
    "reg_tokens": 0,
    "no_embed_class": False,
    "pre_norm": False,
    "init_values": None,
    "norm_eps": 1e-6,
}
"""What `network` may say, in timm's terms, and the value of what it leaves out: MAE's ViT-B/16."""


class ImageClassification(ImageClassifier):
    """A timm ViT with a classifier, started from a backbone of the zoo or from scratch.

    Give `backbone` (start from pre-trained weights) or `network` (timm's arguments, random weights). A checkpoint of
    this module carries the network and the number of classes, so it loads without the backbone it started from.

    Args:
        backbone: a zoo name, a manifest, a checkpoint or a run folder whose backbone is a timm VisionTransformer.
        network: instead of `backbone`: any of the keys of `NETWORK`, timm's arguments (and `norm_eps`).
        num_classes: None takes it from the data.
        pool: "avg" averages the patch tokens and normalises the mean, the encoder's own norm is dropped (DropPos, MAE);
            "token" classifies the class token after the encoder's norm.
        image_size: input side in pixels; None keeps the backbone's. Positions are interpolated to another size.
        drop_path: stochastic depth, growing linearly to this rate.
        train_pos_embed: let the position embedding learn; by default it stays as it is (the official runs too).
        mixup, cutmix: their alpha; 0 turns each off. mixup_prob, mixup_switch_prob as in timm.
        label_smoothing: of the targets.
        base_lr: learning rate for 256 images; `lr` overrides it.
        layer_decay: factor of the learning rate from one layer to the one below.
        weight_decay, betas, warmup_epochs, min_lr: AdamW and MAE's schedule.
        clip_grad: largest global gradient norm; None for no clipping, as in the official runs.
        class_weights: of the classes (of labels: of their positives) in the training loss: a list, "balanced" (the
            rarer, the heavier) or None.
        targets: "classes", "labels" (any number of them a picture), "numbers", or None for what the data gives.
        classes, view: names of the classes, and how the data shows a held-out image; taken from the data.
        tuning: what is trained, such as {mode: frozen}, {mode: partial, blocks: 2} or {mode: lora, rank: 8}; see
            `zoo.tasks.tuning.Tuning`.
    """

    def __init__(
        self,
        backbone: str | None = None,
        network: dict[str, Any] | None = None,
        num_classes: int | None = None,
        pool: Literal["avg", "token"] = "avg",
        image_size: int | None = None,
        drop_path: float = 0.1,
        train_pos_embed: bool = False,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        base_lr: float = 1e-3,
        lr: float | None = None,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        layer_decay: float = 0.75,
        warmup_epochs: float = 5.0,
        min_lr: float = 1e-6,
        clip_grad: float | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        targets: Literal["classes", "labels", "numbers"] | None = None,
        tuning: dict[str, Any] | None = None,
        classes: list[str] | None = None,
        view: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if (backbone is None) == (network is None):
            raise ZooError("Give either model.backbone (a pre-trained start) or model.network (from scratch).")
        self._start: StateDict | None = None
        if backbone is not None:
            encoder = start_model(backbone).backbone
            if not isinstance(encoder, VisionTransformer):
                raise ZooError(
                    f"{backbone} has a {type(encoder).__name__}; this task fine-tunes timm's ViT only."
                    + (
                        " For ResNets there is zoo.tasks.ResNetClassification."
                        if "ResNet" in type(encoder).__name__
                        else ""
                    )
                )
            network = _describe(encoder)
            self._start = encoder.state_dict()
        assert network is not None
        for key in network:
            if key not in NETWORK:
                close = did_you_mean(key, NETWORK)
                raise ZooError(f"model.network does not know {key}; it takes {', '.join(NETWORK)}.{close}")
        self.network = NETWORK | network
        self._start_grid = self.network["img_size"] // self.network["patch_size"]
        if image_size is not None:
            self.network["img_size"] = image_size
        self._check_network()
        if num_classes is not None:
            self._build(num_classes)

    def _check_network(self) -> None:
        n = self.network
        if n["img_size"] % n["patch_size"]:
            raise ZooError(f"The image size {n['img_size']} is not a multiple of the patch size {n['patch_size']}.")
        if n["embed_dim"] % n["num_heads"] or n["embed_dim"] % 4:
            raise ZooError(f"embed_dim {n['embed_dim']} is not a multiple of 4 and of num_heads {n['num_heads']}.")
        if self.hparams.pool not in ("avg", "token"):
            raise ZooError(f"pool is 'avg' or 'token', not {self.hparams.pool!r}.")
        if self.hparams.pool == "token" and not n["class_token"]:
            raise ZooError("This backbone has no class token: use model.pool avg.")

    @property
    def _num_prefix(self) -> int:
        """Tokens before the patches that have a row of the position embedding."""
        return 0 if self.network["no_embed_class"] else int(self.network["class_token"]) + self.network["reg_tokens"]

    def _build(self, num_classes: int) -> None:
        h = self.hparams
        self._count_classes(num_classes)
        args = dict(self.network)
        norm_layer = partial(nn.LayerNorm, eps=args.pop("norm_eps"))
        self.backbone = VisionTransformer(
            **args, num_classes=num_classes, global_pool=h.pool, drop_path_rate=h.drop_path, norm_layer=norm_layer
        )
        grid = self.network["img_size"] // self.network["patch_size"]
        positions = sincos_positions(grid, self.network["embed_dim"])[:, 1:]
        self.backbone.pos_embed.data.zero_()[:, self._num_prefix :] = positions
        self.backbone.pos_embed.requires_grad_(h.train_pos_embed)
        if self._start is not None:
            self._load_start(self._start)
            self._start = None
        self.mixup: Mixup | None = None
        if h.mixup > 0 or h.cutmix > 0:
            self.mixup = Mixup(
                h.mixup, h.cutmix, prob=h.mixup_prob, switch_prob=h.mixup_switch_prob,
                label_smoothing=h.label_smoothing, num_classes=num_classes,
            )  # fmt: skip
            self.criterion: nn.Module = SoftTargetCrossEntropy()
        else:
            self.criterion = LabelSmoothingCrossEntropy(h.label_smoothing)

    def _load_start(self, state: StateDict) -> None:
        own = self.backbone.state_dict()
        state = {key: value for key, value in state.items() if not key.startswith(("head.", "fc_norm."))}
        if self.hparams.pool == "avg":
            state = {key: value for key, value in state.items() if not key.startswith("norm.")}
        grid = self.network["img_size"] // self.network["patch_size"]
        if state["pos_embed"].shape != own["pos_embed"].shape:
            state["pos_embed"] = resample_abs_pos_embed(
                state["pos_embed"], [grid, grid], [self._start_grid] * 2, num_prefix_tokens=self._num_prefix
            )
        missing, unexpected = self.backbone.load_state_dict(state, strict=False)
        fresh = ("head.", "fc_norm.")
        stray = [key for key in missing if not key.startswith(fresh)] + list(unexpected)
        if stray:
            raise ZooError(f"The backbone {self.hparams.backbone} does not fit: {', '.join(stray[:5])}.")
        nn.init.trunc_normal_(self.backbone.head.weight, std=2e-5)

    def setup(self, stage: str) -> None:
        check_image_size(self, self.image_size, ", or model.image_size to what the data gives")
        self._match_classes()

    # ------------------------------------------------------------------ the representation

    @property
    def image_size(self) -> int:
        return self.network["img_size"]

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images (one or a list) to a normalised (B, 3, image_size, image_size) batch."""
        return preprocess_images(raw, self.image_size, **self.view())

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to pooled, normalised features (B, D)."""
        return self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, num_classes)."""
        return self.backbone(images)

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        """The official fine-tuned names are timm's; ours carry `backbone.` in front."""
        names = {key: key.removeprefix("module.") for key in state_dict}
        if "cls_token" not in names.values():
            return state_dict
        return {f"backbone.{names[key]}": value for key, value in state_dict.items()}

    def official_state_dict(self) -> StateDict:
        """timm's names."""
        return {key.removeprefix("backbone."): value for key, value in self.state_dict().items()}

    # ------------------------------------------------------------------ training

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        images, labels = batch[:2]
        if self.mixup is not None:
            if len(images) == 1:
                raise ZooError("Mixup and cutmix need two images or more: raise data.batch_size, or set both to 0.")
            if len(images) % 2:  # mixing pairs the batch with itself in reverse
                images, labels = images[:-1], labels[:-1]
            if self.columns is not None:  # timm mixes classes only
                share = self.mixup._mix_batch(images)  # the images in place
                return self._logged(self.column_loss(images, labels, share), len(images))
            images, labels = self.mixup(images, labels)
        if self.columns is not None:
            return self._logged(self.column_loss(images, labels), len(images))
        logits = self.classify(images).float()
        if self.class_weight is None:
            loss = self.criterion(logits, labels)
        else:  # targets that were mixed are smoothed already
            smoothing = 0.0 if self.mixup is not None else self.hparams.label_smoothing
            loss = nn.functional.cross_entropy(logits, labels, self.class_weight, label_smoothing=smoothing)
        return self._logged(loss, len(images))

    def _logged(self, loss: Tensor, count: int) -> Tensor:
        self.log("train/loss", loss.detach(), batch_size=count)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        lr = resolve_lr(self, h.base_lr, h.lr)
        groups = layer_decay_groups(self.backbone, h.weight_decay, h.layer_decay)
        optimizer = adamw(self, groups, lr=lr, betas=tuple(h.betas), weight_decay=h.weight_decay)
        schedule = warmup_cosine(self, optimizer, lr=lr, min_lr=h.min_lr, warmup_epochs=h.warmup_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip_gradients(self, self.hparams.clip_grad, "global", gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # What it became, not where it started: the checkpoint must load without the backbone's weights at hand.
        hparams = dict(checkpoint.get("hyper_parameters") or self.hparams)
        hparams |= {"backbone": None, "network": self.network, "num_classes": self.num_classes, "image_size": None}
        hparams |= self.became()
        checkpoint["hyper_parameters"] = hparams


def _describe(encoder: VisionTransformer) -> dict[str, Any]:
    block = encoder.blocks[0]
    return {
        "img_size": encoder.patch_embed.img_size[0],
        "patch_size": encoder.patch_embed.patch_size[0],
        "in_chans": encoder.patch_embed.proj.in_channels,
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / encoder.embed_dim,
        "qkv_bias": block.attn.qkv.bias is not None,
        "class_token": encoder.has_class_token,
        "reg_tokens": encoder.num_reg_tokens,
        "no_embed_class": encoder.no_embed_class,
        "pre_norm": not isinstance(encoder.norm_pre, nn.Identity),
        "init_values": 1e-5 if isinstance(block.ls1, LayerScale) else None,  # the weights bring the values
        "norm_eps": block.norm1.eps,
    }
