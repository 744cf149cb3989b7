"""Attention with dropout for CPUs, one head at a time.

PyTorch has fused attention with dropout on GPUs only. On a CPU it keeps the whole matrix of probabilities (B, H, L, L),
with and without dropout, and draws a number for each entry: half of the time of the decoder at 2049 tokens. Here the
matrix of one head is worked on in place and made again in the backward pass; what stays is one byte an entry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEVELS = 2**16  # dropout decides by 16 bits, four decisions a draw: 0.1 becomes 0.10001


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:  # type: ignore[override]
        length, dim = q.shape[-2:]
        scale, limit = dim**-0.5, round(dropout * _LEVELS) - _LEVELS // 2
        share = 1 - round(dropout * _LEVELS) / _LEVELS
        keep = torch.empty(*q.shape[:-1], length, dtype=torch.bool)
        norm = q.new_empty(*q.shape[:-1], 1)
        out, scores = torch.empty_like(v), q.new_empty(length, length)
        draws = torch.empty(-(-length * length // 4), dtype=torch.int64)
        for at in torch.cartesian_prod(torch.arange(q.shape[0]), torch.arange(q.shape[1])).tolist():
            at = tuple(at)
            torch.mm(q[at] * scale, k[at].t(), out=scores)
            top = scores.amax(-1, keepdim=True)
            total = scores.sub_(top).exp_().sum(-1, keepdim=True)
            norm[at] = top + total.log()
            draws.random_(-(2**63), 2**63 - 1)
            torch.ge(draws.view(torch.int16)[: length * length].view(length, length), limit, out=keep[at])
            torch.mm(scores.mul_(keep[at]), v[at], out=out[at])
            out[at] /= total * share
        ctx.save_for_backward(q, k, v, out, keep, norm)
        ctx.scale, ctx.share = scale, share
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q, k, v, out, keep, norm = ctx.saved_tensors
        length = q.shape[-2]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        inner = (grad * out).sum(-1, keepdim=True)
        weights, slopes = q.new_empty(length, length), q.new_empty(length, length)
        for at in torch.cartesian_prod(torch.arange(q.shape[0]), torch.arange(q.shape[1])).tolist():
            at = tuple(at)
            given = grad[at] / ctx.share
            torch.mm(q[at] * ctx.scale, k[at].t(), out=weights)
            weights.sub_(norm[at]).exp_()
            torch.mm(given, v[at].t(), out=slopes)
            slopes.mul_(keep[at]).sub_(inner[at]).mul_(weights)
            torch.mm(slopes, k[at] * ctx.scale, out=dq[at])
            torch.mm(slopes.t(), q[at] * ctx.scale, out=dk[at])
            torch.mm(weights.mul_(keep[at]).t(), given, out=dv[at])
        return dq, dk, dv, None


def serves(q: Tensor, dropout: float) -> bool:
    """Whether `dropout_attention` is the one to take for these queries: on a CPU, float32 or 64, dropout above 0."""
    usable = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)
    return usable and 0 < dropout < 1 and not torch.compiler.is_compiling()


def dropout_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d)) with dropout on the probabilities, times v: (B, H, L, d) each, on a CPU."""
    return _DropoutAttention.apply(q.contiguous(), k.contiguous(), v.contiguous(), dropout)
