"""Map augmentation: bends a whole map sideways as a function of x (Bahari et al.'s scene attacks, in this paper's use).

A point (x, y) goes to (x, y + sign * f(x - x_ref)). All of f is zero up to `border`, so a scene starts on the map as it
was. x never changes, and so lanes that met before still meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zoo.errors import ZooError

Array = NDArray[np.float64]
_BEND = 10.0  # metres over which a smooth turn bends; straight before and after


class MapFunction(Protocol):
    """A sideways shift in metres and its derivative, both of the distance u past the reference."""

    def f(self, u: Array) -> Array: ...

    def f_prime(self, u: Array) -> Array: ...


@dataclass(frozen=True)
class SmoothTurn:
    """A turn to a straight line of slope power / 10 (45 degrees at power 10): u^b over 10 m, then linear."""

    power: float
    exponent: int = 20
    border: float = 40.0

    def f(self, u: Array) -> Array:
        v = np.asarray(u, dtype=np.float64) - self.border
        curve = self.power / self.exponent * (np.clip(v, 0.0, _BEND) / _BEND) ** self.exponent
        return curve + self.power / _BEND * np.maximum(v - _BEND, 0.0)

    def f_prime(self, u: Array) -> Array:
        """The true derivative; the released code's is wrong past the curved part."""
        v = np.asarray(u, dtype=np.float64) - self.border
        return self.power / _BEND * (np.clip(v, 0.0, _BEND) / _BEND) ** (self.exponent - 1)


@dataclass(frozen=True)
class DoubleTurn:
    """A turn and its opposite `distance` metres on: a sideways shift by exactly `power` metres."""

    power: float
    exponent: int = 20
    distance: float = 10.0
    border: float = 40.0

    def _turn(self) -> SmoothTurn:
        return SmoothTurn(self.power, self.exponent, self.border)

    def f(self, u: Array) -> Array:
        return self._turn().f(u) - self._turn().f(np.asarray(u) - self.distance)

    def f_prime(self, u: Array) -> Array:
        return self._turn().f_prime(u) - self._turn().f_prime(np.asarray(u) - self.distance)


@dataclass(frozen=True)
class RippleRoad:
    """Waves of `wavelength` metres, from 0 to 2 * power metres to the side."""

    power: float = 6.0
    wavelength: float = 17.0
    border: float = 40.0

    def f(self, u: Array) -> Array:
        v = np.maximum(np.asarray(u, dtype=np.float64) - self.border, 0.0)
        return self.power * (1.0 - np.cos(2 * math.pi * v / self.wavelength))

    def f_prime(self, u: Array) -> Array:
        v = np.maximum(np.asarray(u, dtype=np.float64) - self.border, 0.0)
        return self.power * 2 * math.pi / self.wavelength * np.sin(2 * math.pi * v / self.wavelength)


@dataclass(frozen=True)
class Combination:
    """Several functions added up."""

    parts: tuple[MapFunction, ...]

    def f(self, u: Array) -> Array:
        return np.sum([part.f(u) for part in self.parts], axis=0)

    def f_prime(self, u: Array) -> Array:
        return np.sum([part.f_prime(u) for part in self.parts], axis=0)


AUGMENT_TYPES = {0: "smooth turn", 1: "double turn", 2: "ripple road", 3: "combination"}


def map_function(augment_type: int, power: float) -> MapFunction:
    """The function behind a scene's AUGMENT_TYPE (0 smooth turn, 1 double turn; 2 ripples and 3 all three, which the
    library has and the released data set does not use). Raises `ZooError` for another type."""
    if augment_type == 0:
        return SmoothTurn(power)
    if augment_type == 1:
        return DoubleTurn(power)
    if augment_type == 2:
        return RippleRoad(power)
    if augment_type == 3:
        return Combination((SmoothTurn(power), DoubleTurn(power), RippleRoad(power)))
    raise ZooError(f"AUGMENT_TYPE is one of {', '.join(map(str, AUGMENT_TYPES))}, not {augment_type}.")


@dataclass(frozen=True)
class Augmentation:
    """What the four extra columns of an augmented scene say.

    Attributes:
        x_ref: REF_xmin, the x from which u counts, in metres of the city frame.
        kind: AUGMENT_TYPE; direction: AUGMENT_DIRECTION, 0 adds f to y, 1 subtracts it; power: ATTACK_POWER_TYPE.
    """

    x_ref: float
    kind: int
    direction: int
    power: float

    def shift(self, x: Array) -> Array:
        """What is added to y at x."""
        sign = 1.0 if self.direction % 2 == 0 else -1.0
        return sign * map_function(self.kind, self.power).f(np.asarray(x) - self.x_ref)

    def apply(self, points: Array) -> Array:
        """(..., 2) points of the original map to the augmented one."""
        moved = np.array(points, dtype=np.float64)
        moved[..., 1] += self.shift(moved[..., 0])
        return moved

    def undo(self, points: Array) -> Array:
        """(..., 2) points of the augmented map to the original one; the inverse of `apply`, since x is the same."""
        moved = np.array(points, dtype=np.float64)
        moved[..., 1] -= self.shift(moved[..., 0])
        return moved
