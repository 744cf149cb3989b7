"""Colours, backgrounds and composition on tensors: what `colour.py` does with one picture, for a batch of them.

Bytes come out as OpenCV's do: its 8-bit hues, its fixed-point resizing and blurring (exactly), its conversion of
colours (within a level). Pictures are (N, 3, S, S) here, not (S, S, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datamodules.fractals.colour import num_uniforms
from datamodules.fractals.rendering import kernels

BLUR_ONE = 256  # weights of the blur are in units of 1/256
LAYERS = 126  # objects of a picture: their number shares 31 bits with a colour
_WEIGHT_BITS = 11  # of resizing
_NIBBLES = 16
_LANES = 32  # OpenCV cuts colours off, but rounds those of the last columns, which are too few for its vector unit
_GRID = 32  # moved pictures are sampled on a grid of 1/32 pixel


# ---------------------------------------------------------------------- colours


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Bytes (N, ..., W) of each, as integers, to (N, 3, ..., W) bytes; hue 180 is hue 0 again, as in OpenCV."""
    rgb = _hsv_to_rgb(hue, saturation, value)
    width = rgb.shape[-1]
    rgb[..., width - width % _LANES :] += 0.5
    return rgb.to(torch.uint8)


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """As `hsv_to_rgb`, float32 and not yet cut off."""
    # Not a tensor made of numbers: on a GPU the host would wait for it.
    channels = (5 - 2 * torch.arange(3, device=hue.device)).float().view(1, 3, *[1] * (hue.ndim - 1))
    turn = torch.remainder(channels + (hue.float() * (6 / 180)).unsqueeze(1), 6)
    share = torch.minimum(turn, 4 - turn).clamp_(0, 1)
    value = (value.float() * (1 / 255)).unsqueeze(1)
    return (value - value * (saturation.float() * (1 / 255)).unsqueeze(1) * share).mul_(255)


def object_rgb(shares: Tensor, hue_shift: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(N, h, w) shares to (N, 3, h, w) bytes; unlit cells are black. The shift (N,) is float64, the others bytes."""
    hues = torch.arange(256, device=shares.device).expand(len(shares), -1)
    cut = _hsv_to_rgb(hues, saturation[:, None], value[:, None])
    palette = torch.cat([cut, cut + 0.5], dim=2).to(torch.uint8)  # of most columns, and of the last ones
    hue = (shares.double() * 255 + hue_shift[:, None, None]).long() & 255
    width = shares.shape[2]
    hue[:, :, width - width % _LANES :] += 256
    rgb = palette.gather(2, hue.flatten(1)[:, None].expand(-1, 3, -1)).view(-1, 3, *shares.shape[1:])
    return rgb * (shares > 0)[:, None]


def field_rgb(field: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    """(N, S, S) fields to (N, 3, S, S) bytes; scales and shifts (N, 3) of hue, saturation and value."""
    hsv = field[:, None] * scales.to(field)[:, :, None, None] + shifts.to(field)[:, :, None, None]
    hsv[:, 1:].clamp_(max=255)
    return hsv_to_rgb(*(hsv.int() & 255).unbind(1))


# ---------------------------------------------------------------------- backgrounds


def diamond_square(levels: int, amplitudes: Tensor, uniforms: Tensor) -> Tensor:
    """(N, 2**levels + 1, same) fields, as `kernels.diamond_square`.

    Args:
        amplitudes: (N, levels) of each level.
        uniforms: (N, side, side) the random number from 0 to 1 of each cell.
    """
    side = 2**levels + 1
    field = uniforms[:, :: side - 1, :: side - 1]
    wobble = uniforms * 2 - 1
    for level in range(1, levels + 1):
        step, size = side // 2**level, amplitudes[:, level - 1, None, None]
        own = wobble[:, ::step, ::step]
        above, below = field[:, :-1], field[:, 1:]
        middle = 0.25 * ((above[:, :, :-1] + above[:, :, 1:]) + (below[:, :, :-1] + below[:, :, 1:]))
        middle = middle + size * own[:, 1::2, 1::2]
        # Beyond an edge lies the other side.
        rows = torch.cat([middle[:, -1:], middle, middle[:, :1]], dim=1)
        columns = torch.cat([middle[:, :, -1:], middle, middle[:, :, :1]], dim=2)
        finer = torch.empty(len(field), 2**level + 1, 2**level + 1, dtype=field.dtype, device=field.device)
        finer[:, ::2, ::2] = field
        finer[:, 1::2, 1::2] = middle
        finer[:, ::2, 1::2] = (
            0.25 * (rows[:, :-1] + field[:, :, :-1] + field[:, :, 1:] + rows[:, 1:]) + size * own[:, ::2, 1::2]
        )
        finer[:, 1::2, ::2] = 0.25 * (above + columns[:, :, :-1] + columns[:, :, 1:] + below) + size * own[:, 1::2, ::2]
        field = finer
    return field


@lru_cache(maxsize=8)
def visit_order(levels: int, crop: int | None = None) -> np.ndarray:
    """(side, side) number of the draw that each cell gets, from 0, in the order of the loops in `kernels`.

    With `crop` that of `fast_diamond_square`, which leaves out cells of the last level (their number is 0).
    """
    side = 2**levels + 1
    crop = side if crop is None else crop
    order = np.zeros((side, side), np.int64)
    order[:: side - 1, :: side - 1] = [[0, 1], [2, 3]]
    used = 4

    def visit(cells: np.ndarray) -> None:
        nonlocal used
        cells[...] = np.arange(used, used + cells.size).reshape(cells.shape)
        used += cells.size

    for level in range(1, levels + 1):
        step, last = side // 2**level, level == levels
        reach = min(side, crop + 2 * step) if last else side
        visit(order[step : reach : 2 * step, step : reach : 2 * step])
        reach = min(side, crop) if last else side
        if reach < side:
            edge = side - step - 1
            for at in range(step, side, 2 * step):
                order[edge, at], order[at, edge] = used, used + 1
                used += 2
        for row in range(0, reach, step):
            visit(order[row : row + 1, (step if row // step % 2 == 0 else 0) : reach : 2 * step])
    return order


@lru_cache(maxsize=4)
def _bit_tables(levels: int, crop: int, device: torch.device) -> Tensor:
    """(16, 16, side * side) int32: what each value of each nibble of the first state adds to a cell's random number.

    Numbers by xorshift are linear over bits: number k of a state is the exclusive or of what its bits give alone. So a
    device finds every number of `fast_diamond_square` at once instead of one after the other, for 1 kB a cell.
    """
    order = visit_order(levels, crop).ravel()
    bits = np.empty((64, order.max() + 1), np.int32)
    for bit in range(64):
        kernels.upper_bits(np.uint64(1) << np.uint64(bit), bits[bit])
    bits = bits[:, order].reshape(_NIBBLES, 4, -1)
    tables = np.zeros((_NIBBLES, 16, bits.shape[2]), np.int32)
    for value in range(16):
        for bit in range(4):
            if value >> bit & 1:
                tables[:, value] ^= bits[:, bit]
    return torch.from_numpy(tables).to(device)


def nibbles_of(seeds: Sequence[int]) -> np.ndarray:
    """(n, 16) int32: the first random state of each background's seed in pieces of four bits, the lowest first."""
    states = kernels.first_state(np.array(seeds, np.uint64))
    return (states[:, None] >> np.arange(0, 64, 4, dtype=np.uint64) & np.uint64(15)).astype(np.int32)


def amplitudes_of(levels: int, decays: Sequence[float]) -> np.ndarray:
    """(n, levels) float32: how far each level of a field goes up and down."""
    return (0.5 * np.exp(np.array(decays)[:, None] * -np.arange(levels))).astype(np.float32)


def fast_fields(levels: int, crop: int, amplitudes: Tensor, nibbles: Tensor) -> Tensor:
    """(N, crop, crop) float32, the fields of `kernels.fast_diamond_square` to the rounding."""
    tables, side = _bit_tables(levels, crop, amplitudes.device), 2**levels + 1
    numbers = tables[0].index_select(0, nibbles[:, 0])
    for place in range(1, _NIBBLES):
        numbers ^= tables[place].index_select(0, nibbles[:, place])
    uniforms = numbers.float().mul_(2.0**-24).view(-1, side, side)
    return diamond_square(levels, amplitudes, uniforms)[:, :crop, :crop]


def cells_of(uniforms: Tensor, levels: int, fixed_corners: bool = False) -> Tensor:
    """Random numbers in the order of the exact loops, (N, `num_uniforms`), to the cell that each is for."""
    side = 2**levels + 1
    order = torch.from_numpy(visit_order(levels)).to(uniforms.device)
    if fixed_corners:  # nobody draws for them
        corners = torch.full((len(uniforms), 4), 0.5, dtype=uniforms.dtype, device=uniforms.device)
        uniforms = torch.cat([corners, uniforms], dim=1)
    assert uniforms.shape[1] >= num_uniforms(levels)
    return uniforms[:, order.view(-1)].view(-1, side, side)


# ---------------------------------------------------------------------- composition


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """(N, h, h) turned or mirrored by (N, 3): transposed, then rows, then columns reversed."""
    transpose, rows, columns = (flips[:, k, None, None] for k in range(3))
    images = torch.where(transpose, images.transpose(1, 2), images)
    images = torch.where(rows, images.flip(1), images)
    return torch.where(columns, images.flip(2), images)


def resize(images: Tensor, sides: Tensor, most: int) -> Tensor:
    """(N, 3, h, h) bytes to (N, 3, most, most) int32, each resized to its own side; what lies beyond it means nothing.

    OpenCV's bilinear: weights of eleven bits, and four bits dropped in between.
    """
    height = images.shape[2]
    at = torch.arange(most, device=images.device, dtype=torch.float64) + 0.5
    place = (at * (height / sides.double())[:, None] - 0.5).float()
    low = place.floor()
    share = place - low
    first, second = (low.long() + k for k in (0, 1))
    inside = (first >= 0) & (first < height - 1)
    first, second = first.clamp(0, height - 1), second.clamp(0, height - 1)

    def weights(share: Tensor) -> tuple[Tensor, Tensor]:
        return tuple((part * 2**_WEIGHT_BITS).round().int() for part in (1 - share, share))  # type: ignore[return-value]

    count = len(images)
    wide = (count, 3, height, most)
    a, b = (weight[:, None, None] for weight in weights(torch.where(inside, share, 0.0)))
    across = images.gather(3, first[:, None, None].expand(wide)) * a
    across += images.gather(3, second[:, None, None].expand(wide)) * b
    across >>= 4
    whole = (count, 3, most, most)
    a, b = (weight[:, None, :, None] for weight in weights(share))
    out = (across.gather(2, first[:, None, :, None].expand(whole)) * a) >> 16
    out += (across.gather(2, second[:, None, :, None].expand(whole)) * b) >> 16
    return (out + 2) >> 2


def pack_rgb(images: Tensor) -> Tensor:
    """(N, 3, ...) bytes to one int32 a pixel, (N, ...)."""
    red, green, blue = images.int().unbind(1)
    return red << 16 | green << 8 | blue


def unpack_rgb(pixels: Tensor) -> Tensor:
    return torch.stack([pixels >> shift & 255 for shift in (16, 8, 0)], dim=1).to(torch.uint8)


def paste(
    canvas: Tensor, images: Tensor, pictures: Tensor, layers: Tensor, sides: Tensor, left: Tensor, top: Tensor
) -> None:
    """Puts the pixels of `images` that are not black into the pictures of a canvas, in place, cut at its edges.

    Args:
        canvas: (P, S, S) int32 of `pack_rgb`; what lies uppermost at a pixel is known by its upper bits.
        images: (N, 3, m, m) as `resize` gives them.
        pictures, layers: (N,) where each goes, and over how many others, at most `LAYERS`.
        sides, left, top: (N,) of each, in pixels.
    """
    size, most = canvas.shape[1], images.shape[3]
    at = torch.arange(most, device=canvas.device)
    rows, columns = top[:, None] + at, left[:, None] + at
    fits_r, fits_c = ((x >= 0) & (x < size) & (at < sides[:, None]) for x in (rows, columns))
    pixels = pack_rgb(images)
    shown = (pixels != 0) & fits_r[:, :, None] & fits_c[:, None]
    pixels = torch.where(shown, pixels | (layers.int() + 1 << 24)[:, None, None], 0)
    # What is not shown loses wherever it goes: somewhere near, where it stands in nobody's way.
    rows, columns = rows.clamp(0, size - 1), columns.clamp(0, size - 1)
    place = ((pictures[:, None] * size + rows)[:, :, None] * size + columns[:, None]).view(-1)
    # The largest of integers is the same in any order.
    canvas.view(-1).scatter_reduce_(0, place, pixels.view(-1), "amax")


def blur_weights(sigmas: Sequence[float | None]) -> np.ndarray:
    """(n,) int32: weight of the outer cells of a Gaussian of three, in 1/256; None blurs nothing."""
    outer = np.array([0.0 if s is None else np.exp(-1 / (2 * s * s)) for s in sigmas])
    return np.rint(outer / (1 + 2 * outer) * BLUR_ONE).astype(np.int32)


def blur(pictures: Tensor, weights: Tensor) -> Tensor:
    """(N, 3, S, S) bytes through a 3x3 Gaussian each; (N,) int32 of `blur_weights`, 0 leaves a picture as it is."""
    outer = weights[:, None, None, None]
    inner = BLUR_ONE - 2 * outer
    out = pictures.int()
    for dim in (3, 2):
        # Mirrored at the edge without it: the neighbour beyond is the one before.
        size = out.shape[dim]
        if size == 1:
            out = out * BLUR_ONE
            continue
        before = torch.cat([out.narrow(dim, 1, 1), out.narrow(dim, 0, size - 1)], dim)
        after = torch.cat([out.narrow(dim, 1, size - 1), out.narrow(dim, size - 2, 1)], dim)
        out = (before + after) * outer + out * inner
    return (out.add_(1 << 15) >> 16).to(torch.uint8)


def inverse_moves(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """(n, 2, 3) where each point of a moved picture comes from."""
    out = np.empty((len(matrices), 2, 3))
    for row, matrix in enumerate(matrices):
        out[row, :, :2] = np.linalg.inv(matrix[:, :2])
        out[row, :, 2] = -out[row, :, :2] @ matrix[:, 2]
    return out


def move(pictures: Tensor, inverse: Tensor, mirror: Tensor) -> Tensor:
    """(N, 3, S, S) bytes moved as `colour.move` does it, black outside.

    Args:
        inverse: (N, 2, 3) float64 of `inverse_moves`; mirror: (N, 2) columns and rows mirrored afterwards or not.
    """
    count, _, size = pictures.shape[:3]
    at = torch.arange(size, device=pictures.device)
    columns, rows = (torch.where(mirror[:, k, None], size - 1 - at, at).double() for k in (0, 1))
    across, down = columns[:, None, :, None], rows[:, :, None, None]
    points = across * inverse[:, None, None, :, 0] + down * inverse[:, None, None, :, 1] + inverse[:, None, None, :, 2]
    points = (points * _GRID).round().long()
    first, share = points // _GRID, (points % _GRID).float() / _GRID
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1)).flatten(2)
    out = torch.zeros(count, 3, size * size, dtype=torch.float32, device=pictures.device)
    for right in (0, 1):
        for below in (0, 1):
            x, y = ((first[..., k] + step + 1).clamp(0, size + 1) for k, step in ((0, right), (1, below)))
            weight = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if below else 1 - share[..., 1])
            index = (y * (size + 2) + x).view(count, 1, -1).expand(-1, 3, -1)
            out += padded.gather(2, index) * weight.view(count, 1, -1)
    return (out + 0.5).to(torch.uint8).view_as(pictures)
