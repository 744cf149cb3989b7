"""Iterated function systems: drawing, checking and jittering them, and the files that hold them.

A system is an array (n, 2, 3) of float64: n affine maps [A | b] of the plane. The draws follow the order of the
official code, so that one numpy Generator gives the same system in both (Anderson & Farrell 2022, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from zoo.errors import ZooError

Systems = Callable[[int], np.ndarray]
"""Gives system k, (n, 2, 3)."""

MAX_MAPS = 64
JITTER_TRIES = 4
JITTERS = ("none", "scale", "svd", "sval", "fractaldb-K")


def sigma_range(n: int) -> tuple[float, float]:
    """Where the sigma-factor, the sum of s1 + 2 s2 over all maps, gives good fractals (section 3.1)."""
    return (5 + n) / 2, (6 + n) / 2


def sample_singular_values(n: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) singular values 1 >= s1 >= s2 >= 0 with sum(s1 + 2 s2) = `sigma`, drawn one after the other.

    Not exchangeable: the last pair is what the others leave, and larger on average. Raises `ZooError` where no such
    values exist (`sigma` outside 0 to 3n).
    """
    _check_sigma(n, sigma)
    values = np.empty((n, 2))
    left, least = sigma, sigma - 3 * n + 3  # what all pairs still owe, and what this pair owes at the least
    for pair in range(n - 1):
        first = rng.uniform(max(0, least / 3), min(1, left))
        left, least = left - first, least - first
        second = rng.uniform(max(0, least / 2), min(first, left / 2))
        left, least = left - 2 * second, least - 2 * second + 3
        values[pair] = first, second
    second = rng.uniform(max(0, (left - 1) / 2), left / 3)
    values[-1] = left - 2 * second, second
    return values


def sample_singular_values_uniform(n: int, sigma: float, rng: np.random.Generator, tries: int = 1000) -> np.ndarray:
    """As `sample_singular_values`, but uniform over all that fit, by rejection.

    Raises `ZooError` when none fits in `tries` draws (the official code prints a line and goes on with a bad one).
    """
    _check_sigma(n, sigma)
    weights = np.ones(2 * n - 1)
    weights[1::2] = 2
    for _ in range(tries):
        flat = np.append(rng.random(2 * n - 1), 0.0)
        values = np.sort(flat.reshape(n, 2), axis=1)[:, ::-1].copy()
        rest = (sigma - weights @ values.reshape(-1)[:-1]) / 2
        if 0 <= rest <= values[-1, 0]:
            values[-1, 1] = rest
            return values
    raise ZooError(f"No singular values for {n} maps with sigma-factor {sigma} in {tries} draws: use sampler 'paper'.")


def sample_system(
    rng: np.random.Generator,
    n: int | tuple[int, int] | range | None = (2, 5),
    *,
    beta: tuple[float, float] | None = None,
    translation: float = 1.0,
    constrain: bool = True,
    singular_values: Callable[[int, float, np.random.Generator], np.ndarray] = sample_singular_values,
) -> np.ndarray:
    """Draws a system (n, 2, 3).

    Args:
        rng: where every draw comes from.
        n: number of maps, or a half-open range to draw it from; None is the official library's 2 to 7. The default is
            that of the official data files, 2 to 4.
        beta: range of the sigma-factor; None takes `sigma_range`.
        translation: b is uniform within plus and minus this.
        constrain: A = U diag(s1, s2) V with random rotations and reflections U, V, so every map contracts. False draws
            all six numbers uniform in -1 to 1, as FractalDB does: such a system may blow up.
        singular_values: how s1 and s2 are drawn.
    """
    if not isinstance(n, int | np.integer):
        low, high = (2, 8) if n is None else (n.start, n.stop) if isinstance(n, range) else n
        if not 1 <= low < high:
            raise ZooError(f"The number of maps comes from a half-open range such as 2 to 5, not {low} to {high}.")
        n = int(rng.integers(low, high))
    if n < 1:
        raise ZooError(f"A system has at least one map, not {n}.")
    if not constrain:
        return rng.uniform(-1, 1, (n, 2, 3))
    reflections = np.sign(rng.random((2 * n, 2, 1)) - 0.5) * np.eye(2)
    orthogonal = _rotation(rng.uniform(-np.pi, np.pi, 2 * n)) @ reflections
    sigma = rng.uniform(*(sigma_range(n) if beta is None else beta))
    scales = singular_values(n, sigma, rng)
    system = np.empty((n, 2, 3))
    system[:, :, :2] = orthogonal[:n] * scales[:, None, :] @ orthogonal[n:]
    system[:, :, 2] = rng.uniform(-translation, translation, (n, 2))
    return system


def singular_values_of(system: np.ndarray) -> np.ndarray:
    """(n, 2) singular values of the linear parts, the larger first."""
    return np.linalg.svd(system[:, :, :2], compute_uv=False)


def sigma_factor(system: np.ndarray) -> float:
    """Sum of s1 + 2 s2 over the maps: small gives dust, large gives a filled area."""
    return float((singular_values_of(system) @ [1, 2]).sum())


def probabilities(system: np.ndarray) -> np.ndarray:
    """(n,) how often the chaos game takes each map: in proportion to |det A|."""
    determinants = np.abs(system[:, 0, 0] * system[:, 1, 1] - system[:, 0, 1] * system[:, 1, 0])
    return determinants / determinants.sum()


def fixed_point(system: np.ndarray) -> tuple[float, float]:
    """The point that map 0 leaves in place; it lies on the attractor, so no iteration has to be thrown away."""
    (a, b, e), (c, d, f) = system[0].tolist()
    scale = 1 / (1 + (a * d - b * c) - a - d)
    return scale * ((1 - d) * e + b * f), scale * ((1 - a) * f + c * e)


def check_system(system: np.ndarray, where: str, allow_expansion: bool = False) -> np.ndarray:
    """`system` as contiguous float64 (n, 2, 3). Raises `ZooError` that begins with `where` if it cannot be rendered."""
    try:
        system = np.ascontiguousarray(system, dtype=np.float64)
    except (TypeError, ValueError):
        raise ZooError(f"{where} is no array of numbers.") from None
    if system.ndim != 3 or system.shape[1:] != (2, 3):
        raise ZooError(f"{where} should have the shape (maps, 2, 3), not {system.shape}.")
    if len(system) < 2:
        raise ZooError(f"{where} has {len(system)} maps: a fractal needs two or more.")
    if len(system) > MAX_MAPS:
        raise ZooError(f"{where} has {len(system)} maps; {MAX_MAPS} are the most.")
    if not np.isfinite(system).all():
        raise ZooError(f"{where} holds NaN or infinite numbers.")
    largest = singular_values_of(system).max()
    if largest > 1 + 1e-9 and not allow_expansion:
        raise ZooError(
            f"{where} does not contract: a map has the singular value {largest:.4f}, above 1. Such systems may blow "
            "up; allow_expansion takes them all the same."
        )
    determinants = system[:, 0, 0] * system[:, 1, 1] - system[:, 0, 1] * system[:, 1, 0]
    if not np.abs(determinants).sum() > 0:
        raise ZooError(f"{where} is degenerate: every map flattens the plane to a line, so none has a probability.")
    return system


class SeededSystems:
    """`num_systems` systems that follow from the seed: each is drawn when asked for and none is kept.

    A million classes need no more memory than ten. System k does not depend on how many there are.
    """

    def __init__(
        self,
        num_systems: int,
        seed: int = 0,
        n: tuple[int, int] = (2, 5),
        beta: tuple[float, float] | None = None,
        sampler: Literal["paper", "uniform"] = "paper",
    ) -> None:
        if num_systems < 1:
            raise ZooError(f"There is at least one system, not {num_systems}.")
        if sampler not in ("paper", "uniform"):
            raise ZooError(f"sampler is 'paper' or 'uniform', not {sampler!r}.")
        self.num_systems, self.seed, self.n, self.beta = num_systems, seed, tuple(n), beta
        self.draw = sample_singular_values if sampler == "paper" else sample_singular_values_uniform

    def __len__(self) -> int:
        return self.num_systems

    def __call__(self, index: int) -> np.ndarray:
        if not 0 <= index < self.num_systems:
            raise IndexError(f"system {index} of {self.num_systems}")
        rng = np.random.default_rng([_SYSTEMS, self.seed, index])
        return sample_system(rng, self.n, beta=self.beta, singular_values=self.draw)  # type: ignore[arg-type]


def jitter_system(system: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A slightly changed copy of `system`, another view of the same class (section 3.3).

    Four tries to find one that still contracts; after that the system itself.

    Args:
        kind: "scale": one map, A and b, times U(0.8, 1.1). "svd": turn U or V of one map by up to half a radian, or
            shift its b. "sval": scale the singular values of one map within the sigma-factor's range. "fractaldb-K":
            one number of every map times a common factor, one of five from 1 - K/5 to 1 + K/5. "none": nothing.
    """
    if kind == "none":
        return system
    change = _jitter(kind)
    for _ in range(JITTER_TRIES):
        changed = change(system.copy(), rng)
        if singular_values_of(changed).max() <= 1:
            return changed
    return system


def _jitter(kind: str) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    if kind.startswith("fractaldb-") and kind.removeprefix("fractaldb-").isdigit():
        strength = int(kind.removeprefix("fractaldb-")) / 10
        return lambda system, rng: _jitter_entries(system, rng, np.linspace(1 - 2 * strength, 1 + 2 * strength, 5))
    known = {"scale": _jitter_scale, "svd": _jitter_svd, "sval": _jitter_singular_values}
    if kind not in known:
        raise ZooError(f"jitter is one of {', '.join(JITTERS)}, not {kind!r}.")
    return known[kind]


def _jitter_entries(system: np.ndarray, rng: np.random.Generator, factors: np.ndarray) -> np.ndarray:
    row, column = np.divmod(rng.integers(0, 6, len(system)), 3)
    system[np.arange(len(system)), row, column] *= rng.choice(factors)
    return system


def _jitter_scale(system: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    system[rng.integers(0, len(system))] *= rng.uniform(0.8, 1.1)
    return system


def _jitter_svd(system: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    index, part = divmod(int(rng.integers(0, len(system) * 3)), 3)
    if part == 2:
        system[index, :, 2] += rng.uniform(-0.5, 0.5, 2)
        return system
    turn = _rotation(np.array([rng.uniform(-0.5, 0.5)]))[0]
    u, s, v = np.linalg.svd(system[index, :, :2])
    u, v = (turn @ u, v) if part == 0 else (u, turn @ v)
    system[index, :, :2] = u * s @ v
    return system


def _jitter_singular_values(system: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    index = rng.integers(0, len(system))
    shares = singular_values_of(system) @ [1, 2]
    low, high = sigma_range(len(system))
    own, others = shares[index], shares.sum() - shares[index]
    factor = rng.uniform((low - others) / own, (high - others) / own)
    u, s, v = np.linalg.svd(system[index, :, :2])
    system[index, :, :2] = u * (s * factor) @ v
    return system


def _rotation(angles: np.ndarray) -> np.ndarray:
    """(k,) angles in radians to (k, 2, 2)."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _check_sigma(n: int, sigma: float) -> None:
    if not 0 < sigma < 3 * n:
        raise ZooError(f"The sigma-factor of {n} maps lies between 0 and {3 * n}, not at {sigma}.")


_SYSTEMS = 0xF2AC  # keeps these draws apart from others of the same seed
