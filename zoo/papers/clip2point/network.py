"""The networks: CLIP's image tower in timm's class, and the adapters of few-shot learning."""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

FUSION_INIT = 0.5


def build_tower(
    image_size: int = 224, patch_size: int = 32, width: int = 768, depth: int = 12, num_heads: int = 12, dim: int = 512
) -> VisionTransformer:
    """CLIP's ViT as timm has it, (B, 3, S, S) to (B, dim): QuickGELU, a norm before the blocks, a projection as head.

    87,849,216 parameters at ViT-B/32. timm would give the projection a bias, which CLIP has not, and its
    `vit_base_patch32_clip_224` uses plain GELU: with CLIP's weights that is wrong by a few percent, silently.
    """
    tower = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        num_classes=dim,
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        act_layer=QuickGELU,
        weight_init="skip",
    )
    tower.head = nn.Linear(width, dim, bias=False)
    init_like_clip(tower)
    return tower


def init_like_clip(tower: VisionTransformer) -> None:
    """CLIP's initialisation: residual branches shrink with depth; embeddings, projection: std 1 / sqrt(width)."""
    width, depth = tower.embed_dim, len(tower.blocks)
    residual = width**-0.5 * (2 * depth) ** -0.5
    nn.init.normal_(tower.cls_token, std=width**-0.5)
    nn.init.normal_(tower.pos_embed, std=width**-0.5)
    nn.init.normal_(tower.head.weight, std=width**-0.5)
    for block in tower.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.attn.proj.weight, std=residual)
        nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.fc2.weight, std=residual)
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            nn.init.zeros_(layer.bias)


class ViewNorm(nn.Module):
    """BatchNorm over the channels of (B, V, D), each view a sample of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.bn(features.flatten(0, 1)).view_as(features)


class ViewAdapter(nn.Module):
    """The paper's simplified adapter: features of V views (B, V, D) to one feature of the object (B, D).

    Each view has a learned weight; what follows is a two-layer network over all views at once, without a residual.
    2,886,666 parameters at 10 views of 512. Training needs more than one cloud in a batch (BatchNorm).
    """

    def __init__(self, num_views: int, dim: int = 512, dropout: float = 0.075) -> None:
        super().__init__()
        self.fusion_ratio = nn.Parameter(torch.full((num_views,), FUSION_INIT))
        self.global_f = nn.Sequential(
            ViewNorm(dim),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(num_views * dim, dim),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(dim, dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.global_f(features * self.fusion_ratio[:, None])
