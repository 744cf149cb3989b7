"""Compiled loops for jitter, grey and blur on a CPU (numba); `multicrop.apply_draws` uses them where it can."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from datamodules.faces.multicrop import ORDERS, TAPS

_ORDERS = np.array(ORDERS, dtype=np.int64)


def apply_draws(crops: Tensor, draws: Tensor) -> Tensor:
    """See `multicrop.apply_draws`; crops are (N, 3, s, s) uint8 on the CPU."""
    source, given = crops.contiguous().numpy(), draws.numpy().astype(np.float32)
    out = np.empty_like(source)
    side = source.shape[-1]
    work = np.empty((3, side, side), dtype=np.float32)
    spare = np.empty((side + 2 * (TAPS // 2), side + 2 * (TAPS // 2)), dtype=np.float32)
    _apply(source, given, _ORDERS, work, spare, out)
    return torch.from_numpy(out)


@njit(cache=True, fastmath=True, nogil=True)
def _apply(source, draws, orders, work, spare, out):
    count, _, side, _ = source.shape
    for n in range(count):
        d = draws[n]
        red, green, blue = work[0].reshape(-1), work[1].reshape(-1), work[2].reshape(-1)
        for c in range(3):
            flat, plane = source[n, c].reshape(-1), work[c].reshape(-1)
            for i in range(side * side):
                plane[i] = np.float32(flat[i])
        if d[0] > 0:
            order = orders[np.int64(d[5])]
            for turn in range(4):
                column = order[turn]
                if column == 1:
                    _brighter(red, green, blue, d[1])
                elif column == 2:
                    _contrast(red, green, blue, d[2])
                elif column == 3:
                    _saturate(red, green, blue, d[3])
                else:
                    _turn_hue(red, green, blue, d[4])
        if d[6] > 0:
            for i in range(side * side):
                grey = np.float32(0.299) * red[i] + np.float32(0.587) * green[i] + np.float32(0.114) * blue[i]
                red[i] = grey
                green[i] = grey
                blue[i] = grey
        if d[7] > 0:
            # Of a grey picture all planes are the same.
            planes = 1 if d[6] > 0 else 3
            for c in range(planes):
                _blur(work[c], spare, d[8])
            for c in range(planes, 3):
                work[c] = work[0]
        for c in range(3):
            plane, flat = work[c].reshape(-1), out[n, c].reshape(-1)
            for i in range(side * side):
                flat[i] = np.uint8(min(max(plane[i], np.float32(0)), np.float32(255)) + np.float32(0.5))


@njit(cache=True, fastmath=True, nogil=True, inline="always")
def _clip(x):
    return min(max(x, np.float32(0)), np.float32(255))


@njit(cache=True, fastmath=True, nogil=True)
def _brighter(red, green, blue, factor):
    for i in range(red.size):
        red[i] = _clip(red[i] * factor)
        green[i] = _clip(green[i] * factor)
        blue[i] = _clip(blue[i] * factor)


@njit(cache=True, fastmath=True, nogil=True)
def _contrast(red, green, blue, factor):
    total = np.float32(0)
    for i in range(red.size):
        total += np.float32(0.299) * red[i] + np.float32(0.587) * green[i] + np.float32(0.114) * blue[i]
    rest = (total / np.float32(red.size)) * (np.float32(1) - factor)
    for i in range(red.size):
        red[i] = _clip(rest + red[i] * factor)
        green[i] = _clip(rest + green[i] * factor)
        blue[i] = _clip(rest + blue[i] * factor)


@njit(cache=True, fastmath=True, nogil=True)
def _saturate(red, green, blue, factor):
    for i in range(red.size):
        grey = np.float32(0.299) * red[i] + np.float32(0.587) * green[i] + np.float32(0.114) * blue[i]
        rest = grey * (np.float32(1) - factor)
        red[i] = _clip(rest + red[i] * factor)
        green[i] = _clip(rest + green[i] * factor)
        blue[i] = _clip(rest + blue[i] * factor)


@njit(cache=True, fastmath=True, nogil=True)
def _turn_hue(red, green, blue, turns):
    shift = np.float32(6) * turns + np.float32(12)  # keeps what is cut to whole turns above zero
    one, four, six, sixth = np.float32(1), np.float32(4), np.float32(6), np.float32(1 / 6)
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        value = max(r, max(g, b))
        chroma = value - min(r, min(g, b))
        inverse = one / max(chroma, np.float32(1e-6))
        hue = (r - g) * inverse + four
        hue = (b - r) * inverse + np.float32(2) if value == g else hue
        hue = (g - b) * inverse if value == r else hue
        hue += shift
        k = hue + np.float32(5)
        k -= six * np.float32(np.int32(k * sixth))
        red[i] = value - chroma * min(max(min(k, four - k), np.float32(0)), one)
        k = hue + np.float32(3)
        k -= six * np.float32(np.int32(k * sixth))
        green[i] = value - chroma * min(max(min(k, four - k), np.float32(0)), one)
        k = hue + one
        k -= six * np.float32(np.int32(k * sixth))
        blue[i] = value - chroma * min(max(min(k, four - k), np.float32(0)), one)


@njit(cache=True, fastmath=True, nogil=True)
def _blur(plane, spare, sigma):
    """In place; weights beyond 4 sigma (3e-4 of the largest) are left out."""
    side = plane.shape[0]
    reach = min(min(11, int(np.ceil(4 * sigma))), side - 1)
    taps = np.empty(2 * reach + 1, dtype=np.float32)
    total = np.float32(0)
    for k in range(2 * reach + 1):
        x = np.float32(k - reach) / sigma
        taps[k] = np.exp(np.float32(-0.5) * x * x)
        total += taps[k]
    for k in range(2 * reach + 1):
        taps[k] /= total
    for y in range(side):  # along the rows, into the spare
        row, into = plane[y], spare[reach + y]
        for x in range(side):
            into[x] = taps[reach] * row[x]
        for k in range(1, reach + 1):
            weight = taps[reach + k]
            for x in range(k, side - k):
                into[x] += weight * (row[x - k] + row[x + k])
            for x in range(min(k, side)):
                right = x + k if x + k < side else 2 * side - 2 - x - k
                into[x] += weight * (row[k - x] + row[right])
            for x in range(max(side - k, k), side):
                into[x] += weight * (row[x - k] + row[2 * side - 2 - x - k])
    for k in range(1, reach + 1):  # mirrored above and below
        spare[reach - k, :side] = spare[reach + k, :side]
        spare[reach + side - 1 + k, :side] = spare[reach + side - 1 - k, :side]
    for y in range(side):
        row, middle = plane[y], spare[reach + y]
        for x in range(side):
            row[x] = taps[reach] * middle[x]
        for k in range(1, reach + 1):
            weight = taps[reach + k]
            above, below = spare[reach + y - k], spare[reach + y + k]
            for x in range(side):
                row[x] += weight * (above[x] + below[x])
