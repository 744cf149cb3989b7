"""Choosing, masking and replacing tokens (paper section 2; `mask` and `_get_fake_data` of the official code).

Shape letters: B sequences, L tokens, N prediction slots, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.nn.text import SpecialIds
from zoo.nn.text_mlm import Masked, candidates, draw_positions


def max_predictions(length: int, mask_prob: float) -> int:
    """N, the slots of a sequence of `length` tokens: floor((p + 0.005) * L); at least one."""
    return max(1, int((mask_prob + 0.005) * length))


def num_to_predict(attention_mask: Tensor, mask_prob: float, slots: int) -> Tensor:
    """(B,) k = clamp(round(n * p), 1, N), n the tokens that are no padding; halves round to even."""
    count = attention_mask.sum(dim=1).float() * torch.tensor(mask_prob, dtype=torch.float32)
    return count.round().long().clamp(1, slots)


def draw_positions_with_replacement(allowed: Tensor, slots: int) -> Tensor:
    """N independent draws of each row, as the official code makes them: the same place may come twice."""
    uniform = torch.rand(allowed.shape[0], slots, device=allowed.device)
    rank = (uniform * allowed.sum(dim=1, keepdim=True)).floor().long()  # the rank-th allowed place
    order = (~allowed).long().sort(dim=1, stable=True).indices
    return order.gather(1, rank.clamp(max=allowed.shape[1] - 1))


def mask_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    special: SpecialIds,
    mask_prob: float,
    *,
    official: bool = False,
    positions: Tensor | None = None,
    uniform: Tensor | None = None,
) -> Masked:
    """Chooses k places of each sequence and puts [MASK] there.

    Args:
        input_ids, attention_mask: (B, L).
        official: as the released code does, draw places with replacement and leave 15 % of the slots as they are.
            Otherwise, as the paper says, k different places, all of them masked.
        positions: (B, N) the places, drawn here unless given.
        uniform: (B, N) official only: a slot becomes [MASK] where this is below 0.85; drawn here unless given.
    """
    slots = max_predictions(input_ids.shape[1], mask_prob) if positions is None else positions.shape[1]
    allowed = candidates(input_ids, attention_mask, special)
    wanted = num_to_predict(attention_mask, mask_prob, slots)
    available = allowed.sum(dim=1)
    if positions is None:
        positions = draw_positions_with_replacement(allowed, slots) if official else draw_positions(allowed, slots)
    # A row without candidates predicts nothing; without replacement no more than there are.
    wanted = torch.where(available > 0, wanted, 0) if official else torch.minimum(wanted, available)
    used = torch.arange(positions.shape[1], device=input_ids.device) < wanted[:, None]
    positions = positions * used
    ids = input_ids.gather(1, positions) * used
    hide = used
    if official:
        if uniform is None:
            uniform = torch.rand(positions.shape, device=input_ids.device)
        hide = used & (uniform < 0.85)
    # A place is hidden if any of its slots says so. Place 0 ([CLS]) takes the slots that hide nothing.
    hidden = torch.zeros_like(input_ids).scatter_add(1, positions, hide.long()) > 0
    hidden[:, 0] = False
    masked = torch.where(hidden, special.mask, input_ids)
    return Masked(masked, positions, ids, used.float())


@torch.no_grad()
def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    forbid: Tensor | None = None,
    gumbel_uniform: Tensor | None = None,
) -> Tensor:
    """One token a slot from softmax(logits / temperature), in float32: (B, N, V) to (B, N).

    Args:
        forbid: (B, N) ids that must not come out (the official `disallow_correct`: -1000 on their logit).
        gumbel_uniform: (B, N, V) uniforms of the official Gumbel-max draw. Without them one uniform a slot is drawn and
            the cumulative distribution inverted: the same distribution for 1 / V of the random numbers.
    """
    logits = logits.float() / temperature
    if forbid is not None:
        logits = logits.scatter_add(-1, forbid.unsqueeze(-1), torch.full_like(logits[..., :1], -1000.0))
    if gumbel_uniform is not None:
        noise = -torch.log(-torch.log(gumbel_uniform + 1e-9) + 1e-9)
        return (logits + noise).argmax(dim=-1)
    cumulative = logits.softmax(dim=-1).cumsum_(dim=-1)
    uniform = torch.rand(logits.shape[:-1], device=logits.device).unsqueeze(-1)
    # Scaled by the last value, which rounding keeps from 1. `right`: a token of probability 0 never comes.
    drawn = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True)
    return drawn.squeeze(-1).clamp(max=logits.shape[-1] - 1)


def replace_tokens(
    input_ids: Tensor, masked: Masked, sampled: Tensor, *, official: bool = False
) -> tuple[Tensor, Tensor]:
    """The main network's input, with sampled tokens in their places, and where one was written (bool); both (B, L).

    ELECTRA's labels are what differs from the original: a sample that hits it is original. Place 0 is never written.

    Args:
        sampled: (B, N) token ids.
        official: where a place was drawn twice, the released code writes the mean of both ids, rounded down - a token
            that nobody sampled. Otherwise places are distinct and this does not arise.
    """
    used = masked.weights.long()
    if official:
        # The released scatter counts every slot, also the unused ones, which all point at place 0.
        total = torch.zeros_like(input_ids).scatter_add(1, masked.positions, sampled)
        count = torch.zeros_like(input_ids).scatter_add(1, masked.positions, torch.ones_like(sampled))
    else:
        total = torch.zeros_like(input_ids).scatter_add(1, masked.positions, sampled * used)
        count = torch.zeros_like(input_ids).scatter_add(1, masked.positions, used)
    count[:, 0] = 0
    corrupted = torch.where(count > 0, torch.div(total, count.clamp(min=1), rounding_mode="floor"), input_ids)
    return corrupted, count > 0
