"""Loads the official DropPos code from a clone, for comparison; see README.md for the two commands that get it.

That code was written for timm 0.3.2, an older PyTorch and an older numpy: what is gone since is put in its place here.
"""

from __future__ import annotations

import collections.abc
import functools
import importlib
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError


class _Attention(nn.Module):
    """Attention as libraries wrote it before fused kernels: the whole score matrix, softmax, product."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((scores @ value).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Pre-norm transformer block with the constructor that the official code calls."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias=True, qk_scale=None, norm_layer=nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_layer(dim), norm_layer(dim)
        self.attn, self.mlp = _Attention(dim, num_heads), _Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size, self.num_patches = (patch_size, patch_size), (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def _stub(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    return module


@functools.cache
def load_official(clone: str, timm_folder: str | None = None) -> types.SimpleNamespace:
    """Imports the official modules from `clone`.

    `timm_folder` holds an installed timm 0.3.2; without it, stand-ins of the same arithmetic take its place.
    Returns `models`, `utils` (clipping), `smoothing_map` and `mask_transform` of the official code, and `timm`,
    a word on which timm it runs on. Our own timm is untouched afterwards.
    """
    if not (Path(clone) / "models_DropPos_mae.py").is_file():
        raise ZooError(f"{clone} is no clone of the official code: it has no models_DropPos_mae.py.")
    if not hasattr(np, "float"):
        setattr(np, "float", float)  # noqa: B010 (gone since numpy 1.24)
    stubs = {
        "torch._six": _stub("torch._six", inf=math.inf, container_abcs=collections.abc),
        "einops": _stub("einops", rearrange=None),  # imported for options that are off
        "einops.einops": _stub("einops.einops", rearrange=None),
    }
    if timm_folder is None:
        parts = dict(PatchEmbed=_PatchEmbed, Block=_Block, DropPath=nn.Identity, Mlp=_Mlp)
        stubs |= {"timm": _stub("timm"), "timm.models": _stub("timm.models")}
        stubs["timm.models.vision_transformer"] = _stub("timm.models.vision_transformer", **parts)
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "timm"}
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = [clone] if timm_folder is None else [clone, timm_folder]
    sys.modules.update(stubs)
    try:
        models = importlib.import_module("models_DropPos_mae")
        loaded = types.SimpleNamespace(
            models=models,
            utils=importlib.import_module("util.utils"),
            smoothing_map=importlib.import_module("engine_pretrain")._get_label_smoothing_map,
            mask_transform=importlib.import_module("mask_transform"),
            timm=getattr(sys.modules["timm"], "__version__", "stand-ins for timm 0.3.2"),
        )
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if name in stubs or name.split(".")[0] == "timm":
                del sys.modules[name]
        sys.modules.update(aside)
    return loaded
