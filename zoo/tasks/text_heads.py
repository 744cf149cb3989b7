"""Heads that fine-tuning puts on a text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClassificationHead(nn.Module):
    """Dropout and one linear layer on the hidden state of [CLS]: logits, or a score if there is one output."""

    def __init__(self, width: int, num_outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(width, num_outputs)
        nn.init.xavier_uniform_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D) to (B, num_outputs)."""
        return self.dense(self.dropout(pooled))


@dataclass(frozen=True)
class SpanOutput:
    """Scores of answer spans. In training `end_logits` follows the gold start, in prediction the beam is filled.

    Attributes:
        start_logits, end_logits: (B, L); end_logits None in prediction.
        answerable_logit: (B,) above 0: no answer.
        start_log_probs, start_index: (B, K) the best starts.
        end_log_probs, end_index: (B, K, K) the best ends of each of them.
    """

    start_logits: Tensor
    answerable_logit: Tensor
    end_logits: Tensor | None = None
    start_log_probs: Tensor | None = None
    start_index: Tensor | None = None
    end_log_probs: Tensor | None = None
    end_index: Tensor | None = None


class SpanHead(nn.Module):
    """ELECTRA's question-answering head: the end of an answer is scored given its start, answerability apart.

    transformers' `ElectraForQuestionAnswering` scores both ends independently and has no answerability.
    """

    def __init__(self, width: int, hidden: int = 512) -> None:
        super().__init__()
        self.start = nn.Linear(width, 1)
        self.end_hidden = nn.Linear(2 * width, hidden)
        self.end = nn.Linear(hidden, 1)
        self.answerable_hidden = nn.Linear(2 * width, hidden)
        self.answerable = nn.Linear(hidden, 1)
        for part in self.children():
            nn.init.xavier_uniform_(part.weight)  # type: ignore[arg-type]
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def forward(
        self, tokens: Tensor, attention_mask: Tensor, types: Tensor, starts: Tensor | None = None, beam: int = 20
    ) -> SpanOutput:
        """Encoder output (B, L, D), with `types` 1 on the passage, to span scores.

        Args:
            starts: (B,) gold starts, for training; None predicts with a beam of `beam` starts.
        """
        # [CLS] may be the answer too: it stands for none.
        allowed = (attention_mask * types).float()
        allowed = torch.cat([torch.ones_like(allowed[:, :1]), allowed[:, 1:]], dim=1)
        penalty = 1000.0 * (allowed - 1)
        start_logits = self.start(tokens).squeeze(-1) + penalty
        summary = torch.einsum("bl,bld->bd", start_logits.softmax(-1), tokens)
        joined = torch.cat([tokens[:, 0], summary], dim=-1)
        answerable = self.answerable(F.gelu(self.answerable_hidden(joined))).squeeze(-1)
        if starts is not None:
            chosen = tokens[torch.arange(len(tokens)), starts]
            return SpanOutput(start_logits, answerable, self._ends(chosen[:, None], tokens)[:, 0] + penalty)
        beam = min(beam, tokens.shape[1])
        start_scores, start_index = start_logits.log_softmax(-1).topk(beam)
        chosen = tokens.gather(1, start_index[..., None].expand(-1, -1, tokens.shape[-1]))
        ends = self._ends(chosen, tokens) + penalty[:, None]
        end_scores, end_index = ends.log_softmax(-1).topk(beam)
        return SpanOutput(start_logits, answerable, None, start_scores, start_index, end_scores, end_index)

    def _ends(self, chosen: Tensor, tokens: Tensor) -> Tensor:
        """Starts (B, K, D) and tokens (B, L, D) to end logits (B, K, L), without building (B, K, L, 2D)."""
        width = tokens.shape[-1]
        first, second = self.end_hidden.weight[:, :width], self.end_hidden.weight[:, width:]
        hidden = F.linear(chosen, first)[:, :, None] + F.linear(tokens, second, self.end_hidden.bias)[:, None]
        return self.end(F.gelu(hidden)).squeeze(-1)


class EndsHead(nn.Module):
    """BERT's question-answering head: two independent logits a token; both ends at [CLS] mean no answer."""

    def __init__(self, width: int, init_std: float = 0.02) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 2)
        nn.init.trunc_normal_(self.dense.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
        nn.init.zeros_(self.dense.bias)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor, types: Tensor, starts: Tensor | None = None, beam: int = 20
    ) -> SpanOutput:
        """Encoder output (B, L, D) to scores of both ends, over all L places as BERT's code has it."""
        start_logits, end_logits = self.dense(tokens).unbind(-1)
        null = start_logits[:, 0] + end_logits[:, 0]
        return SpanOutput(start_logits, null, end_logits)


def span_loss(out: SpanOutput, starts: Tensor, ends: Tensor, impossible: Tensor, weight: float = 0.5) -> Tensor:
    """(B,) (CE of start + CE of end) / 2 + `weight` * BCE of "no answer"; weight 0 leaves the latter out."""
    assert out.end_logits is not None
    spans = F.cross_entropy(out.start_logits, starts, reduction="none")
    spans = spans + F.cross_entropy(out.end_logits, ends, reduction="none")
    if not weight:
        return spans / 2
    answerable = F.binary_cross_entropy_with_logits(out.answerable_logit, impossible.float(), reduction="none")
    return spans / 2 + weight * answerable


def official_head(state: dict[str, Any], task: str, kind: str) -> dict[str, Tensor]:
    """ELECTRA's `task_specific/<task>/...` variables to the keys of `ClassificationHead` or `SpanHead` ("span")."""
    names = {"dense": "dense"}
    if kind == "span":
        names = {
            "dense": "start",
            "qa_hidden": "end_hidden",
            "dense_1": "end",
            "dense_2": "answerable_hidden",
            "dense_3": "answerable",
        }
    found = {}
    for theirs, ours in names.items():
        found[f"{ours}.weight"] = state[f"task_specific/{task}/{theirs}/kernel"].t()
        found[f"{ours}.bias"] = state[f"task_specific/{task}/{theirs}/bias"]
    return found
