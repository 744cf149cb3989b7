"""Losses of the main network, in float32, and its scores; the generator's is `zoo.nn.text_mlm.masked_lm_loss`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def replaced_token_loss(logits: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of "was this token replaced?" over every token that is no padding; all are (B, L)."""
    weights = attention_mask.float()
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return (losses * weights).sum() / (weights.sum() + 1e-6)


def electric_logits(scores: Tensor, cloze_logits: Tensor, input_ids: Tensor, mask_prob: float) -> Tensor:
    """Electric's logits of "noise": the network's energy against the noise distribution, (B, L).

    With energy E, noise q and its share p the log-odds are E + log q(token) + log(p / (1 - p)): noise-contrastive
    estimation (Clark et al., EMNLP 2020). No gradient flows into q.

    Args:
        scores: (B, L) the energies; cloze_logits: (B, L, V) of the generator; input_ids: (B, L) what stands there.
    """
    log_q = cloze_logits.detach().float().log_softmax(-1).gather(-1, input_ids.unsqueeze(-1)).squeeze(-1)
    return scores.float() + log_q + torch.logit(torch.tensor(mask_prob, dtype=torch.float32)).to(log_q)


def copy_nll(logits: Tensor, copy_logits: Tensor, input_ids: Tensor, targets: Tensor) -> Tensor:
    """(B, L) negative log-likelihood of all-tokens MLM: with probability D the input token, else the softmax (3.4).

    Args:
        logits: (B, L, V); copy_logits: (B, L), D = sigmoid; input_ids, targets: (B, L).
    """
    predicted = logits.float().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    copied = F.logsigmoid(copy_logits.float())
    mixed = F.logsigmoid(-copy_logits.float()) + predicted
    # Where the token is not the input's, copying cannot give it. (No -inf: its gradient would be no number.)
    return -torch.where(input_ids == targets, torch.logaddexp(copied, mixed), mixed)


@torch.no_grad()
def detection_scores(logits: Tensor, labels: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """Accuracy, precision and recall of the discriminator at probability 0.5, as scalars from 0 to 1."""
    real = attention_mask.bool()
    guess, truth = (logits > 0) & real, labels.bool() & real
    hits = (guess & truth).sum()
    return {
        "disc_acc": ((guess == truth) & real).sum() / real.sum().clamp(min=1),
        "disc_precision": hits / guess.sum().clamp(min=1),
        "disc_recall": hits / truth.sum().clamp(min=1),
    }
