"""The decoders of DropPos; the encoder is timm's VisionTransformer."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from zoo.nn.patches import sincos_positions

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def build_encoder(
    image_size: int,
    patch_size: int,
    in_chans: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
) -> VisionTransformer:
    """timm's ViT as in MAE: class token, fixed sin-cos positions, pre-norm blocks, no classifier."""
    encoder = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        num_classes=0,
        norm_layer=LayerNorm,
        weight_init="skip",
    )
    encoder.pos_embed.data.copy_(sincos_positions(image_size // patch_size, embed_dim))
    encoder.pos_embed.requires_grad_(False)
    return encoder


def block_on_first(block: Block, tokens: Tensor, count: int) -> Tensor:
    """A transformer block where only the first `count` tokens ask and all are looked at: (B, T, D) to (B, count, D).

    The same numbers as `block(tokens)[:, :count]`, without the work on the rest. For blocks as this room builds them:
    no query or key norm, no layer scale, no dropout.
    """
    attention, dim = block.attn, tokens.shape[-1]
    normed = block.norm1(tokens)
    query = F.linear(normed[:, :count], attention.qkv.weight[:dim], attention.qkv.bias[:dim])
    key, value = F.linear(normed, attention.qkv.weight[dim:], attention.qkv.bias[dim:]).chunk(2, dim=-1)
    query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    first = tokens[:, :count] + attention.proj(mixed)
    return first + block.mlp(block.norm2(first))


class PositionDecoder(nn.Module):
    """Scores each visible patch against every position of the grid; has no position embedding of its own.

    `forward`: (B, 1 + V, D) encoder tokens, class token first, to (B, V, num_positions).
    """

    def __init__(self, in_dim: int, dim: int, depth: int, num_heads: int, mlp_ratio: float, num_positions: int) -> None:
        super().__init__()
        self.embed = nn.Linear(in_dim, dim)
        self.blocks = nn.Sequential(
            *[Block(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)]
        )
        self.norm = LayerNorm(dim)
        self.pred = nn.Linear(dim, num_positions)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.pred(self.norm(self.blocks(self.embed(tokens))[:, 1:]))


class PixelDecoder(nn.Module):
    """MAE's decoder, used by the multi-task variant.

    `forward`: (B, 1 + V, D) encoder tokens and (B, N) `restore` indices to (B, N, patch_values) in raster order.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        grid_side: int,
        patch_values: int,
        learn_mask_token: bool = True,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim), requires_grad=learn_mask_token)
        self.pos_embed = nn.Parameter(sincos_positions(grid_side, dim), requires_grad=False)
        self.blocks = nn.Sequential(
            *[Block(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)]
        )
        self.norm = LayerNorm(dim)
        self.pred = nn.Linear(dim, patch_values)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        batch, num_visible, dim = tokens.shape[0], tokens.shape[1] - 1, tokens.shape[2]
        hidden = self.mask_token.to(tokens.dtype).expand(batch, restore.shape[1] - num_visible, -1)
        patches = torch.cat([tokens[:, 1:], hidden], dim=1)
        patches = patches.gather(1, restore.unsqueeze(-1).expand(-1, -1, dim))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed
        return self.pred(self.norm(self.blocks(tokens))[:, 1:])


def init_like_mae(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias, unit LayerNorms; use with `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
