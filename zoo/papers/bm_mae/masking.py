"""Which tokens of which sequence the encoder sees: shares from a Dirichlet, as MultiMAE draws them.

Shape letters: B subjects, M sequences (modalities), T tokens of a sequence, N = M * T, V visible tokens of a subject.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import ZooError

Draw = Callable[[int], Tensor]
"""`draw(rows)` gives (rows, M) shares that sum to 1."""


@dataclass(frozen=True)
class Masks:
    """Visible and hidden tokens of a batch, over the sequences laid end to end.

    Attributes:
        visible: (B, V) indices into the N tokens, in the order that the encoder gets them.
        hidden: (B, N - V) indices of the others.
        restore: (B, N): where each token stands in `[visible, hidden]`.
        num_tokens: T.
    """

    visible: Tensor
    hidden: Tensor
    restore: Tensor
    num_tokens: int

    @property
    def masked(self) -> Tensor:
        """(B, M, T) bool, True where a token is hidden from the encoder."""
        return (self.restore >= self.visible.shape[1]).unflatten(1, (-1, self.num_tokens))


def num_visible(num_tokens: int, modalities: int, mask_ratio: float) -> int:
    """V, truncated as the official code does."""
    return int(num_tokens * modalities * (1 - mask_ratio))


def acceptance(modalities: int, limit: float) -> float:
    """Probability that all shares of a flat Dirichlet lie below `limit`."""
    terms = (
        (-1) ** k * math.comb(modalities, k) * max(0.0, 1 - k * limit) ** (modalities - 1)
        for k in range(modalities + 1)
    )
    return 1.0 if limit >= 1 else max(0.0, sum(terms))


def draw_shares(batch: int, modalities: int, limit: float) -> Tensor:
    """(B, M) shares of the visible tokens: flat on the simplex, given that none reaches `limit`.

    `limit` is T / V: a sequence cannot show more tokens than it has. Instead of drawing rows again until they fit, as
    the official code does, several candidates are drawn for each subject and the first that fits is taken: the same
    distribution, with draws whose number does not depend on luck. On the CPU, so that a GPU never waits.
    """
    chance = acceptance(modalities, limit)
    candidates = 1 if chance >= 1 else math.ceil(math.log(1e-12) / math.log(1 - chance))
    shares = torch.empty(batch, candidates, modalities).exponential_()
    shares = shares / shares.sum(-1, keepdim=True)
    first = (shares < limit).all(-1).float().argmax(1)
    return shares[torch.arange(batch), first]


def redraw_shares(batch: int, limit: float, draw: Draw) -> Tensor:
    """(B, M) shares from a source of flat shares, by the official redrawing: what recorded draws need.

    A row with two shares of `limit` or more is drawn twice and the later draw counts. (The official loop also takes a
    lone invalid row 0 for "nothing invalid"; here it is drawn again.)
    """
    shares = draw(batch)
    while len(rows := torch.argwhere(shares >= limit)[:, 0]):
        for row, share in zip(rows.tolist(), draw(len(rows)), strict=True):
            shares[row] = share
    return shares


def make_masks(
    shares: Tensor, token_noise: Tensor, final_noise: Tensor, visible: int, present: Tensor | None = None
) -> Masks:
    """Turns draws into masks with exactly `visible` visible tokens in every subject.

    Each sequence first shows round(share * V) random tokens. Rounding can make their sum miss V: the surplus is hidden
    at random, a deficit is filled with random hidden tokens.

    Args:
        shares: (B, M); token_noise: (B, M, T) and final_noise: (B, N), uniform on [0, 1).
        visible: V.
        present: (B, M) bool; tokens of an absent sequence come last, so they are never visible.
    """
    wanted = (shares * visible).round().long()  # (B, M)
    hidden = token_noise.argsort(dim=2) >= wanted.unsqueeze(-1)
    order = hidden.flatten(1).float()
    if present is not None:
        order = order + 2.0 * (~present).repeat_interleave(hidden.shape[2], dim=1)
    return _ordered(order + final_noise, visible, hidden.shape[2])


def draw_masks(
    batch: int,
    modalities: int,
    num_tokens: int,
    mask_ratio: float,
    device: torch.device | str = "cpu",
    present: Tensor | None = None,
) -> Masks:
    """Draws the masks of one step from torch's global generators.

    Args:
        present: (B, M) bool, None for all. Shares are then drawn over the sequences that a subject has; V follows the
            subject with the fewest, since all subjects of a batch show the same number of tokens.
    """
    if present is None or bool(present.all()):
        visible = num_visible(num_tokens, modalities, mask_ratio)
        shares = draw_shares(batch, modalities, num_tokens / max(visible, 1))
        present = None
    else:
        counts = present.sum(1).tolist()
        if min(counts) == 0:
            raise ZooError("A subject of the batch has no sequence at all.")
        visible = num_visible(num_tokens, min(counts), mask_ratio)
        shares = torch.zeros(batch, modalities)
        for row, count in enumerate(counts):
            shares[row, present[row].cpu()] = draw_shares(1, count, num_tokens / visible)[0]
    token_noise = torch.rand(batch, modalities, num_tokens, device=device)
    final_noise = torch.rand(batch, modalities * num_tokens, device=device)
    given = None if present is None else present.to(device)
    return make_masks(shares.to(device, non_blocking=True), token_noise, final_noise, visible, given)


def masks_from(masked: Tensor) -> Masks:
    """Masks that the user wants: (B, M, T), 1 or True = hidden. Every subject hides the same number of tokens.

    Raises `ZooError` if they do not.
    """
    order = masked.flatten(1).to(torch.float32)
    counts = (order == 0).sum(1)
    if not bool((counts == counts[0]).all()):
        raise ZooError("Masks hide different numbers of tokens in different subjects: give each subject its own call.")
    return _ordered(order, int(counts[0]), masked.shape[2])


def _ordered(order: Tensor, visible: int, num_tokens: int) -> Masks:
    shuffle = order.argsort(dim=1, stable=True)
    return Masks(shuffle[:, :visible], shuffle[:, visible:], shuffle.argsort(dim=1), num_tokens)


def check_mask_ratio(mask_ratio: float, num_tokens: int, modalities: int) -> None:
    """Raises `ZooError` for a ratio that leaves nothing visible or hidden, or that the sampler cannot serve."""
    if not 0 < mask_ratio < 1:
        raise ZooError(f"mask_ratio is a share between 0 and 1, not {mask_ratio}.")
    visible = num_visible(num_tokens, modalities, mask_ratio)
    if visible < 1:
        raise ZooError(f"mask_ratio {mask_ratio} leaves none of {num_tokens * modalities} tokens visible: lower it.")
    for count in range(2, modalities + 1):
        chance = acceptance(count, num_tokens / max(num_visible(num_tokens, count, mask_ratio), 1))
        if chance < 1e-3:
            raise ZooError(
                f"mask_ratio {mask_ratio} is too low: {count} sequences could hardly ever share the visible tokens at "
                "random without one running out. Take 0.2 or more."
            )


def names_in_order(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """`names` in the order of `known`, each once. Raises `ZooError` for none, an unknown or a doubled one."""
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) != len(names):
        raise ZooError(f"Sequences are one or more of {', '.join(known)}, each once; not {', '.join(names) or 'none'}.")
    return [name for name in known if name in names]
