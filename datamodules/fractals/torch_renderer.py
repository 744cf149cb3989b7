"""The chaos game on tensors: many fractals at once, on whatever device they are.

Each fractal runs `CHAINS` chains beside each other. Random number t of chain l of a fractal is a hash of its seed, t
and l: nothing is drawn in turn, so a fractal is the same alone or among others, on any device up to rounding. One chain
is recorded from its start at the fixed point of map 0, the others leave it by `BURN_IN` unrecorded steps, so what
`Renderer` gives and what this gives have the same distribution. On a GPU Triton kernels play the game and count
(`triton_chaos`): the loop below would spend its time there on starting kernels.

Shape letters: N fractals, K maps (padded to the most), L chains, T steps of each chain, P points.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.fractals.systems import fixed_point, probabilities
from zoo.errors import ZooError

BURN_IN = 128  # steps: with hundreds of chains a start that still shows would show hundreds of times
CHAINS = 256
BORDER = 1  # cells
Region = Callable[[Tensor], Tensor]
MULTIPLIERS = 0x21F0AAAD, 0x735A2D97  # below 2**31: products of 32-bit numbers stay within an int64
LOW, GOLDEN = 0xFFFFFFFF, 0x9E3779B9


class Systems(NamedTuple):
    """Systems ready for the game. Arrays of numpy on the host, tensors on the device.

    Attributes:
        maps: (N, K, 6) float32 rows [a b e c d f].
        thresholds: (N, K - 1) int64 cumulative probabilities in units of 2**-32; 2**32 where there is no further map.
        starts: (N, 2) float32 fixed points of map 0.
        seeds: (N,) int64 of the random numbers.
    """

    maps: Tensor
    thresholds: Tensor
    starts: Tensor
    seeds: Tensor


def pack_systems(systems: Sequence[np.ndarray], seeds: Sequence[int], most: int | None = None) -> Systems:
    """Arrays for `Systems`, padded to `most` maps."""
    most = max(most or 2, *(len(system) for system in systems)) if len(systems) else most or 2
    maps = np.zeros((len(systems), most, 6), np.float32)
    thresholds = np.full((len(systems), most - 1), 2**32, np.int64)
    for row, system in enumerate(systems):
        maps[row, : len(system)] = system.reshape(len(system), 6)
        cumulative = np.cumsum(probabilities(system))[:-1]
        thresholds[row, : len(system) - 1] = np.minimum(np.ceil(cumulative * 2.0**32), 2**32)
    starts = np.array([fixed_point(system) for system in systems], np.float32).reshape(-1, 2)
    return Systems(maps, thresholds, starts, np.array(seeds, np.int64))  # type: ignore[arg-type]


def mix(numbers: Tensor) -> Tensor:
    """Scrambles 32-bit numbers (held in int64), in place: neighbours have nothing in common afterwards."""
    numbers ^= numbers >> 16
    numbers *= MULTIPLIERS[0]
    numbers &= LOW
    numbers ^= numbers >> 15
    numbers *= MULTIPLIERS[1]
    numbers &= LOW
    numbers ^= numbers >> 15
    return numbers


def keys_of(seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Two keys of 32 bits of each seed; other seeds, neighbours too, have others."""
    low, high = seeds & LOW, seeds >> 32
    return mix(low + GOLDEN & LOW), mix(mix(high + GOLDEN & LOW) ^ low)


def random_numbers(seeds: Tensor, count: int) -> Tensor:
    """(N, count) numbers of 32 bits, int64: number k of a seed is a hash of both."""
    first, second = keys_of(seeds)
    numbers = mix(torch.arange(count, device=seeds.device) ^ first[:, None])
    numbers ^= second[:, None]
    return mix(numbers)


class TorchRenderer:
    """Renders systems to shares of the fullest cell, (N, size, size) float32, on the device where they are.

    Args:
        steps: points of each fractal.
        chains: of each fractal that run beside each other. Other numbers of them give other points.
    """

    def __init__(self, steps: int = 100_000, chains: int = CHAINS) -> None:
        if steps < 1 or chains < 1:
            raise ZooError(f"There is at least one point and one chain, not {steps} and {chains}.")
        self.chains = min(chains, steps)
        self.turns = -(-steps // self.chains)
        self.steps, self.use_triton = steps, True

    def points(self, systems: Systems) -> Tensor:
        """(N, 2, P) float32 points of the attractors."""
        return self._game(systems).flatten(2)[:, :, : self.steps]

    def _game(self, systems: Systems) -> Tensor:
        """(N, 2, T, L) points, step by step."""
        maps, thresholds, starts, seeds = systems
        count, most, lanes = len(maps), maps.shape[1], self.chains
        turns = self.turns + BURN_IN
        choice = torch.searchsorted(thresholds, random_numbers(seeds, turns * lanes), right=True)
        choice += torch.arange(count, device=maps.device)[:, None] * most
        rows = choice.view(count, turns, lanes).transpose(0, 1).contiguous().view(turns, -1)
        flat = maps.view(-1, 6)
        x, y = (starts[:, axis, None].expand(count, lanes).reshape(-1) for axis in (0, 1))
        first = (torch.arange(lanes, device=maps.device) == 0).repeat(count)
        origin = x, y
        out = torch.empty(self.turns, 2, count * lanes, dtype=torch.float32, device=maps.device)
        for turn in range(turns):
            if turn == BURN_IN:
                x, y = (torch.where(first, start, now) for start, now in zip(origin, (x, y), strict=True))
            a, b, e, c, d, f = flat[rows[turn]].unbind(-1)
            x, y = a * x + b * y + e, c * x + d * y + f
            if turn >= BURN_IN:
                out[turn - BURN_IN, 0], out[turn - BURN_IN, 1] = x, y
        return out.view(self.turns, 2, count, lanes).permute(2, 1, 0, 3).contiguous()

    def counts(self, systems: Systems, size: int, show: Region | None = None) -> tuple[Tensor, Tensor]:
        """(N, size + 2, size + 2) points a cell with a border of one cell, int32, and whether all points are finite.

        `show` gives the region (N, 4) [x0, y0, x1, y1] that is shown of the attractors' boxes (N, 4); None shows all.
        """
        if size < 1:
            raise ZooError(f"A picture has at least one pixel a side, not {size}.")
        show = show or (lambda box: box)
        kernels = self._kernels(systems.maps.device)
        if kernels is not None:
            game = self.steps, self.turns, self.chains
            try:
                box, finite = kernels.bounds(systems, *game)
                return kernels.count(systems, *_cells(show(box), size), size, *game), finite
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever Triton has against this GPU
                self.use_triton = False
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                warnings.warn(f"Triton cannot play the chaos game here ({reason}): tensors do, slowly.", stacklevel=2)
        points = self.points(systems)
        box = torch.cat([points.amin(dim=2), points.amax(dim=2)], dim=1)
        return count_points(points, size, show(box)), box.isfinite().all(dim=1)

    def _kernels(self, device: torch.device) -> Any:
        """Triton's kernels; None where tensors have to do."""
        if device.type != "cuda" or not self.use_triton or not find_spec("triton"):  # part of PyTorch for Linux
            return None
        from datamodules.fractals import triton_chaos

        return triton_chaos

    def render(
        self, systems: Systems, size: int, stamps: Tensor | None = None, show: Region | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, size, size) shares of the fullest cell, whether all points are finite, and whether any cell is lit.

        `stamps` (N, 9) of 0 and 1: cells around a point that it marks, too; None marks its own. `show` as in `counts`.
        """
        grid, finite = self.counts(systems, size, show)
        counts = stamp_grid(grid, stamps) if stamps is not None else grid[:, BORDER:-BORDER, BORDER:-BORDER]
        largest = counts.amax(dim=(1, 2))
        return counts.float() / largest.clamp(min=1).float()[:, None, None], finite, largest > 0


def moved_region(box: Tensor, shift: Tensor, sides: Tensor) -> Tensor:
    """(N, 4) region whose centre lies `shift` (N, 2) off that of a box, `sides` (N, 2) as wide; in sides of the box."""
    extent, centre = box[:, 2:] - box[:, :2], (box[:, 2:] + box[:, :2]) / 2
    centre, half = centre + extent * shift, extent * sides / 2
    return torch.cat([centre - half, centre + half], dim=1)


def _cells(region: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, 2) where a region begins and how many cells a unit has."""
    span = region[:, 2:] - region[:, :2]
    # Not a number divided by a tensor, which is a reciprocal: it would put the farthest point one cell short.
    return region[:, :2], torch.full_like(span, size - 1) / torch.where(span > 0, span, 1.0)


def count_points(points: Tensor, size: int, region: Tensor) -> Tensor:
    """(N, size + 2, size + 2) points a cell, int32, with a border of one cell.

    Rows follow x, columns y, truncated toward zero as in the official code. `region` (N, 4) [x0, y0, x1, y1] is what is
    shown, stretched to the square.
    """
    corners, scales = _cells(region, size)
    cells = (points - corners[..., None]).mul_(scales[..., None])
    inside = ((cells > -2) & (cells < size + 1)).all(dim=1)
    # What is nowhere, NaN as well, gets one cell of its own for all.
    cells = torch.where(inside[:, None], cells, 0.0).int().add_(BORDER)
    side, count = size + 2, len(points)
    index = (cells[:, 0] * side).add_(cells[:, 1]).long()
    index += torch.arange(count, device=points.device)[:, None] * (side * side)
    index = torch.where(inside, index, count * side * side).view(-1)
    # Sums of integers: the same in any order. One dimension, which has no need of a slow deterministic way.
    grid = torch.zeros(count * side * side + 1, dtype=torch.int32, device=points.device)
    grid.scatter_add_(0, index, torch.ones_like(index, dtype=torch.int32))
    return grid[:-1].view(count, side, side)


def stamp_grid(grid: Tensor, stamps: Tensor) -> Tensor:
    """(N, size + 2, size + 2) counts to (N, size, size) counts of stamps: each point marks the cells of its 3x3 stamp.

    `stamps` (N, 9) of 0 and 1. In integers: a GPU's convolution may round to ten bits.
    """
    size = grid.shape[1] - 2
    marks = stamps.to(grid.dtype)[:, :, None, None]
    out = torch.zeros_like(grid[:, :size, :size])
    for place in range(9):
        row, column = 2 - place // 3, 2 - place % 3
        out += marks[:, place] * grid[:, row : row + size, column : column + size]
    return out
