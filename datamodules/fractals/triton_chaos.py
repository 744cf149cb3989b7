"""The chaos game in Triton: a chain a thread, its point in registers, no point ever in memory.

Random numbers are counted, not drawn in turn, so the game can be played twice: once for the box, once for the counts.
What is left to do is one atomic addition a point. The same points as `torch_renderer.TorchRenderer` has on tensors, up
to rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from datamodules.fractals.torch_renderer import BORDER, BURN_IN, GOLDEN, MULTIPLIERS, Systems

_FIRST, _SECOND, _GOLDEN = (tl.constexpr(value) for value in (*MULTIPLIERS, GOLDEN))
BLOCK = 128  # chains of one program


@triton.jit
def _mix(z):
    z = z ^ (z >> 16)
    z = z * _FIRST
    z = z ^ (z >> 15)
    z = z * _SECOND
    return z ^ (z >> 15)


@triton.jit
def _keys(seed):
    low, high = (seed & 0xFFFFFFFF).to(tl.uint32), (seed >> 32).to(tl.uint32)
    return _mix(low + _GOLDEN), _mix(_mix(high + _GOLDEN) ^ low)


@triton.jit
def _next(maps, thresholds, first, second, fractal, number, x, y, MOST: tl.constexpr):
    """Where random number `number` of the fractal sends (x, y)."""
    mixed = _mix(_mix(number.to(tl.uint32) ^ first) ^ second).to(tl.int64)
    choice = tl.zeros_like(number)
    for k in tl.static_range(MOST - 1):
        choice += (mixed >= tl.load(thresholds + fractal * (MOST - 1) + k)).to(tl.int32)
    row = maps + (fractal * MOST + choice) * 6
    a, b, e = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    c, d, f = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    return a * x + b * y + e, c * x + d * y + f


@triton.jit
def _bounds(
    maps, thresholds, starts, seeds, out,
    MOST: tl.constexpr, TURNS: tl.constexpr, BURN: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Of the chains of one program: smallest and largest x and y, and a sum that is finite if all points are."""
    fractal, part = tl.program_id(0), tl.program_id(1)
    lane = part * WIDTH + tl.arange(0, WIDTH)
    first, second = _keys(tl.load(seeds + fractal))
    x0, y0 = tl.load(starts + 2 * fractal), tl.load(starts + 2 * fractal + 1)
    x, y = x0 + tl.zeros([WIDTH], tl.float32), y0 + tl.zeros([WIDTH], tl.float32)
    left, right = tl.full([WIDTH], float("inf"), tl.float32), tl.full([WIDTH], float("-inf"), tl.float32)
    top, bottom, total = left, right, tl.zeros([WIDTH], tl.float32)
    for turn in range(0, TURNS + BURN):
        restart = (turn == BURN) & (lane == 0)
        x, y = tl.where(restart, x0, x), tl.where(restart, y0, y)
        x, y = _next(maps, thresholds, first, second, fractal, turn * LANES + lane, x, y, MOST)
        counted = (turn >= BURN) & (lane < LANES) & ((turn - BURN) * LANES + lane < STEPS)
        left, right = tl.where(counted, tl.minimum(left, x), left), tl.where(counted, tl.maximum(right, x), right)
        top, bottom = tl.where(counted, tl.minimum(top, y), top), tl.where(counted, tl.maximum(bottom, y), bottom)
        total += tl.where(counted, x + y, 0.0)
    place = out + (fractal * tl.num_programs(1) + part) * 5
    tl.store(place, tl.min(left, axis=0))
    tl.store(place + 1, tl.min(top, axis=0))
    tl.store(place + 2, tl.max(right, axis=0))
    tl.store(place + 3, tl.max(bottom, axis=0))
    tl.store(place + 4, tl.sum(total, axis=0))


@triton.jit
def _count(
    maps, thresholds, starts, seeds, corners, scales, grid, size,
    MOST: tl.constexpr, TURNS: tl.constexpr, BURN: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
    WIDTH: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Adds every point of the chains of one program to its cell; see `torch_renderer.count_points`."""
    fractal = tl.program_id(0)
    lane = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    first, second = _keys(tl.load(seeds + fractal))
    x0, y0 = tl.load(starts + 2 * fractal), tl.load(starts + 2 * fractal + 1)
    x, y = x0 + tl.zeros([WIDTH], tl.float32), y0 + tl.zeros([WIDTH], tl.float32)
    left, top = tl.load(corners + 2 * fractal), tl.load(corners + 2 * fractal + 1)
    across, down = tl.load(scales + 2 * fractal), tl.load(scales + 2 * fractal + 1)
    side = size + 2 * EDGE
    own = grid + fractal * side * side
    for turn in range(0, TURNS + BURN):
        restart = (turn == BURN) & (lane == 0)
        x, y = tl.where(restart, x0, x), tl.where(restart, y0, y)
        x, y = _next(maps, thresholds, first, second, fractal, turn * LANES + lane, x, y, MOST)
        counted = (turn >= BURN) & (lane < LANES) & ((turn - BURN) * LANES + lane < STEPS)
        row, column = (x - left) * across, (y - top) * down
        inside = counted & (row > -2) & (row < size + 1) & (column > -2) & (column < size + 1)
        row, column = tl.where(inside, row, 0.0).to(tl.int32), tl.where(inside, column, 0.0).to(tl.int32)
        tl.atomic_add(own + (row + EDGE) * side + column + EDGE, 1, mask=inside, sem="relaxed")


def bounds(systems: Systems, steps: int, turns: int, chains: int) -> tuple[Tensor, Tensor]:
    """(N, 4) boxes [x0, y0, x1, y1] of the attractors, and (N,) whether all points are finite."""
    programs = triton.cdiv(chains, BLOCK)
    out = torch.empty(len(systems.maps), programs, 5, dtype=torch.float32, device=systems.maps.device)
    _launch(_bounds, systems, (out,), steps, turns, chains)
    box = torch.cat([out[:, :, :2].amin(dim=1), out[:, :, 2:4].amax(dim=1)], dim=1)
    return box, out[:, :, 4].isfinite().all(dim=1)


def count(systems: Systems, corners: Tensor, scales: Tensor, size: int, steps: int, turns: int, chains: int) -> Tensor:
    """(N, size + 2, size + 2) points a cell, int32; (N, 2) where the shown region begins and cells per unit."""
    side = size + 2 * BORDER
    grid = torch.zeros(len(systems.maps), side, side, dtype=torch.int32, device=systems.maps.device)
    regions = corners.contiguous(), scales.contiguous()
    _launch(_count, systems, (*regions, grid, size), steps, turns, chains, EDGE=BORDER)
    return grid


def _launch(kernel, systems: Systems, arguments: tuple, steps: int, turns: int, chains: int, **more: int) -> None:
    sizes = dict(MOST=systems.maps.shape[1], TURNS=turns, BURN=BURN_IN, LANES=chains, STEPS=steps, WIDTH=BLOCK)
    with torch.cuda.device_of(systems.maps):
        kernel[(len(systems.maps), triton.cdiv(chains, BLOCK))](
            *(part.contiguous() for part in systems), *arguments, **sizes, **more
        )
