"""Generator and heads around transformers' `ElectraModel`; the embedding block is shared between both networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import ElectraConfig, ElectraModel
from transformers.models.electra.modeling_electra import ElectraEmbeddings, ElectraEncoder


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
    """The generator's sizes as shares of the discriminator's; heads of 64, at least one."""
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


class DiscriminatorHead(nn.Module):
    """Linear, GELU, linear to one logit: how likely each token is a replaced one."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dense_prediction = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, hidden) to (B, L)."""
        return self.dense_prediction(nn.functional.gelu(self.dense(hidden))).squeeze(-1)


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
