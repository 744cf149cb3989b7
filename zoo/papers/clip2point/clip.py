"""OpenAI's CLIP as CLIP2Point starts from it and speaks to it: the image tower in timm's class, the text tower of
open_clip (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.extras import require
from zoo.module import StateDict, ZooModule, full_precision
from zoo.nn.images import preprocess_images
from zoo.optim import adamw, warmup_cosine
from zoo.papers.clip2point import weights
from zoo.papers.clip2point.network import build_tower

PROMPT = "image of a {}"
"""What CLIP2Point asks CLIP's text tower, in training and evaluation."""


class CLIP(ZooModule):
    """Both towers of a CLIP: for its weights, and for the text features that points are compared with.

    Defaults are ViT-B/32. With `text_depth: 0` there is no text tower, and every name has a fixed random vector: a
    stand-in for trying things at small size. That one can be trained here, pictures against the vectors of their
    classes.

    Args:
        image_size, patch_size, width, depth, num_heads: the image tower.
        dim: width of the shared space.
        text_width, text_depth, text_heads, context_length, vocab_size: the text tower.
        names: without a text tower, the class names whose vectors pictures were trained to meet; training fills it in.
        lr, weight_decay, warmup_epochs: AdamW and a cosine schedule, for training the image tower.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 32,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        dim: int = 512,
        text_width: int = 512,
        text_depth: int = 12,
        text_heads: int = 8,
        context_length: int = 77,
        vocab_size: int = 49408,
        names: list[str] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_epochs: float = 2.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = build_tower(image_size, patch_size, width, depth, num_heads, dim)
        self.text: nn.Module | None = None
        if text_depth:
            require("open_clip", extra="pointcloud", why="CLIP's text tower is open_clip's")
            from open_clip.transformer import QuickGELU, TextTransformer

            self.text = TextTransformer(
                context_length=context_length,
                vocab_size=vocab_size,
                width=text_width,
                heads=text_heads,
                layers=text_depth,
                output_dim=dim,
                act_layer=QuickGELU,
            ).requires_grad_(False)
        self.logit_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.clip_from_official(state_dict) if weights.is_official_clip(state_dict) else state_dict

    def official_state_dict(self) -> StateDict:
        """The weights under OpenAI's names."""
        return weights.clip_to_official(self.state_dict())

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images (one or a list) to a batch (B, 3, S, S) normalised as CLIP's images are."""
        return preprocess_clip_images(raw, self.hparams.image_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, dim), not normalised."""
        return self.backbone(images)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts to (T, dim) features of length 1."""
        if self.text is None:
            return fixed_vectors(texts, self.hparams.dim).to(self.device)
        from open_clip.tokenizer import SimpleTokenizer

        tokens = SimpleTokenizer(context_length=self.hparams.context_length)(list(texts))
        if int(tokens.max()) >= self.hparams.vocab_size:
            raise ZooError(f"This text tower knows {self.hparams.vocab_size} tokens, CLIP's tokenizer gives more.")
        return F.normalize(self.text(tokens.to(self.device)).float(), dim=-1)

    def encode_names(self, names: Sequence[str], prompt: str = PROMPT, learned: bool = False) -> Tensor:
        """Class names to (C, dim) features of length 1, through `prompt` ("{}" stands for the name).

        With `learned`, for zero-shot use: `ZooError` for a name that a CLIP without a text tower cannot know.
        """
        known = self.hparams.names
        strange = [name for name in names if name.strip() not in known] if known and self.text is None else []
        if learned and strange:
            raise ZooError(f"This small CLIP knows no word {strange[0]!r}; it knows {', '.join(known)}.")
        return self.encode_text(fill_prompts(names, prompt))

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.hparams["names"] = list(self.trainer.datamodule.prompt_names)  # type: ignore[attr-defined]

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Pictures against the text features of all classes; only the image tower and the scale learn."""
        loss, accuracy = self._name_pictures(batch)
        self.log_dict({"train/loss": loss.detach(), "train/acc1": accuracy}, batch_size=len(batch[0]), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        loss, accuracy = self._name_pictures(batch)
        values = {"val/loss": loss, "val/acc1": accuracy}
        self.log_dict(values, batch_size=len(batch[0]), prog_bar=True, on_epoch=True, sync_dist=True)

    def _name_pictures(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        images, labels = batch[0], batch[-1]
        names = self.trainer.datamodule.prompt_names  # type: ignore[attr-defined]
        text = self.encode_names(names)
        features = self(to_clip_scale(images))
        with full_precision(images.device.type):
            logits = self.logit_scale.exp() * F.normalize(features.float(), dim=-1) @ text.t()
            loss = F.cross_entropy(logits, labels)
        return loss, (logits.argmax(dim=1) == labels).float().mean()

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = adamw(self, trained, lr=h.lr, betas=(0.9, 0.98), weight_decay=h.weight_decay)
        schedule = warmup_cosine(self, optimizer, lr=h.lr, warmup_epochs=h.warmup_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def fixed_vectors(texts: Sequence[str], dim: int) -> Tensor:
    """(T, dim) unit vectors that depend on nothing but the texts: stand-ins where there is no text tower."""
    rows = [torch.randn(dim, generator=torch.Generator().manual_seed(zlib.crc32(text.encode()))) for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


def fill_prompts(names: Sequence[str], prompt: str = PROMPT) -> list[str]:
    """The prompt of each name. Raises `ZooError` for no names, empty ones, twins, or a prompt without "{}"."""
    names = [str(name).strip() for name in names]
    if not names or not all(names):
        raise ZooError("There is an empty class name: give names such as chair, mug." if names else "Give class names.")
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ZooError(f"The class name {twins[0]!r} is there twice.")
    if "{}" not in prompt:
        raise ZooError(f"A prompt has a {{}} where the class name goes, as in {PROMPT!r}; this has none: {prompt!r}.")
    return [prompt.replace("{}", name) for name in names]


def preprocess_clip_images(raw: Any, size: int) -> Tensor:
    """Paths or PIL images (one or a list) to (B, 3, size, size): shorter side to `size`, centre crop, CLIP's scale."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    images = preprocess_images(raw, size, crop_pct=1.0)
    values = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    mean, std, old_mean, old_std = (torch.tensor(value)[:, None, None] for value in values)
    return (images * old_std + old_mean - mean) / std


def to_clip_scale(images: Tensor) -> Tensor:
    """uint8 pictures (..., 3, S, S) to floats normalised as CLIP's images are; floats pass through as they are."""
    if images.dtype != torch.uint8:
        return images
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (images.float() / 255 - mean) / std


def load_clip(name: str) -> CLIP:
    """The CLIP behind a zoo name, a manifest or a checkpoint. Raises `ZooError` if it is something else."""
    import contextvars

    from zoo.loading import load

    # LightningCLI announces the outer model's arguments in a context variable, and the inner module's
    # save_hyperparameters would take them for its own.
    model = contextvars.Context().run(load, name)
    if not isinstance(model, CLIP):
        raise ZooError(f"{name} is a {type(model).__name__}; a CLIP is needed here, such as clip-vitb32.")
    return model
