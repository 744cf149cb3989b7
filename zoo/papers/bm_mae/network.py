"""The networks of BM-MAE: a tokenizer a sequence, one joint encoder, one decoder. Names are those of the official file.

timm's and recent MONAI's blocks hold other parameters than the released weights, so the block is written out here.
Shape letters: B subjects, M sequences, T tokens of a sequence, V visible tokens, D width, P = p^3 voxels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.nn.patches3d import patchify_3d, sincos_positions_3d
from zoo.papers.bm_mae.attention import dropout_attention, serves
from zoo.papers.bm_mae.masking import Masks, names_in_order

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""The sequences in the order that encoder and decoder lay them out."""


class Attention(nn.Module):
    """Multi-head self-attention, fused where the device can. (B, L, D) to (B, L, D)."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.drop_output = nn.Dropout(dropout)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if allowed is None and serves(q, dropout):
            x = dropout_attention(q, k, v, dropout)
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return self.drop_output(self.out_proj(x.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """(B, L, D) to (B, L, D) through `hidden` GELU units."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop1, self.drop2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.linear2(self.drop1(F.gelu(self.linear1(x)))))


class Block(nn.Module):
    """Pre-norm transformer block with the parameters of MONAI 1.3, as the released weights have them."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads, dropout)
        self.norm2, self.mlp = nn.LayerNorm(dim), MLP(dim, mlp_dim, dropout)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), allowed)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """A convolution with stride p, applied as a matrix to patches (B, K, P), and fixed positions."""

    def __init__(self, patch_size: int, grid: Sequence[int], dim: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(sincos_positions_3d(grid, dim), requires_grad=False)
        self.patch_embeddings = nn.Conv3d(1, dim, patch_size, patch_size)
        nn.init.xavier_uniform_(self.patch_embeddings.weight.data.view(dim, -1))  # the bias keeps its default

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.patch_embeddings.weight.flatten(1), self.patch_embeddings.bias)


class Tokenizer(nn.Module):
    """Patches of one sequence (B, T, P) to tokens with positions (B, T, D)."""

    def __init__(self, patch_size: int, grid: Sequence[int], dim: int) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(patch_size, grid, dim)

    def forward(self, patches: Tensor) -> Tensor:
        return self.patch_embedding(patches) + self.patch_embedding.position_embeddings


class MultimodalViT(nn.Module):
    """The encoder. Only the tokenizers tell sequences apart: there is no modality embedding here.

    Args:
        image_size: side of the cubic volumes in voxels, patch_size: of a patch.
        dim, depth, num_heads, mlp_dim: of the transformer.
        dropout: in attention and MLP (0 at pre-training, 0.1 in the official classification and survival runs).
        modalities: the sequences that it has tokenizers for.
        class_token: whether a class token goes before the others.
    """

    def __init__(
        self,
        image_size: int = 128,
        patch_size: int = 16,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 1536,
        dropout: float = 0.0,
        modalities: Sequence[str] = MODALITIES,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size, self.dim = image_size, patch_size, dim
        self.modalities = tuple(names_in_order(modalities, MODALITIES))
        self.grid = (image_size // patch_size,) * 3
        self.num_tokens = self.grid[0] ** 3
        self.tokenizers = nn.ModuleDict({name: Tokenizer(patch_size, self.grid, dim) for name in self.modalities})
        self.cls_token: nn.Parameter | None = None
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.blocks = nn.ModuleList([Block(dim, num_heads, mlp_dim, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def check(self, volumes: Mapping[str, Tensor]) -> list[str]:
        """The sequences of `volumes` in fixed order. Raises `ZooError` for an unknown one or another size."""
        names = names_in_order(list(volumes), self.modalities)
        for name in names:
            shape = tuple(volumes[name].shape)
            if len(shape) != 5 or shape[1:] != (1, *(self.image_size,) * 3):
                raise ZooError(
                    f"{name} has shape {shape}; the model takes (subjects, 1, {', '.join([str(self.image_size)] * 3)})."
                )
        return names

    def patches(self, volumes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{sequence: (B, 1, S, S, S)} to {sequence: (B, T, P)}, in fixed order whatever the order given."""
        return {name: patchify_3d(volumes[name], self.patch_size) for name in self.check(volumes)}

    def embed_visible(self, patches: Mapping[str, Tensor], masks: Masks) -> Tensor:
        """Tokens (B, V, D) of the visible patches alone; `patches` {sequence: (B, T, P)} holds all.

        A tokenizer sees a different number of patches in each step. On a GPU, where shapes should stay the same, all
        patches are embedded and the visible ones taken.
        """
        batch, visible = masks.visible.shape
        sequence, token = masks.visible // self.num_tokens, masks.visible % self.num_tokens
        positions = self.tokenizers[next(iter(patches))].patch_embedding.position_embeddings[0]
        if masks.visible.device.type != "cpu" or torch.compiler.is_compiling():
            tokens = torch.cat([self.tokenizers[name].patch_embedding(patch) for name, patch in patches.items()], dim=1)
            tokens = tokens.gather(1, masks.visible.unsqueeze(-1).expand(-1, -1, self.dim))
            return tokens + positions[token]
        parts, places = [], []
        for index, (name, patch) in enumerate(patches.items()):
            subject, place = torch.nonzero(sequence == index, as_tuple=True)
            parts.append(self.tokenizers[name].patch_embedding(patch[subject, token[subject, place]]))
            places.append(subject * visible + place)
        tokens = torch.cat(parts)[torch.cat(places).argsort()].unflatten(0, (batch, visible))
        return tokens + positions[token]

    def encode(self, tokens: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Tokens with positions (B, L, D) to normalised output, the class token (if any) prepended."""
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, allowed)
        return self.norm(tokens)

    def tokens(self, volumes: Mapping[str, Tensor]) -> Tensor:
        """All tokens of the given sequences, with positions: (B, M * T, D)."""
        return torch.cat([self.tokenizers[name](patch) for name, patch in self.patches(volumes).items()], dim=1)

    def forward(self, volumes: Mapping[str, Tensor]) -> Tensor:
        """{sequence: (B, 1, S, S, S)}, any non-empty subset in any order, to (B, 1 + M * T, D)."""
        return self.encode(self.tokens(volumes))

    def hidden_states(self, volumes: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What a segmentation decoder takes: normalised final output (B, T, D), and every block's as it is.

        No class token; each state is the mean over the sequences.
        """
        tokens = self.tokens(volumes)
        states = []
        for block in self.blocks:
            tokens = block(tokens)
            states.append(self._mean(tokens))
        return self._mean(self.norm(tokens)), states

    def _mean(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (-1, self.num_tokens)).mean(1)


class Decoder(nn.Module):
    """Encoder output to voxels of every patch of all four sequences.

    Args:
        grid, patch_size: as the encoder's.
        in_dim: the encoder's width; dim, depth, num_heads, mlp_dim, dropout: of the decoder.
    """

    def __init__(
        self,
        grid: Sequence[int],
        patch_size: int,
        in_dim: int = 768,
        dim: int = 384,
        depth: int = 3,
        num_heads: int = 12,
        mlp_dim: int = 1536,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.mask_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embeddings = nn.Parameter(sincos_positions_3d(grid, dim), requires_grad=False)
        self.decoder_embed = nn.Linear(in_dim, dim)
        self.decoder_blocks = nn.ModuleList([Block(dim, num_heads, mlp_dim, dropout) for _ in range(depth)])
        self.decoder_norm = nn.LayerNorm(dim)
        self.decoder_pred = nn.Linear(dim, patch_size**3)
        self.modality_embeddings = nn.ParameterDict({name: nn.Parameter(torch.zeros(1, 1, dim)) for name in MODALITIES})
        for token in (self.mask_tokens, *self.modality_embeddings.values()):
            nn.init.trunc_normal_(token, std=0.02)

    def forward(
        self, encoded: Tensor, masks: Masks, wanted: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Encoder output (B, 1 + V, D) to voxels (B, K, P).

        Args:
            wanted: (B, K) indices of the tokens to predict; None predicts all N, in the sequences' fixed order.
            allowed: attention mask of the ablation without cross-modal tokens.
        """
        tokens = self.decoder_embed(encoded)
        batch, width = tokens.shape[0], tokens.shape[-1]
        hidden = self.mask_tokens.to(tokens.dtype).expand(batch, masks.hidden.shape[1], -1)
        patches = torch.cat([tokens[:, 1:], hidden], dim=1)
        patches = patches.gather(1, masks.restore.unsqueeze(-1).expand(-1, -1, width))
        places = torch.cat([self.modality_embeddings[name] + self.position_embeddings for name in MODALITIES], dim=1)
        tokens = torch.cat([tokens[:, :1], patches + places], dim=1)
        for block in self.decoder_blocks:
            tokens = block(tokens, allowed)
        tokens = tokens[:, 1:]
        if wanted is not None:
            tokens = tokens.gather(1, wanted.unsqueeze(-1).expand(-1, -1, width))
        return self.decoder_pred(self.decoder_norm(tokens))


def within_modality(sequence: Tensor) -> Tensor:
    """Attention mask (B, 1, 1 + L, 1 + L) that lets each token see its own sequence and the class token alone.

    `sequence` (B, L) says which sequence a token belongs to; the class token sees only itself, so it carries nothing
    from one sequence to another. For the ablation without cross-modal tokens.
    """
    group = F.pad(sequence, (1, 0), value=-1)
    allowed = group.unsqueeze(2) == group.unsqueeze(1)
    allowed[:, :, 0] = True
    return allowed.unsqueeze(1)
