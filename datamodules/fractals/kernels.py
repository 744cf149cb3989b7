"""The loops that have to be fast, compiled by numba: chaos game, counting, diamond-square, pasting.

Two kinds. The *exact* ones keep the order of float64 operations of the official code, so that the same map choices
give the same counts to the last point. The *fast* ones run eight chains beside each other (a processor waits for one
chain but not for eight), in float32, on their own xorshift numbers; they give the same distribution.

Compiled code is kept on disk between runs. The module is imported only where something is rendered, since numba is an
extra; `rendering.say_if_compiling` says so when the first call has to compile.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_BLOCK = 8192  # points whose cells are computed before they are counted
BORDER = 1  # cells around a count grid: a stamp may reach in from just outside
_U64 = np.uint64

# ---------------------------------------------------------------------- exact


@njit(cache=True)
def choose_maps(cumulative, uniforms, out):
    """Map of each step: the first k with uniform < cumulative[k]; the last one if rounding leaves none."""
    last = len(cumulative) - 1
    for i in range(len(uniforms)):
        uniform, k = uniforms[i], 0
        for j in range(last):
            k += uniform >= cumulative[j]
        out[i] = k


@njit(cache=True)
def follow(system, choices, x, y, points):
    """Applies the chosen maps one after the other from (x, y); (steps, 2) new points."""
    for i in range(len(choices)):
        k = choices[i]
        before = x
        x = system[k, 0, 0] * before + system[k, 0, 1] * y + system[k, 0, 2]
        y = system[k, 1, 0] * before + system[k, 1, 1] * y + system[k, 1, 2]
        points[i, 0] = x
        points[i, 1] = y


@njit(cache=True)
def bounds(points):
    """Smallest and largest x and y of (steps, 2): [x0, y0, x1, y1]; NaN if a point is not finite."""
    x0 = y0 = np.inf
    x1 = y1 = -np.inf
    total = 0.0
    for i in range(len(points)):
        x, y = points[i, 0], points[i, 1]
        total += x + y
        x0, x1 = min(x, x0), max(x, x1)
        y0, y1 = min(y, y0), max(y, y1)
    if not np.isfinite(total):
        return np.full(4, np.nan)
    return np.array([x0, y0, x1, y1])


@njit(cache=True)
def count(points, region, size):
    """Points per cell, (size + 2, size + 2) with a border of one cell. Rows follow x, columns y.

    Truncation is toward zero, so what lies up to one cell before the region's low edge counts as the edge's own cell;
    the border's low side begins one cell further out.
    """
    side = size + 2
    nowhere = side * side  # one more cell for what lies outside: a zoomed picture would make every branch a guess
    cells = np.zeros(nowhere + 1, np.int32)
    x_span, y_span = region[2] - region[0], region[3] - region[1]
    x_scale = (size - 1) / (x_span if x_span > 0 else 1.0)
    y_scale = (size - 1) / (y_span if y_span > 0 else 1.0)
    top = size + 1.0
    for i in range(len(points)):
        x = (points[i, 0] - region[0]) * x_scale
        y = (points[i, 1] - region[1]) * y_scale
        inside = int((x > -2.0) & (x < top) & (y > -2.0) & (y < top))
        cells[nowhere + inside * ((int(x) + 1) * side + int(y) + 1 - nowhere)] += 1
    return cells[:nowhere].reshape(side, side)


# ---------------------------------------------------------------------- fast


@njit(cache=True, inline="always")
def _scramble(z):
    """splitmix64's finaliser: neighbouring seeds to unrelated states."""
    z = (z ^ (z >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U64(27))) * _U64(0x94D049BB133111EB)
    return z ^ (z >> _U64(31))


@njit(cache=True, inline="always")
def _next(state):
    """xorshift64."""
    state ^= state << _U64(13)
    state ^= state >> _U64(7)
    return state ^ (state << _U64(17))


@njit(cache=True, inline="always")
def _pick(number, thresholds, last):
    k = 0
    for j in range(last):
        k += number >= thresholds[j]
    return k


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def fast_follow(maps, thresholds, x, y, seed, points):
    """Eight chains from (x, y): fills `points` (2, steps), steps a multiple of 8.

    Args:
        maps: (n, 6) float32, rows of [a b e c d f].
        thresholds: (n - 1,) uint64, cumulative probabilities in units of 2**-32.
        x, y: a point of the attractor, float32. The first chain starts there, as the only one of the exact renderer;
            the others have left it by 16 steps that are not recorded. (A start that is seldom visited, the fixed point
            of a nearly flat map, would show eight times over; without any chain from there the box would be smaller.)
        seed: uint64.
    """
    last, low = len(maps) - 1, _U64(0xFFFFFFFF)
    s0 = _scramble(seed + _U64(0x9E3779B97F4A7C15)) | _U64(1)
    s1 = _scramble(seed + _U64(0x3C6EF372FE94F82A)) | _U64(1)
    s2 = _scramble(seed + _U64(0xDAA66D2C7DDF743F)) | _U64(1)
    s3 = _scramble(seed + _U64(0x78DDE6E5FD29F054)) | _U64(1)
    xa = xb = xc = xd = xe = xf = xg = xh = x
    ya = yb = yc = yd = ye = yf = yg = yh = y
    across, down = points[0], points[1]
    for turn in range(points.shape[1] // 8 + 16):
        if turn == 16:
            xa, ya = x, y
        s0, s1, s2, s3 = _next(s0), _next(s1), _next(s2), _next(s3)
        k = _pick(s0 >> _U64(32), thresholds, last)
        xa, ya = maps[k, 0] * xa + maps[k, 1] * ya + maps[k, 2], maps[k, 3] * xa + maps[k, 4] * ya + maps[k, 5]
        k = _pick(s0 & low, thresholds, last)
        xb, yb = maps[k, 0] * xb + maps[k, 1] * yb + maps[k, 2], maps[k, 3] * xb + maps[k, 4] * yb + maps[k, 5]
        k = _pick(s1 >> _U64(32), thresholds, last)
        xc, yc = maps[k, 0] * xc + maps[k, 1] * yc + maps[k, 2], maps[k, 3] * xc + maps[k, 4] * yc + maps[k, 5]
        k = _pick(s1 & low, thresholds, last)
        xd, yd = maps[k, 0] * xd + maps[k, 1] * yd + maps[k, 2], maps[k, 3] * xd + maps[k, 4] * yd + maps[k, 5]
        k = _pick(s2 >> _U64(32), thresholds, last)
        xe, ye = maps[k, 0] * xe + maps[k, 1] * ye + maps[k, 2], maps[k, 3] * xe + maps[k, 4] * ye + maps[k, 5]
        k = _pick(s2 & low, thresholds, last)
        xf, yf = maps[k, 0] * xf + maps[k, 1] * yf + maps[k, 2], maps[k, 3] * xf + maps[k, 4] * yf + maps[k, 5]
        k = _pick(s3 >> _U64(32), thresholds, last)
        xg, yg = maps[k, 0] * xg + maps[k, 1] * yg + maps[k, 2], maps[k, 3] * xg + maps[k, 4] * yg + maps[k, 5]
        k = _pick(s3 & low, thresholds, last)
        xh, yh = maps[k, 0] * xh + maps[k, 1] * yh + maps[k, 2], maps[k, 3] * xh + maps[k, 4] * yh + maps[k, 5]
        if turn >= 16:
            start = (turn - 16) * 8
            across[start], down[start] = xa, ya
            across[start + 1], down[start + 1] = xb, yb
            across[start + 2], down[start + 2] = xc, yc
            across[start + 3], down[start + 3] = xd, yd
            across[start + 4], down[start + 4] = xe, ye
            across[start + 5], down[start + 5] = xf, yf
            across[start + 6], down[start + 6] = xg, yg
            across[start + 7], down[start + 7] = xh, yh


@njit(cache=True, fastmath={"contract", "nsz", "arcp"})
def _cells(across, down, x0, y0, x_scale, y_scale, size, out):
    """Number of each point's cell; apart from the counting, so that a processor computes many of them at once."""
    side = np.int32(size + 2)
    nowhere = side * side
    low, top = np.float32(-2), np.float32(size + 1)
    for i in range(len(out)):
        x = (across[i] - x0) * x_scale
        y = (down[i] - y0) * y_scale
        inside = (x > low) & (x < top) & (y > low) & (y < top)
        cell = (np.int32(x) + np.int32(1)) * side + np.int32(y) + np.int32(1)
        out[i] = cell if inside else nowhere


@njit(cache=True)
def fast_count(points, region, size):
    """As `count`, over float32 points (2, steps)."""
    side, steps = size + 2, points.shape[1]
    cells = np.zeros(side * side + 1, np.int32)
    x_span, y_span = region[2] - region[0], region[3] - region[1]
    x_scale = np.float32((size - 1) / (x_span if x_span > 0 else 1.0))
    y_scale = np.float32((size - 1) / (y_span if y_span > 0 else 1.0))
    x0, y0 = np.float32(region[0]), np.float32(region[1])
    numbers = np.empty(_BLOCK, np.uint32)
    for start in range(0, steps, _BLOCK):
        end = min(steps, start + _BLOCK)
        now = numbers[: end - start]
        _cells(points[0, start:end], points[1, start:end], x0, y0, x_scale, y_scale, size, now)
        for i in range(len(now)):
            cells[now[i]] += 1
    return cells[: side * side].reshape(side, side)


# ---------------------------------------------------------------------- stamping, background, pasting


@njit(cache=True)
def stamp(grid, offsets):
    """(size + 2, size + 2) point counts to (size, size) counts of stamps: each point marks the cells `offsets`.

    `offsets` (k, 2) holds rows and columns of a 3x3 stamp, its centre at (1, 1). The same sums as stamping point by
    point, at the price of the grid instead of the points.
    """
    size = grid.shape[0] - 2
    out = np.zeros((size, size), np.int32)
    for r in range(size):
        to = out[r]
        for j in range(len(offsets)):
            right = 2 - offsets[j, 1]
            row = grid[r + 2 - offsets[j, 0], right : right + size]
            for c in range(size):
                to[c] += row[c]
    return out


@njit(cache=True)
def graded(counts):
    """Counts to shares of the largest one, float32; and how many cells are lit."""
    largest, lit = 0, 0
    for value in counts.flat:
        largest = max(largest, value)
        lit += value > 0
    out = np.zeros(counts.shape, np.float32)
    if largest:
        for r in range(counts.shape[0]):
            for c in range(counts.shape[1]):
                out[r, c] = counts[r, c] / largest
    return out, lit


@njit(cache=True)
def diamond_square(levels, decay, fixed_corners, uniforms):
    """Diamond-square field (2**levels + 1, same), from uniforms in [0, 1) in the order in which they are used.

    Toroidal: the square step takes the neighbour beyond an edge from the other side. Level k adds up to
    0.5 * exp(decay * (1 - k)) either way.
    """
    side = 2**levels + 1
    field, used = np.zeros((side, side)), 0
    for row in (0, side - 1):
        for column in (0, side - 1):
            if fixed_corners:
                field[row, column] = 0.5
            else:
                field[row, column] = uniforms[used]
                used += 1
    for level in range(1, levels + 1):
        size = 0.5 * np.exp(decay * (1 - level))
        step = side // 2**level
        for r in range(step, side, 2 * step):
            for c in range(step, side, 2 * step):
                mean = 0.25 * (
                    field[r - step, c - step]
                    + field[r - step, c + step]
                    + field[r + step, c - step]
                    + field[r + step, c + step]
                )
                field[r, c] = mean + (-size + (size - -size) * uniforms[used])
                used += 1
        for i in range(2**level + 1):
            r = i * step
            up, down = (r - step if r > 0 else side - step - 1), (r + step if r < side - 1 else step)
            for c in range(step if i % 2 == 0 else 0, side, 2 * step):
                left, right = (c - step if c > 0 else side - step - 1), (c + step if c < side - 1 else step)
                mean = 0.25 * (field[up, c] + field[r, left] + field[r, right] + field[down, c])
                field[r, c] = mean + (-size + (size - -size) * uniforms[used])
                used += 1
    return field


@njit(cache=True, inline="always")
def _wobble(state, size):
    """Uniform within plus and minus `size`, float32, from the state's upper 24 bits."""
    return (np.float32(state >> _U64(40)) * np.float32(2.0**-23) - np.float32(1)) * size


@njit(cache=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def fast_diamond_square(levels, decay, seed, crop):
    """As `diamond_square` with free corners, float32 and own random numbers; exact only in its top-left `crop` cells.

    The last level holds three quarters of all cells, and nothing is built on them: those beyond the crop are left out.
    """
    side = 2**levels + 1
    field = np.zeros((side, side), np.float32)
    state = _scramble(seed + _U64(0x9E3779B97F4A7C15)) | _U64(1)
    for row in (0, side - 1):
        for column in (0, side - 1):
            state = _next(state)
            field[row, column] = np.float32(state >> _U64(40)) * np.float32(2.0**-24)
    quarter = np.float32(0.25)
    for level in range(1, levels + 1):
        size = np.float32(0.5 * np.exp(decay * (1 - level)))
        step = side // 2**level
        # The square step of the last level looks one diamond beyond the crop.
        reach = min(side, crop + 2 * step) if level == levels else side
        for r in range(step, reach, 2 * step):
            for c in range(step, reach, 2 * step):
                above = field[r - step, c - step] + field[r - step, c + step]
                below = field[r + step, c - step] + field[r + step, c + step]
                state = _next(state)
                field[r, c] = quarter * (above + below) + _wobble(state, size)
        reach = min(side, crop) if level == levels else side
        if level == levels and reach < side:
            # The wrapped neighbours of row and column 0.
            for at in range(step, side, 2 * step):
                r, c = side - step - 1, at
                for _ in range(2):
                    above = field[r - step, c - step] + field[r - step, c + step]
                    below = field[r + step, c - step] + field[r + step, c + step]
                    state = _next(state)
                    field[r, c] = quarter * (above + below) + _wobble(state, size)
                    r, c = at, side - step - 1
        for i in range(2**level + 1):
            r = i * step
            if r >= reach:
                break
            up, down = (r - step if r > 0 else side - step - 1), (r + step if r < side - 1 else step)
            for c in range(step if i % 2 == 0 else 0, reach, 2 * step):
                left, right = (c - step if c > 0 else side - step - 1), (c + step if c < side - 1 else step)
                mean = quarter * (field[up, c] + field[r, left] + field[r, right] + field[down, c])
                state = _next(state)
                field[r, c] = mean + _wobble(state, size)
    return field[:crop, :crop]


@njit(cache=True)
def first_state(seeds):
    """(n,) uint64: where `fast_diamond_square` starts its random numbers, for each seed."""
    out = np.empty(len(seeds), np.uint64)
    for i in range(len(seeds)):
        out[i] = _scramble(seeds[i] + _U64(0x9E3779B97F4A7C15)) | _U64(1)
    return out


@njit(cache=True)
def upper_bits(state, out):
    """The upper 24 bits of the states that follow `state`, as `fast_diamond_square` takes them; fills `out` (int32)."""
    for i in range(len(out)):
        state = _next(state)
        out[i] = state >> _U64(40)


@njit(cache=True)
def object_hsv(image, hue_shift, saturation, value, out):
    """Shares (H, W) to HSV bytes: hue is the share plus a shift, around the circle of 256; unlit cells are black."""
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            x = image[r, c]
            if x > 0:
                out[r, c, 0] = np.uint8(np.int64(x * 255 + hue_shift) & 255)
                out[r, c, 1] = saturation
                out[r, c, 2] = value
            else:
                out[r, c, 0] = out[r, c, 1] = out[r, c, 2] = 0


@njit(cache=True)
def paint(image, hue_shift, palette, canvas):
    """Colours the lit cells of (H, W) shares into `canvas` (H, W, 3), by the RGB bytes of each hue (256, 3)."""
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            x = image[r, c]
            if x > 0:
                hue = np.int64(x * 255 + hue_shift) & 255
                canvas[r, c, 0] = palette[hue, 0]
                canvas[r, c, 1] = palette[hue, 1]
                canvas[r, c, 2] = palette[hue, 2]


@njit(cache=True)
def field_hsv(field, scales, shifts, out):
    """A field (H, W) to HSV bytes: hue goes around the circle of 256, saturation and value stop at 255."""
    top = scales.dtype.type(255)
    for r in range(field.shape[0]):
        for c in range(field.shape[1]):
            x = field[r, c]
            out[r, c, 0] = np.uint8(np.int32(x * scales[0] + shifts[0]) & 255)
            out[r, c, 1] = np.uint8(np.int32(min(x * scales[1] + shifts[1], top)) & 255)
            out[r, c, 2] = np.uint8(np.int32(min(x * scales[2] + shifts[2], top)) & 255)


@njit(cache=True)
def paste(image, top, left, canvas):
    """Copies the pixels of `image` (h, w, 3) that are not black into `canvas` at (top, left), cut at its edges."""
    for r in range(max(0, -top), min(image.shape[0], canvas.shape[0] - top)):
        for c in range(max(0, -left), min(image.shape[1], canvas.shape[1] - left)):
            red, green, blue = image[r, c, 0], image[r, c, 1], image[r, c, 2]
            if red or green or blue:
                canvas[r + top, c + left, 0] = red
                canvas[r + top, c + left, 1] = green
                canvas[r + top, c + left, 2] = blue
