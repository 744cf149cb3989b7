"""The chaos game as one Triton kernel: a chain a thread, its point in registers, the whole game in one launch.

The same random numbers as `torch_renderer.TorchRenderer` on tensors, so the same points up to rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from datamodules.fractals.torch_renderer import BURN_IN, MULTIPLIERS, Systems

_FIRST, _SECOND = (tl.constexpr(value) for value in MULTIPLIERS)
BLOCK = 128  # chains of one program


@triton.jit
def _mix(z):
    z = z ^ (z >> 16)
    z = z * _FIRST
    z = z ^ (z >> 15)
    z = z * _SECOND
    return z ^ (z >> 15)


@triton.jit
def _play(
    maps, thresholds, starts, seeds, out,
    MOST: tl.constexpr, TURNS: tl.constexpr, BURN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    fractal = tl.program_id(0)
    lane = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    own = lane < LANES
    seed = tl.load(seeds + fractal)
    low, high = (seed & 0xFFFFFFFF).to(tl.uint32), (seed >> 32).to(tl.uint32)
    x0, y0 = tl.load(starts + 2 * fractal), tl.load(starts + 2 * fractal + 1)
    x = x0 + tl.zeros([WIDTH], tl.float32)
    y = y0 + tl.zeros([WIDTH], tl.float32)
    for turn in range(0, TURNS + BURN):
        restart = (turn == BURN) & (lane == 0)
        x = tl.where(restart, x0, x)
        y = tl.where(restart, y0, y)
        number = _mix(_mix((turn * LANES + lane).to(tl.uint32) ^ low) ^ high).to(tl.int64)
        choice = tl.zeros([WIDTH], tl.int32)
        for k in tl.static_range(MOST - 1):
            choice += (number >= tl.load(thresholds + fractal * (MOST - 1) + k)).to(tl.int32)
        row = maps + (fractal * MOST + choice) * 6
        a, b, e = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        c, d, f = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
        before = x
        x = a * before + b * y + e
        y = c * before + d * y + f
        if turn >= BURN:
            place = (fractal.to(tl.int64) * 2 * TURNS + turn - BURN) * LANES + lane
            tl.store(out + place, x, mask=own)
            tl.store(out + place + TURNS * LANES, y, mask=own)


def chaos_game(systems: Systems, turns: int, chains: int) -> Tensor:
    """(N, 2, turns, chains) float32 points; see `TorchRenderer`."""
    count, most = systems.maps.shape[:2]
    out = torch.empty(count, 2, turns, chains, dtype=torch.float32, device=systems.maps.device)
    parts = [part.contiguous() for part in systems]
    sizes = dict(MOST=most, TURNS=turns, BURN=BURN_IN, LANES=chains, WIDTH=BLOCK)
    with torch.cuda.device_of(out):
        _play[(count, triton.cdiv(chains, BLOCK))](*parts, out, **sizes)
    return out
