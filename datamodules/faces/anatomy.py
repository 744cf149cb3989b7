"""A schematic face as numbers: 68 points in the 300-W order in space, a mesh around them, identity, expression, pose.

Everything is made up: proportions are drawn from formulas, not measured on people. Coordinates of the template: x to
the right of the picture, y down, z towards the camera; half a head is about 1 wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ACTION_UNITS = (1, 2, 4, 5, 6, 12, 15, 25, 26, 43)
"""Numbers of the facial action units that a rendered face has, intensity 0 to 5: inner and outer brow raised, brow
lowered, upper lid raised, cheek raised, lip corners pulled and depressed, lips part, jaw drop, eyes closed."""
SHAPE_DIMS = 12
COLOUR_DIMS = 12


@dataclass(frozen=True)
class Person:
    """What stays the same over the pictures of one identity.

    Attributes:
        shape: (12,) proportions, about standard normal. colour: (12,) skin, hair, eyes, lips and hair style, 0 to 1.
    """

    shape: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True)
class Face:
    """One face before it is drawn.

    Attributes:
        vertices: (V, 3) of the mesh without pose; the first 68 are the landmarks. turned: the same after the pose.
        units: (10,) intensities 0 to 5 of `ACTION_UNITS`. affect: valence and arousal, -1 to 1, made from the units.
        pose: yaw, pitch, roll in radians.
    """

    vertices: np.ndarray
    turned: np.ndarray
    units: np.ndarray
    affect: np.ndarray
    pose: np.ndarray


def make_person(rng: np.random.Generator) -> Person:
    """A new identity."""
    return Person(rng.standard_normal(SHAPE_DIMS).clip(-2.2, 2.2), rng.random(COLOUR_DIMS))


def make_face(person: Person, rng: np.random.Generator, max_yaw: float = 0.4) -> Face:
    """A picture's worth of expression and pose for a person."""
    units = draw_units(rng)
    points = apply_expression(apply_shape(template(), person.shape), units)
    mesh, weights = _mesh_template()
    inner = mesh[68:] + weights @ (points - template())  # the skin between the landmarks goes with them
    vertices = np.concatenate([points, inner])
    pose = np.array([rng.uniform(-max_yaw, max_yaw), rng.normal(0, 0.1), rng.normal(0, 0.08)]).clip(-0.9, 0.9)
    return Face(vertices, vertices @ rotation(pose).T, units, affect_of(units), pose)


@lru_cache(maxsize=1)
def template() -> np.ndarray:
    """(68, 3): the average face at rest."""
    xy = np.zeros((68, 2))
    angle = np.linspace(1.05 * np.pi, -0.05 * np.pi, 17)
    xy[:17] = np.stack([0.93 * np.cos(angle), 0.12 + 1.08 * np.sin(angle)], axis=1)
    along = np.linspace(-1, 1, 5)
    brow = np.stack([-0.45 + 0.27 * along, -0.47 - 0.07 * (1 - along**2) - 0.02 * along], axis=1)
    xy[17:22] = brow
    xy[22:27] = (brow * [-1, 1])[::-1]
    xy[27:31] = np.stack([np.zeros(4), np.linspace(-0.22, 0.22, 4)], axis=1)
    xy[31:36] = np.stack([0.19 * along, 0.34 + 0.03 * (1 - along**2)], axis=1)
    eye = np.array([[-0.17, 0], [-0.07, -0.078], [0.07, -0.078], [0.17, 0.01], [0.07, 0.062], [-0.07, 0.062]])
    xy[36:42] = eye + np.array([-0.43, -0.2])
    xy[42:48] = (eye * [-1, 1])[[3, 2, 1, 0, 5, 4]] + [0.43, -0.2]
    upper = np.array([[-0.34, 0], [-0.2, -0.06], [-0.07, -0.1], [0, -0.085], [0.07, -0.1], [0.2, -0.06], [0.34, 0]])
    lower = np.array([[0.22, 0.09], [0.09, 0.125], [0, 0.13], [-0.09, 0.125], [-0.22, 0.09]])
    inner = np.array(
        [[-0.29, 0], [-0.1, -0.02], [0, -0.015], [0.1, -0.02], [0.29, 0], [0.1, 0.015], [0, 0.02], [-0.1, 0.015]]
    )
    xy[48:68] = np.concatenate([upper, lower, inner]) + np.array([0, 0.68])
    z = _depth(xy)
    z[27:31] += [0.05, 0.16, 0.27, 0.38]
    z[31:36] += [0.08, 0.16, 0.2, 0.16, 0.08]
    z[48:68] += 0.05
    return np.column_stack([xy, z])


def _depth(xy: np.ndarray) -> np.ndarray:
    """The head without nose, an ellipsoid."""
    inside = 1 - (xy[:, 0] / 1.08) ** 2 - ((xy[:, 1] - 0.05) / 1.45) ** 2
    return 0.95 * np.sqrt(np.clip(inside, 0.02, None))


@lru_cache(maxsize=1)
def _mesh_template() -> tuple[np.ndarray, np.ndarray]:
    """Mesh vertices (V, 3), landmarks first, and how much each landmark's move carries the others, (V - 68, 68)."""
    points = template()
    x, y = np.meshgrid(np.linspace(-0.84, 0.84, 13), np.linspace(-0.72, 1.1, 15))
    grid = np.stack([x.ravel(), y.ravel()], axis=1)
    grid = grid[(grid[:, 0] / 0.86) ** 2 + ((grid[:, 1] - 0.12) / 1.0) ** 2 < 1]
    apart = np.linalg.norm(grid[:, None] - points[None, :, :2], axis=-1).min(axis=1) > 0.07
    grid = grid[apart]
    distance = np.linalg.norm(grid[:, None] - points[None, :, :2], axis=-1)
    z = _depth(grid)
    nose = np.exp(-((grid[:, 0] / 0.13) ** 2)) * np.interp(
        grid[:, 1], [-0.3, -0.2, 0.22, 0.38, 0.45], [0, 0.05, 0.38, 0.1, 0]
    )
    weights = np.exp(-((distance / 0.22) ** 2))
    weights /= weights.sum(axis=1, keepdims=True) + 0.05
    return np.concatenate([points, np.column_stack([grid, z + nose])]), weights


@lru_cache(maxsize=1)
def mesh_triangles() -> np.ndarray:
    """(T, 3) corners of the mesh's triangles, the same for every face: Delaunay's over the template from in front."""
    from scipy.spatial import Delaunay

    return Delaunay(_mesh_template()[0][:, :2]).simplices.astype(np.int64)


def num_vertices() -> int:
    """Vertices of every mesh."""
    return len(_mesh_template()[0])


def apply_shape(points: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Proportions of a person: (68, 3) and (12,) to (68, 3)."""
    p, s = points.copy(), shape * 0.1
    jaw, brows, nose, eyes, mouth = p[:17], p[17:27], p[27:36], p[36:48], p[48:68]
    low = np.clip(jaw[:, 1], 0, None)
    jaw[:, 0] *= 1 + 0.9 * s[0] * low  # square or pointed
    jaw[:, 1] += s[1] * 1.2 * low**2  # long or short
    for side, part in ((-1, eyes[:6]), (1, eyes[6:])):
        centre = part[:, :2].mean(axis=0)
        part[:, 0] = centre[0] + (part[:, 0] - centre[0]) * (1 + 1.3 * s[2])
        part[:, 1] = centre[1] + (part[:, 1] - centre[1]) * (1 + 2.6 * s[3])
        part[:, 0] += side * 0.5 * s[4]
        part[:, 1] += side * (part[:, 0] - centre[0]) * -1.2 * s[5]  # slant
    brows[:, 1] -= 0.5 * s[6]
    brows[:5, 0] -= 0.35 * s[4]
    brows[5:, 0] += 0.35 * s[4]
    nose[4:, 0] *= 1 + 2.4 * s[7]
    nose[:, 1] += np.linspace(0, 1, 9).clip(0, 0.5) * 1.1 * s[8]
    nose[:, 2] += np.array([0.2, 0.5, 0.8, 1, 0.3, 0.5, 0.5, 0.5, 0.3]) * 0.8 * s[9]
    mouth[:, 0] *= 1 + 1.5 * s[10]
    mouth[:, 1] = 0.68 + (mouth[:, 1] - 0.68) * (1 + 2.4 * s[11]) + 0.6 * s[8] + 0.5 * s[1]
    return p


def draw_units(rng: np.random.Generator) -> np.ndarray:
    """(10,) intensities 0 to 5: each unit is often absent; what goes together in faces goes together here."""
    units = np.where(rng.random(10) < 0.35, rng.uniform(0, 5, 10), 0.0)
    mood = rng.random()
    strength = rng.uniform(1, 5)
    if mood < 0.3:  # smile
        units[[4, 5]] = strength * rng.uniform(0.6, 1, 2)
        units[[2, 6]] = 0
    elif mood < 0.5:  # surprise
        units[[0, 1, 3, 8]] = strength * rng.uniform(0.5, 1, 4)
        units[9] = 0
    elif mood < 0.7:  # anger or sadness
        units[[2, 6]] = strength * rng.uniform(0.5, 1, 2)
        units[[4, 5]] = 0
    units[3] = 0 if units[9] > 1 else units[3]
    units[7] = max(units[7], 0.6 * units[8])
    return units.clip(0, 5)


def affect_of(units: np.ndarray) -> np.ndarray:
    """Valence and arousal of (10,) intensities, by a formula: proxies, not ratings of people."""
    u = dict(zip(ACTION_UNITS, units / 5, strict=True))
    valence = 1.1 * u[12] + 0.4 * u[6] - 0.9 * u[15] - 0.7 * u[4]
    arousal = 0.6 * u[5] + 0.5 * u[26] + 0.35 * (u[1] + u[2]) + 0.3 * u[4] + 0.3 * u[12] - 0.9 * u[43] - 0.25
    return np.tanh([1.2 * valence, 1.2 * arousal])


def apply_expression(points: np.ndarray, units: np.ndarray) -> np.ndarray:
    """What the action units do to (68, 3) points."""
    p, u = points.copy(), dict(zip(ACTION_UNITS, units / 5, strict=True))
    p[[20, 21, 22, 23], 1] -= np.array([0.09, 0.17, 0.17, 0.09]) * u[1]
    p[[17, 18, 19, 24, 25, 26], 1] -= np.array([0.14, 0.16, 0.08, 0.08, 0.16, 0.14]) * u[2]
    p[17:27, 1] += np.array([0.03, 0.06, 0.09, 0.12, 0.15, 0.15, 0.12, 0.09, 0.06, 0.03]) * u[4]
    p[[20, 21, 22, 23], 0] += np.array([0.03, 0.07, -0.07, -0.03]) * u[4]
    upper, lower = [37, 38, 43, 44], [41, 40, 47, 46]
    p[upper, 1] -= 0.055 * u[5]
    p[lower, 1] -= 0.035 * u[6]
    gap = p[lower, 1] - p[upper, 1]
    p[upper, 1] += 0.95 * gap * u[43]
    corners, sides = [48, 54, 60, 64], [49, 53, 55, 59]
    out = np.sign(p[corners, 0])
    p[corners, 0] += out * 0.11 * u[12]
    p[corners, 1] += -0.16 * u[12] + 0.15 * u[15]
    p[sides, 1] += -0.06 * u[12] + 0.06 * u[15]
    p[sides, 0] += np.sign(p[sides, 0]) * 0.05 * u[12]
    drop = 0.08 * u[25] + 0.26 * u[26]
    p[[65, 66, 67], 1] += drop
    p[55:60, 1] += drop * np.array([0.6, 0.95, 1.0, 0.95, 0.6])
    p[[50, 51, 52, 61, 62, 63], 1] -= 0.03 * u[25]
    p[[48, 54, 60, 64], 1] += 0.25 * drop
    p[4:13, 1] += 0.85 * 0.26 * u[26] * np.array([0.3, 0.6, 0.85, 1, 1, 1, 0.85, 0.6, 0.3])
    return p


def rotation(pose: np.ndarray) -> np.ndarray:
    """(3, 3) of yaw (turns the head to the right of the picture), pitch (down) and roll, applied in this order."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(pose), np.sin(pose)
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return roll @ pitch @ yaw
