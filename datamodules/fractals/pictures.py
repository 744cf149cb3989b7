"""Training pictures out of fractals: one in a picture, or several of them on a background (section 3.3 and 3.4).

What is drawn and what is done with it are apart, so that recorded draws give recorded pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datamodules.fractals import colour as colours
from datamodules.fractals.rendering import Renderer
from datamodules.fractals.systems import jitter_system
from zoo.errors import ZooError

TRIES = 10


@dataclass(frozen=True)
class Placed:
    """One object of a layout: which, flipped how, in which colour, `side` pixels wide, its top left corner where."""

    index: int
    flips: tuple[bool, bool, bool]
    colour: colours.ObjectColour
    side: int
    left: int
    top: int


@dataclass(frozen=True)
class Layout:
    """All draws of a multi-instance picture; `blur` is a sigma, or None for none."""

    background: int
    objects: tuple[Placed, ...]
    blur: float | None = None


@dataclass(frozen=True)
class LayoutRule:
    """How multi-instance pictures are laid out.

    Attributes:
        size: side of the picture in pixels.
        objects: (least, most) objects.
        size_range: (least, most) side of an object as a share of the picture's.
        flips: turn and mirror objects.
        reach: how far the centre of an object may lie from the picture's, as a share of its side; None puts it
            anywhere.
        blur_p, blur_sigma: probability and width of a 3x3 Gaussian blur of the finished picture.
    """

    size: int
    objects: tuple[int, int] = (1, 5)
    size_range: tuple[float, float] = (0.15, 0.6)
    flips: bool = True
    reach: float | None = None
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ZooError(f"A picture has at least one pixel a side, not {self.size}.")
        if self.reach is not None and not 0 <= self.reach <= 0.5:
            raise ZooError(f"Objects lie up to half a picture from its middle, so reach is 0 to 0.5, not {self.reach}.")
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ZooError(f"objects is (least, most), not {tuple(self.objects)}.")
        if not 0 < self.size_range[0] <= self.size_range[1]:
            raise ZooError(f"size_range is (least, most) above 0, not {tuple(self.size_range)}.")
        if int(self.size_range[0] * self.size) < 1:
            raise ZooError(
                f"Objects of {self.size_range[0]} of a picture of {self.size} pixels would be smaller than a pixel: "
                "raise size_range or the image size."
            )
        if not 0 <= self.blur_p <= 1:
            raise ZooError(f"blur_p is a probability, not {self.blur_p}.")

    def draw(self, rng: np.random.Generator, choices: int, pick: int | None = None) -> Layout:
        """A layout out of `choices` fractals and backgrounds; `pick` fixes which fractal (self-supervised views)."""
        background = int(rng.integers(0, choices))
        number = min(int(rng.integers(self.objects[0], self.objects[1] + 1)), choices)
        objects = tuple(self._place(rng, choices, pick) for _ in range(number))
        blurred = rng.random() < self.blur_p
        return Layout(background, objects, rng.uniform(*self.blur_sigma) if blurred else None)

    def _place(self, rng: np.random.Generator, choices: int, pick: int | None) -> Placed:
        index = int(rng.integers(0, choices)) if pick is None else pick
        flips = colours.draw_flips(rng) if self.flips else (False, False, False)
        colour = colours.draw_object_colour(rng)
        side = int(rng.uniform(*self.size_range) * self.size)
        if self.reach is None:  # the centre of an object stays inside the picture
            low, high = -(side // 2), self.size - side // 2
        else:
            middle, shift = (self.size - side) // 2, int(self.reach * self.size)
            low, high = middle - shift, middle + shift + 1
        left, top = rng.integers(low, high, 2).tolist()
        return Placed(index, flips, colour, side, left, top)


def compose(
    layout: Layout,
    fractal: Callable[[int], np.ndarray],
    background: Callable[[int], np.ndarray],
    exact: bool = True,
    color: bool = True,
) -> np.ndarray:
    """The picture of a layout, RGB bytes (size, size, 3).

    Args:
        fractal: (h, h) shares by index; background: (size, size, 3) bytes by index (it is copied).
        color: False shades the objects grey instead, whatever colours the layout has.
    """
    canvas = background(layout.background).copy()
    for placed in layout.objects:
        shares = colours.flip(fractal(placed.index), *placed.flips)
        if not color:
            image = colours.shaded_object(shares)
        elif exact:
            image = colours.colour_object(shares, placed.colour)
        else:
            image = colours.paint(shares, placed.colour, np.zeros((*shares.shape, 3), np.uint8))
        colours.paste(colours.resize(image, placed.side), canvas, placed.top, placed.left)
    return canvas if layout.blur is None else colours.blur(canvas, layout.blur)


@dataclass
class SingleInstance:
    """Pictures of one fractal, filled to the edges, for multi-class prediction.

    Attributes:
        size: side in pixels.
        renderer: makes the points and counts them.
        jitter: see `jitter_system`.
        scale, translate: the shown region's sides as multiples of the attractor's, and its shift as a share of them;
            None and 0 show all of it.
        flips, blur_p, blur_sigma: as in `LayoutRule`.
        color: colour by density; False paints what is lit grey.
        background: put it on a random field; False leaves black.
    """

    size: int
    renderer: Renderer
    jitter: str = "scale"
    scale: tuple[float, float] | None = (0.5, 2.0)
    translate: float = 0.2
    flips: bool = True
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    color: bool = True
    background: bool = True
    redrawn: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ZooError(f"A picture has at least one pixel a side, not {self.size}.")

    def __call__(self, system: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """RGB bytes (size, size, 3)."""
        image = self._render(system, rng)
        image = colours.flip(image, *colours.draw_flips(rng)) if self.flips else image
        colour = colours.draw_object_colour(rng) if self.color else None
        if self.background:
            picture = colours.draw_background(self.size, rng, self.renderer.mode)
        else:
            picture = np.zeros((self.size, self.size, 3), np.uint8)
        if colour is None:
            colours.paste(colours.grey_object(image > 0), picture)
        elif self.renderer.mode == "fast":
            colours.paint(image, colour, picture)
        else:
            colours.paste(colours.colour_object(image, colour), picture)
        if rng.random() < self.blur_p:
            picture = colours.blur(picture, rng.uniform(*self.blur_sigma))
        return picture

    def _render(self, system: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for _ in range(TRIES):
            points = self.renderer.points(jitter_system(system, self.jitter, rng), rng)
            if points.finite:
                image, lit = self.renderer.render(points, self.size, rng, self._region(points.bounds, rng))
                if lit or self.renderer.allow_empty_stamp:
                    return image
            self.redrawn += 1
        raise hopeless()

    def draw_region(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(2,) shift of the shown region's centre and (2,) its sides, as shares of the attractor's sides."""
        shift = rng.uniform(-self.translate, self.translate, 2) if self.translate else np.zeros(2)
        # Without a scale the official code shows twice the attractor's sides; here None means what it says.
        return shift, rng.uniform(*self.scale, 2) if self.scale else np.ones(2)

    def _region(self, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        extent, centre = bounds[2:] - bounds[:2], (bounds[2:] + bounds[:2]) / 2
        shift, sides = self.draw_region(rng)
        centre, half = centre + extent * shift, extent * sides / 2
        return np.concatenate([centre - half, centre + half])


@dataclass
class Material:
    """What multi-instance pictures are put together from: whole fractals in grey, and backgrounds.

    Attributes:
        size: side of a background; a fractal is `fractal_size` wide (half of it in multi-instance pictures).
        renderer, jitter: as in `SingleInstance`.
        color: False is for pictures whose objects are shaded grey; background: False leaves black.
    """

    size: int
    fractal_size: int
    renderer: Renderer
    jitter: str = "none"
    color: bool = True
    background: bool = True
    redrawn: int = 0

    def __post_init__(self) -> None:
        if min(self.size, self.fractal_size) < 1:
            raise ZooError(f"A picture has at least one pixel a side, not {min(self.size, self.fractal_size)}.")

    def __call__(self, system: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(fractal_size, fractal_size) float32 shares and (size, size, 3) background bytes."""
        for _ in range(TRIES):
            points = self.renderer.points(jitter_system(system, self.jitter, rng), rng)
            if points.finite:
                image, lit = self.renderer.render(points, self.fractal_size, rng)
                if lit or self.renderer.allow_empty_stamp:
                    return image, self._ground(rng)
            self.redrawn += 1
        raise hopeless()

    def _ground(self, rng: np.random.Generator) -> np.ndarray:
        if not self.background:
            return np.zeros((self.size, self.size, 3), np.uint8)
        return colours.draw_background(self.size, rng, self.renderer.mode)


def hopeless() -> ZooError:
    return ZooError(f"A fractal came out empty or ran off to infinity {TRIES} times: check its system.")
