"""Masked language modelling, as every BERT-like room needs it: dynamic masks, head, loss, start values.

Shape letters: B sequences, L tokens, N prediction slots, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.text import SpecialIds

Unit = Literal["token", "word", "span"]


@dataclass(frozen=True)
class Masked:
    """What a masked language model gets and has to predict.

    Attributes:
        input_ids: (B, L) with [MASK] (or what stands in for it) at the chosen places.
        positions: (B, N) the chosen places; unused slots point at place 0.
        ids: (B, N) what stood there; 0 in unused slots.
        weights: (B, N) float, 1 for a used slot, 0 for an unused one.
    """

    input_ids: Tensor
    positions: Tensor
    ids: Tensor
    weights: Tensor


class MaskedLMHead(nn.Module):
    """Linear, GELU, LayerNorm, then the word table's transpose and a bias: hidden states to logits over the words."""

    def __init__(
        self, hidden_size: int, embedding_size: int, vocab_size: int, eps: float = 1e-12, tanh_gelu: bool = False
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, embedding_size)
        self.LayerNorm = nn.LayerNorm(embedding_size, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.approximate = "tanh" if tanh_gelu else "none"

    def forward(self, hidden: Tensor, word_table: Tensor) -> Tensor:
        """(B, N, hidden) and (V, E) to (B, N, V)."""
        hidden = self.LayerNorm(F.gelu(self.dense(hidden), approximate=self.approximate))
        return F.linear(hidden, word_table, self.bias)


def gather_places(hidden: Tensor, positions: Tensor) -> Tensor:
    """(B, L, D) at (B, N) places: (B, N, D)."""
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def masked_lm_loss(logits: Tensor, ids: Tensor, weights: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood over the used slots, and each slot's own, in float32.

    Args:
        logits: (B, N, V); ids, weights: (B, N).
        eps: added to the number of slots: 1e-6 in ELECTRA's code, 1e-5 in BERT's.

    Returns:
        Scalar sum(w * nll) / (sum(w) + eps), and nll (B, N).
    """
    nll = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view_as(weights)
    return (weights * nll).sum() / (weights.sum() + eps), nll


def init_truncated(module: nn.Module, std: float = 0.02, glorot: tuple[str, ...] = ()) -> None:
    """TensorFlow BERT's start: normal cut at two standard deviations, zero biases; Glorot for `glorot` names."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(part, nn.Linear):
            if glorot and name.endswith(glorot):
                nn.init.xavier_uniform_(part.weight)
            else:
                nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def init_sinusoidal(table: nn.Embedding, std: float) -> None:
    """Starts a learned table of positions at sines and cosines, wavelengths from 2 pi to 2 pi times its length.

    Attention to a neighbour is then the same for every place from the start. From random vectors it has to be found for
    each place alone, which short trainings do not get through.
    """
    length, width = table.weight.shape
    rates = length ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    with torch.no_grad():
        table.weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width] * std * 2**0.5)


def candidates(input_ids: Tensor, attention_mask: Tensor, special: SpecialIds) -> Tensor:
    """(B, L) True where a token may be chosen: real ones except [CLS], [SEP], [MASK]."""
    allowed = attention_mask.bool()
    for token in (special.cls, special.sep, special.mask):
        allowed = allowed & (input_ids != token)
    return allowed


def draw_positions(allowed: Tensor, slots: int) -> Tensor:
    """N different places of each row, uniform over `allowed` (B, L); what is not allowed comes last."""
    keys = torch.rand(allowed.shape, device=allowed.device).masked_fill(~allowed, -1.0)
    return keys.topk(min(slots, allowed.shape[1]), dim=1).indices


def choose_words(allowed: Tensor, continues: Tensor, wanted: Tensor) -> Tensor:
    """Whole-word choice: (B, L) True on whole words, in random order, as long as they fit into `wanted` (B,) tokens.

    Args:
        continues: (B, L) True on word pieces that continue the word before them ("##ing").
    """
    batch, length = allowed.shape
    starts = allowed & ~(continues & torch.cat([torch.zeros_like(allowed[:, :1]), allowed[:, :-1]], dim=1))
    word = (starts.long().cumsum(1) - 1).clamp(min=0)  # number of the word of each token
    size = torch.zeros_like(word).scatter_add(1, word, allowed.long())
    order = torch.rand(batch, length, device=allowed.device).masked_fill(size == 0, 2.0).argsort(dim=1)
    taken, count = torch.zeros_like(allowed), torch.zeros_like(wanted)
    for at in range(length):  # a word that does not fit is passed over, a shorter one may still fit
        pieces = size.gather(1, order[:, at : at + 1]).squeeze(1)
        fits = (pieces > 0) & (count + pieces <= wanted)
        taken.scatter_(1, order[:, at : at + 1], fits[:, None])
        count = count + pieces * fits
    return taken.gather(1, word) & allowed


def choose_spans(allowed: Tensor, wanted: Tensor, p: float = 0.2, longest: int = 10) -> Tensor:
    """Span choice: geometric lengths (at most `longest`) from random places until `wanted` (B,) tokens are chosen."""
    batch, length = allowed.shape
    rounds = int(wanted.max())
    starts = torch.rand(batch, length, device=allowed.device).masked_fill(~allowed, -1.0).argsort(1, descending=True)
    uniform = torch.rand(batch, length, device=allowed.device)
    sizes = (torch.log1p(-uniform) / torch.log(torch.tensor(1 - p))).floor().long().clamp(0, longest - 1) + 1
    places = torch.arange(length, device=allowed.device).expand(batch, -1)
    chosen = torch.zeros_like(allowed)
    for at in range(min(rounds, length)):
        start = starts[:, at : at + 1]
        fresh = (places >= start) & (places < start + sizes[:, at : at + 1]) & allowed & ~chosen
        room = (wanted - chosen.sum(1))[:, None]
        chosen = chosen | (fresh & (fresh.long().cumsum(1) <= room))
    return chosen


def mask_for_mlm(
    input_ids: Tensor,
    attention_mask: Tensor,
    special: SpecialIds,
    vocab_size: int,
    *,
    mask_prob: float = 0.15,
    max_predictions: int | None = None,
    unit: Unit = "token",
    continues: Tensor | None = None,
) -> Masked:
    """BERT's masking, drawn anew for the whole batch at once: 80 % [MASK], 10 % any token, 10 % as it was.

    k = max(1, round(n * p)) of a sequence's n tokens are chosen, at most `max_predictions`, by token, word or span.

    Args:
        input_ids, attention_mask: (B, L).
        continues: (V,) bool, tokens that continue a word; needed for unit "word".
    """
    slots = max(1, round(input_ids.shape[1] * mask_prob))
    slots = slots if max_predictions is None else min(slots, max_predictions)
    allowed = candidates(input_ids, attention_mask, special)
    wanted = (attention_mask.sum(1).float() * mask_prob).round().long().clamp(1, slots)
    wanted = torch.minimum(wanted, allowed.sum(1))
    if unit == "token":
        positions = draw_positions(allowed, slots)
        used = torch.arange(positions.shape[1], device=input_ids.device) < wanted[:, None]
    else:
        if unit == "word":
            assert continues is not None, "whole words need to know which tokens continue one"
            chosen = choose_words(allowed, continues[input_ids], wanted)
        else:
            chosen = choose_spans(allowed, wanted)
        used, positions = chosen.long().topk(min(slots, chosen.shape[1]), dim=1)
        used = used.bool()
    positions = positions * used
    ids = input_ids.gather(1, positions) * used
    uniform = torch.rand(positions.shape, device=input_ids.device)
    other = (torch.rand(positions.shape, device=input_ids.device) * vocab_size).long()
    new = torch.where(uniform < 0.8, special.mask, torch.where(uniform < 0.9, other, ids))
    # Unused slots point at place 0 and write back what is there.
    new = torch.where(used, new, input_ids[:, :1])
    return Masked(input_ids.scatter(1, positions, new), positions, ids, used.float())
