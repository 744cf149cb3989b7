"""Generator and heads around transformers' `ElectraModel`; the embedding block is shared between both networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ElectraConfig, ElectraModel
from transformers.models.electra.modeling_electra import ElectraEmbeddings, ElectraEncoder

from zoo.nn.text_mlm import MaskedLMHead


def electra_config(
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    embedding_size: int,
    max_positions: int,
    dropout: float,
) -> ElectraConfig:
    """transformers' configuration, without its special row for padding (the official table has none)."""
    config = ElectraConfig(
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=None,
    )
    config._attn_implementation = "sdpa"
    return config


def generator_config(config: ElectraConfig, width: float, depth: float, own_embeddings: bool) -> ElectraConfig:
    """The generator's sizes as shares of the discriminator's; heads of 64, at least one.

    A generator with embeddings of its own has them as wide as itself, as in the official code.
    """
    hidden = max(1, round(config.hidden_size * width))
    values: dict[str, Any] = config.to_dict()
    values |= {
        "hidden_size": hidden,
        "num_hidden_layers": max(1, round(config.num_hidden_layers * depth)),
        "intermediate_size": 4 * hidden,
        "num_attention_heads": max(1, hidden // 64),
        "embedding_size": hidden if own_embeddings else config.embedding_size,
    }
    made = ElectraConfig.from_dict(values)
    made.pad_token_id = None
    made._attn_implementation = "sdpa"
    return made


class Generator(nn.Module):
    """The generator's own part: a projection where widths differ, the encoder, and embeddings only if untied."""

    def __init__(self, config: ElectraConfig, own_embeddings: bool) -> None:
        super().__init__()
        self.embeddings = ElectraEmbeddings(config) if own_embeddings else None
        differs = config.embedding_size != config.hidden_size
        self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size) if differs else None
        self.encoder = ElectraEncoder(config)
        self.config = config

    def forward(self, embedded: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings (B, L, E) to (B, L, hidden)."""
        hidden = embedded if self.embeddings_project is None else self.embeddings_project(embedded)
        return self.encoder(hidden, attention_mask=mask).last_hidden_state


class TwoTowers(nn.Module):
    """Electric's generator: one encoder reads from the left, one from the right; neither sees the token itself.

    Both read the embedding block of the discriminator, or each its own.
    """

    def __init__(self, config: ElectraConfig, own_embeddings: bool) -> None:
        super().__init__()
        self.ltr = Generator(config, own_embeddings)
        self.rtl = Generator(config, own_embeddings)

    def forward(self, shared: nn.Module, input_ids: Tensor, types: Tensor | None, mask: Tensor | None) -> Tensor:
        """Unmasked ids (B, L) to (B, L, 2 * hidden): at place t what stands before t, and what stands after it.

        The first and the last place get, as in the official code, the other end of the sequence, which has seen all
        of it: only [CLS] and what stands at the very end.
        """
        length = input_ids.shape[1]
        seen = torch.ones(length, length, device=input_ids.device).tril()
        states = []
        for tower, visible, shift in ((self.ltr, seen, 1), (self.rtl, seen.t(), -1)):
            embeddings = tower.embeddings if tower.embeddings is not None else shared
            allowed = visible if mask is None else visible * (mask == 0)
            hidden = encode(embeddings, tower, input_ids, types, (1.0 - allowed).expand(
                len(input_ids), 1, length, length) * -10000.0)  # fmt: skip
            states.append(hidden.roll(shift, dims=1))
        return torch.cat(states, dim=-1)


class DiscriminatorHead(nn.Module):
    """Linear, GELU, linear to one logit: how likely each token is a replaced one."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dense_prediction = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, hidden) to (B, L)."""
        return self.dense_prediction(nn.functional.gelu(self.dense(hidden))).squeeze(-1)


class TokenHead(nn.Module):
    """The ablations' head on the main network: logits over the words and, for all tokens, one logit for copying."""

    def __init__(self, hidden_size: int, embedding_size: int, vocab_size: int, copies: bool) -> None:
        super().__init__()
        self.words = MaskedLMHead(hidden_size, embedding_size, vocab_size)
        self.copy = nn.Linear(hidden_size, 1) if copies else None

    def forward(self, hidden: Tensor, word_table: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, hidden) and (V, E) to (B, N, V) and (B, N), zeros without copying."""
        copy = hidden.new_zeros(hidden.shape[:-1]) if self.copy is None else self.copy(hidden).squeeze(-1)
        return self.words(hidden, word_table), copy


def encode(
    embeddings: nn.Module, encoder: ElectraModel | Generator, input_ids: Tensor, types: Tensor | None, mask: Any
) -> Tensor:
    """(B, L) ids through an embedding block and an encoder: (B, L, hidden). `mask` is what SDPA adds, or None."""
    embedded = embeddings(input_ids=input_ids, token_type_ids=types)
    if isinstance(encoder, Generator):
        return encoder(embedded, mask)
    if hasattr(encoder, "embeddings_project"):
        embedded = encoder.embeddings_project(embedded)
    return encoder.encoder(embedded, attention_mask=mask).last_hidden_state
