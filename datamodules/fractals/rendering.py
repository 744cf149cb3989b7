"""From a system to a picture of its attractor: chaos game, counting, grading (Anderson & Farrell 2022, section 3).

Rows of a rendered picture follow x and columns y, as in the official code.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.fractals.systems import fixed_point, probabilities
from zoo.errors import ZooError
from zoo.extras import imports_of

with imports_of("fractals", why="fractals are rendered with numba"):
    from datamodules.fractals import kernels

Mode = Literal["fast", "exact"]
STAMP_CELLS = np.stack(np.divmod(np.arange(9), 3), axis=1)
"""(9, 2) rows and columns of the 3x3 stamp."""
ONE_CELL = np.array([[1, 1]])


@dataclass(frozen=True)
class Points:
    """Points of an attractor.

    Attributes:
        xy: (steps, 2) float64 from the exact renderer, (2, steps) float32 from the fast one.
        bounds: [x0, y0, x1, y1], float64; NaN where the system blew up.
    """

    xy: np.ndarray
    bounds: np.ndarray

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.bounds[0]))


def draw_choices(system: np.ndarray, steps: int, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
    """(steps,) uint8: the map of each step of the chaos game."""
    choices = np.empty(steps, np.uint8)
    kernels.choose_maps(np.cumsum(probabilities(system)), rng.random(steps), choices)
    return choices


def chaos_game(system: np.ndarray, choices: np.ndarray) -> Points:
    """Follows the chosen maps from the fixed point of map 0, in float64 and in the official order of operations."""
    xy = np.empty((len(choices), 2))
    kernels.follow(system, choices, *fixed_point(system), xy)
    return Points(xy, kernels.bounds(xy))


def fast_chaos_game(system: np.ndarray, steps: int, seed: int, xy: np.ndarray | None = None) -> Points:
    """The same distribution from eight chains in float32.

    Args:
        steps: number of points; a multiple of 8.
        seed: 64 bits.
        xy: (2, steps) float32 to write to; a new array if None.
    """
    if steps < 8 or steps % 8:
        raise ZooError(f"The fast renderer takes its points by eight: {steps} is not a positive multiple of 8.")
    xy = np.empty((2, steps), np.float32) if xy is None else xy
    cumulative = np.cumsum(probabilities(system))[:-1]
    thresholds = np.minimum(np.ceil(cumulative * 2.0**32), 2.0**32).astype(np.uint64)
    maps = system.reshape(len(system), 6).astype(np.float32)
    x, y = fixed_point(system)
    kernels.fast_follow(maps, thresholds, np.float32(x), np.float32(y), np.uint64(seed), xy)
    edges = np.concatenate([xy.min(axis=1), xy.max(axis=1)]).astype(np.float64)
    return Points(xy, edges if np.isfinite(edges).all() else np.full(4, np.nan))


def count_points(points: Points, size: int, region: np.ndarray | None = None) -> np.ndarray:
    """(size + 2, size + 2) int32 points per cell; the outer ring is what falls just outside.

    `region` [x0, y0, x1, y1] is what the picture shows, stretched to a square; None shows all of the attractor.
    """
    if size < 1:
        raise ZooError(f"A picture has at least one pixel a side, not {size}.")
    region = points.bounds if region is None else np.asarray(region, np.float64)
    counter = kernels.count if points.xy.dtype == np.float64 else kernels.fast_count
    return counter(points.xy, region, size)


def render(
    points: Points, size: int, region: np.ndarray | None = None, stamp: np.ndarray = ONE_CELL
) -> tuple[np.ndarray, int]:
    """(size, size) float32 shares of the fullest cell, and how many cells are lit.

    `stamp` (k, 2): cells of the 3x3 neighbourhood that each point marks (rows and columns from 0, centre (1, 1)).
    """
    return kernels.graded(kernels.stamp(count_points(points, size, region), stamp))


def draw_stamp(rng: np.random.Generator, allow_empty: bool = False) -> np.ndarray:
    """Each cell of the 3x3 stamp with probability a half: (k, 2).

    One draw in 512 is empty and would leave the picture blank: it is drawn again unless `allow_empty` (official).
    """
    while True:
        stamp = STAMP_CELLS[rng.integers(0, 2, 9, dtype=np.uint8).astype(bool)]
        if len(stamp) or allow_empty:
            return stamp


class Renderer:
    """Renders systems one after the other into buffers of its own (so: one a thread).

    Args:
        steps: points of each fractal.
        mode: "fast", or "exact" (float64, one chain, the official order of operations).
        stamps: mark a random part of a point's 3x3 neighbourhood instead of its cell.
        allow_empty_stamp: keep the one stamp in 512 that marks nothing (official).
    """

    def __init__(
        self, steps: int = 100_000, mode: Mode = "fast", stamps: bool = True, allow_empty_stamp: bool = False
    ) -> None:
        if mode not in ("fast", "exact"):
            raise ZooError(f"The renderer's mode is 'fast' or 'exact', not {mode!r}.")
        if steps < 8:
            raise ZooError(f"A fractal needs at least 8 points, not {steps}.")
        self.steps, self.mode, self.stamps, self.allow_empty_stamp = steps, mode, stamps, allow_empty_stamp
        self._fast_steps = -(-steps // 8) * 8
        self._xy = np.empty((2, self._fast_steps), np.float32) if mode == "fast" else None

    def points(self, system: np.ndarray, rng: np.random.Generator) -> Points:
        """Points of the attractor; in fast mode they are overwritten by the next call."""
        if self.mode == "exact":
            return chaos_game(system, draw_choices(system, self.steps, rng))
        return fast_chaos_game(system, self._fast_steps, int(rng.integers(0, 2**63)), self._xy)

    def render(
        self, points: Points, size: int, rng: np.random.Generator, region: np.ndarray | None = None
    ) -> tuple[np.ndarray, int]:
        """As `render`, with a stamp drawn here."""
        stamp = draw_stamp(rng, self.allow_empty_stamp) if self.stamps else ONE_CELL
        return render(points, size, region, stamp)


def say_if_compiling() -> None:
    """Prints a line to stderr when the kernels have to be compiled first, so that nobody takes it for a hang."""
    folder = getattr(getattr(kernels.fast_follow, "_cache", None), "cache_path", None)  # numba has no public question
    if kernels.fast_follow.signatures or (folder and any(Path(folder).glob("kernels.fast_follow-*.nbi"))):
        return
    print("Compiling the renderer, once (about ten seconds) ...", file=sys.stderr, flush=True)
