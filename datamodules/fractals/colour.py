"""Colours of fractals and of their backgrounds, and putting one on the other (section 3.2 and the official code).

Hue lives on a circle of 256 here, but OpenCV's 8-bit conversion takes hues 0 to 179 and wraps what lies above once
more; that is part of how the data look, so the conversion is OpenCV's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from datamodules.fractals.rendering import Mode, kernels
from zoo.errors import ZooError
from zoo.extras import imports_of

with imports_of("fractals", why="fractals are coloured with OpenCV"):
    import cv2

cv2.setNumThreads(0)  # these pictures are small, and loaders bring their own processes

MIN_SATURATION, MIN_VALUE = 0.3, 0.5
DECAY = (0.4, 0.8)
_HUES = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class ObjectColour:
    """Hue shift in [0, 255), saturation and value as bytes."""

    hue_shift: float
    saturation: int
    value: int


@dataclass(frozen=True)
class FieldColour:
    """How a field becomes hue, saturation and value: scale and shift of each, in units of a byte."""

    scales: tuple[float, float, float]
    shifts: tuple[float, float, float]


@dataclass(frozen=True)
class FieldDraws:
    """All draws of a fast background: how fast its roughness falls off, the seed of its field, and its colours."""

    decay: float
    seed: int
    colour: FieldColour


@dataclass(frozen=True)
class Move:
    """How a finished picture is moved: (2, 3) where its points (x, y) go; then columns, then rows mirrored or not."""

    matrix: np.ndarray
    mirror: tuple[bool, bool]


def draw_object_colour(rng: np.random.Generator) -> ObjectColour:
    hue, saturation, value = rng.random(), rng.uniform(MIN_SATURATION, 1), rng.uniform(MIN_VALUE, 1)
    return ObjectColour(hue * 255, int(saturation * 255), int(value * 255))


def draw_field_colour(rng: np.random.Generator) -> FieldColour:
    hue = (rng.uniform(0.25, 1) * 255, rng.random() * 255)
    saturation = (rng.uniform(0.1, 0.3) * 255, rng.uniform(0.4, 0.6) * 255)
    value = (rng.uniform(0.3, 0.6) * 255, rng.uniform(0.4, 0.6) * 255)
    return FieldColour((hue[0], saturation[0], value[0]), (hue[1], saturation[1], value[1]))


def hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """(H, W, 3) bytes, in place."""
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv)


def object_hsv(image: np.ndarray, colour: ObjectColour) -> np.ndarray:
    """(H, W) shares to HSV bytes (H, W, 3): the share turns the hue, unlit cells are black."""
    out = np.empty((*image.shape, 3), np.uint8)
    kernels.object_hsv(image, colour.hue_shift, np.uint8(colour.saturation), np.uint8(colour.value), out)
    return out


def palette(colour: ObjectColour) -> np.ndarray:
    """(256, 3) RGB bytes of every hue at the saturation and value of `colour`."""
    hsv = np.empty((1, 256, 3), np.uint8)
    hsv[0, :, 0], hsv[0, :, 1], hsv[0, :, 2] = _HUES, colour.saturation, colour.value
    return hsv_to_rgb(hsv)[0]


def paint(image: np.ndarray, colour: ObjectColour, canvas: np.ndarray) -> np.ndarray:
    """Colours the lit cells of (H, W) shares into `canvas` (H, W, 3), in place.

    As pasting `colour_object`, at a third of the price and within one level: OpenCV rounds the last W % 32 columns
    otherwise than the rest, a palette does not.
    """
    kernels.paint(image, colour.hue_shift, palette(colour), canvas)
    return canvas


def colour_object(image: np.ndarray, colour: ObjectColour) -> np.ndarray:
    """(H, W) shares to RGB bytes (H, W, 3); unlit cells are black."""
    return hsv_to_rgb(object_hsv(image, colour))


def grey_object(image: np.ndarray) -> np.ndarray:
    """(H, W) shares to grey bytes (H, W, 3) up to 127, as the FractalDB-like runs without colour have them."""
    return np.repeat((image * 127).astype(np.uint8)[..., None], 3, axis=2)


def shaded_object(image: np.ndarray) -> np.ndarray:
    """(H, W) shares to grey bytes (H, W, 3), by the square root, so that thin parts are still seen."""
    return np.repeat((np.sqrt(image) * 255).astype(np.uint8)[..., None], 3, axis=2)


def field_hsv(field: np.ndarray, colour: FieldColour) -> np.ndarray:
    """(H, W) field to HSV bytes (H, W, 3)."""
    out = np.empty((*field.shape, 3), np.uint8)
    scales, shifts = (np.array(values, field.dtype) for values in (colour.scales, colour.shifts))
    kernels.field_hsv(field, scales, shifts, out)
    return out


def diamond_square(levels: int, decay: float, uniforms: np.ndarray, fixed_corners: bool = False) -> np.ndarray:
    """A diamond-square field of side 2**levels + 1, float64, from the given uniforms in [0, 1)."""
    needed = num_uniforms(levels, fixed_corners)
    if len(uniforms) < needed:
        raise ZooError(f"A field of {levels} levels takes {needed} random numbers, not {len(uniforms)}.")
    return kernels.diamond_square(levels, decay, fixed_corners, uniforms)


def num_uniforms(levels: int, fixed_corners: bool = False) -> int:
    """How many random numbers `diamond_square` uses: one for every cell but fixed corners."""
    return (2**levels + 1) ** 2 - (4 if fixed_corners else 0)


def num_levels(size: int) -> int:
    """Levels of the diamond-square field that a background of `size` pixels is cut from."""
    return max(1, math.ceil(math.log2(size)))


def draw_field(rng: np.random.Generator) -> FieldDraws:
    decay, seed = rng.uniform(*DECAY), int(rng.integers(0, 2**63))
    return FieldDraws(decay, seed, draw_field_colour(rng))


def draw_background(size: int, rng: np.random.Generator, mode: Mode = "fast") -> np.ndarray:
    """A coloured random field, RGB bytes (size, size, 3)."""
    levels = num_levels(size)
    if mode == "exact":
        decay = rng.uniform(*DECAY)
        field = diamond_square(levels, decay, rng.random(num_uniforms(levels)))[:size, :size]
        return hsv_to_rgb(field_hsv(field, draw_field_colour(rng)))
    draws = draw_field(rng)
    field = kernels.fast_diamond_square(levels, draws.decay, np.uint64(draws.seed), size)
    return hsv_to_rgb(field_hsv(field, draws.colour))


def flip(image: np.ndarray, transpose: bool, rows: bool, columns: bool) -> np.ndarray:
    """The image turned or mirrored: transposed first, then rows and columns reversed."""
    image = image.T if transpose else image
    image = image[::-1] if rows else image
    return np.ascontiguousarray(image[:, ::-1] if columns else image)


def draw_flips(rng: np.random.Generator) -> tuple[bool, bool, bool]:
    return rng.random() > 0.5, rng.random() > 0.5, rng.random() > 0.5


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, (side, side, 3); objects are coloured before, so their rims mix with black (official)."""
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)


def paste(image: np.ndarray, canvas: np.ndarray, top: int = 0, left: int = 0) -> np.ndarray:
    """Puts the pixels of `image` that are not black into `canvas`, in place, cut at its edges."""
    kernels.paste(image, top, left, canvas)
    return canvas


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian, 3x3."""
    return cv2.GaussianBlur(image, (3, 3), sigma)


def draw_move(rng: np.random.Generator, height: int, width: int) -> Move:
    """Turned by up to 10 degrees, shifted by up to a tenth, shrunk to 0.7 to 0.95, and mirrored."""
    angle = math.radians(rng.uniform(-10, 10))
    shift = rng.uniform(-0.1, 0.1, 2) * (width, height)
    scale = rng.uniform(0.7, 0.95)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    centre = np.array([width - 1, height - 1]) / 2
    linear = np.array([[cos, -sin], [sin, cos]])
    offset = centre + np.round(shift) - linear @ centre
    return Move(np.column_stack([linear, offset]), (rng.random() < 0.5, rng.random() < 0.5))


def move(image: np.ndarray, drawn: Move) -> np.ndarray:
    """A finished picture turned, shifted, shrunk and mirrored a little.

    What comes in from outside is black; bilinear, as the official code's RandomAffine with two random flips.
    """
    moved = cv2.warpAffine(image, drawn.matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)
    moved = moved[:, ::-1] if drawn.mirror[0] else moved
    return np.ascontiguousarray(moved[::-1] if drawn.mirror[1] else moved)
