"""The chaos game on a GPU: many fractals at once, one chain a lane, counted by one scatter.

Runs on any device of torch; its logic is tested on the CPU, where the numba renderer is the faster one. One chain is
recorded from its start at the fixed point of map 0, the others leave it by `BURN_IN` unrecorded steps, so what
`Renderer` gives and what this gives have the same distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.fractals.systems import fixed_point, probabilities
from zoo.errors import ZooError

BURN_IN = 128  # steps: with hundreds of chains a start that still shows would show hundreds of times
BORDER = 1  # cells


class TorchRenderer:
    """Renders a batch of systems to shares of the fullest cell, (B, size, size) float32.

    Shape letters: B systems, K maps (padded to the most), L chains, T steps of each chain, P = L T points.

    Args:
        steps: points of each fractal.
        chains: of each fractal that run beside each other; more of them use a GPU better and cost more burn-in.
        device: where to run.
    """

    def __init__(self, steps: int = 100_000, chains: int = 256, device: torch.device | str = "cpu") -> None:
        if steps < 1 or chains < 1:
            raise ZooError(f"There is at least one point and one chain, not {steps} and {chains}.")
        self.chains = min(chains, steps)
        self.turns = -(-steps // self.chains)
        self.steps, self.device = steps, torch.device(device)

    def points(self, systems: Sequence[np.ndarray], generator: torch.Generator | None = None) -> Tensor:
        """(B, 2, P) float32 points of the attractors."""
        maps, edges, xy = self._pack(systems)
        batch, lanes = len(systems), self.chains
        x, y = (xy[:, axis, None].expand(batch, lanes) for axis in (0, 1))
        first = torch.arange(lanes, device=self.device) == 0
        out = torch.empty(batch, 2, self.turns, lanes, device=self.device)
        for turn in range(-BURN_IN, self.turns):
            if turn == 0:
                x, y = (torch.where(first, xy[:, axis, None], now) for axis, now in enumerate((x, y)))
            uniform = torch.rand(batch, lanes, generator=generator, device=self.device)
            choice = torch.searchsorted(edges, uniform, right=True)
            a, b, e, c, d, f = torch.gather(maps, 1, choice[..., None].expand(-1, -1, 6)).unbind(-1)
            x, y = a * x + b * y + e, c * x + d * y + f
            if turn >= 0:
                out[:, 0, turn], out[:, 1, turn] = x, y
        return out.flatten(2)[:, :, : self.steps]

    def counts(self, points: Tensor, size: int, region: Tensor | None = None) -> Tensor:
        """(B, size + 2, size + 2) points a cell, int64, with a border of one cell.

        `region` (B, 4) [x0, y0, x1, y1] is what is shown; None shows all of each attractor.
        """
        if size < 1:
            raise ZooError(f"A picture has at least one pixel a side, not {size}.")
        if region is None:
            region = torch.cat([points.amin(dim=2), points.amax(dim=2)], dim=1)
        span = region[:, 2:] - region[:, :2]
        scale = (size - 1) / torch.where(span > 0, span, 1.0)
        cells = (points - region[:, :2, None]) * scale[..., None]
        inside = ((cells > -2) & (cells < size + 1)).all(dim=1)
        # Truncation toward zero, as in the official code.
        row, column = (cells[:, axis].nan_to_num(0).clamp(-2, size + 1).trunc().long() + BORDER for axis in (0, 1))
        side, batch = size + 2, len(points)
        nowhere = side * side
        index = torch.where(inside, row * side + column, nowhere)
        grid = torch.zeros(batch, nowhere + 1, dtype=torch.long, device=points.device)
        grid.scatter_add_(1, index, torch.ones_like(index))
        return grid[:, :nowhere].view(batch, side, side)

    def render(
        self,
        systems: Sequence[np.ndarray],
        size: int,
        stamps: Tensor | None = None,
        region: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, size, size) shares of the fullest cell; a blank or unbounded fractal is zero throughout.

        `stamps` (B, 3, 3) of 0 and 1: cells around a point that it marks, too.
        """
        grid = self.counts(self.points(systems, generator), size, region).float()
        if stamps is None:
            counts = grid[:, BORDER:-BORDER, BORDER:-BORDER]
        else:
            # Each picture has its own stamp: a grouped correlation with the stamp turned around.
            kernel = stamps.to(grid).flip(1, 2)[:, None]
            counts = torch.nn.functional.conv2d(grid[None], kernel, groups=len(grid))[0]
        return counts / counts.amax(dim=(1, 2), keepdim=True).clamp(min=1)

    def _pack(self, systems: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, K, 6), upper edges of their probabilities (B, K - 1) and starting points (B, 2)."""
        most = max(len(system) for system in systems)
        maps = np.zeros((len(systems), most, 6), np.float32)
        edges = np.full((len(systems), max(most - 1, 1)), 2.0, np.float32)
        starts = np.array([fixed_point(system) for system in systems], np.float32)
        for row, system in enumerate(systems):
            maps[row, : len(system)] = system.reshape(len(system), 6)
            edges[row, : len(system) - 1] = np.cumsum(probabilities(system))[:-1]
        return tuple(torch.from_numpy(array).to(self.device) for array in (maps, edges, starts))  # type: ignore[return-value]
