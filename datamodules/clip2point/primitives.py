"""A generated collection of meshes in a dozen classes, written as OFF files in ModelNet's layout.

Real files with their traps: every third has its counts glued to the header, as some of ModelNet's have. Shapes are
y-up and have random proportions; classes differ in build, not in size.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.extras import require

Parts = list[Any]


def write_collection(folder: Path, per_class: dict[str, int], seed: int = 0) -> Path:
    """Writes `<folder>/<class>/<split>/<class>_0001.off` for every class; `per_class` is the number by split.

    Whole or not at all, and left alone if it is there. Returns `folder`.
    """
    if folder.is_dir():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for number, (name, build) in enumerate(CLASSES.items()):
        rng = np.random.default_rng((seed, number))
        count = 0
        for split, wanted in per_class.items():
            place = partial / name / split
            place.mkdir(parents=True)
            for _ in range(wanted):
                count += 1
                write_off(place / f"{name}_{count:04d}.off", build_shape(build, rng), glued=count % 3 == 0)
    partial.rename(folder)
    return folder


def build_shape(build: Callable[[np.random.Generator], Parts], rng: np.random.Generator) -> Any:
    """A mesh of one class: parts joined, turned a little about the vertical, stretched a little, z-up to y-up."""
    require("trimesh", extra="pointcloud", why="the generated meshes are made with trimesh")
    import trimesh

    mesh = trimesh.util.concatenate(build(rng))
    angle = rng.uniform(-0.35, 0.35)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    vertices = (mesh.vertices * rng.uniform(0.9, 1.1, 3)) @ turn.T
    return trimesh.Trimesh(vertices[:, [0, 2, 1]] * [1, 1, -1], mesh.faces, process=False)


def write_off(path: Path, mesh: Any, glued: bool = False) -> None:
    """Writes an OFF file; `glued` puts the counts on the header's line without a blank, as ModelNet's defect has it."""
    header = "OFF" if glued else "OFF\n"
    vertices = "\n".join(" ".join(f"{value:.5f}" for value in row) for row in mesh.vertices)
    faces = "\n".join("3 " + " ".join(map(str, row)) for row in mesh.faces)
    path.write_text(f"{header}{len(mesh.vertices)} {len(mesh.faces)} 0\n{vertices}\n{faces}\n", encoding="ascii")


# ---------------------------------------------------------------------- parts, z-up


def _box(size: Any, at: Any) -> Any:
    import trimesh

    return trimesh.creation.box(size, transform=trimesh.transformations.translation_matrix(at))


def _rod(radius: float, height: float, at: Any, sections: int = 20) -> Any:
    import trimesh

    return trimesh.creation.cylinder(radius, height, sections=sections).apply_translation(at)


def _turned(profile: list[tuple[float, float]], sections: int = 28) -> Any:
    """A body of revolution about z from (radius, height) pairs."""
    import trimesh

    return trimesh.creation.revolve(np.array(profile), sections=sections)


def _ring(major: float, minor: float) -> Any:
    import trimesh

    return trimesh.creation.torus(major, minor, major_sections=28, minor_sections=12)


def _legs(rng: np.random.Generator, x: float, y: float, height: float, round_: bool) -> Parts:
    thick = rng.uniform(0.04, 0.09)
    places = [(sx * (x - thick), sy * (y - thick), height / 2) for sx in (-1, 1) for sy in (-1, 1)]
    return [_rod(thick, height, at) if round_ else _box((2 * thick, 2 * thick, height), at) for at in places]


def _table(rng: np.random.Generator) -> Parts:
    x, y, height = rng.uniform(0.7, 1.2), rng.uniform(0.5, 0.8), rng.uniform(0.6, 1.0)
    top = _box((2 * x, 2 * y, rng.uniform(0.06, 0.12)), (0, 0, height))
    return [top, *_legs(rng, x, y, height, bool(rng.integers(2)))]


def _stool(rng: np.random.Generator) -> Parts:
    radius, height, legs = rng.uniform(0.35, 0.5), rng.uniform(0.8, 1.3), int(rng.integers(3, 5))
    seat = _rod(radius, rng.uniform(0.08, 0.16), (0, 0, height), 28)
    angles, spread = np.arange(legs) * 2 * np.pi / legs, 0.75 * radius
    return [seat, *(_rod(0.05, height, (spread * np.cos(a), spread * np.sin(a), height / 2)) for a in angles)]


def _chair(rng: np.random.Generator) -> Parts:
    x, height, back = rng.uniform(0.4, 0.55), rng.uniform(0.5, 0.8), rng.uniform(0.6, 1.0)
    seat = _box((2 * x, 2 * x, 0.1), (0, 0, height))
    return [seat, _box((2 * x, 0.1, back), (0, x - 0.05, height + back / 2)), *_legs(rng, x, x, height, False)]


def _bed(rng: np.random.Generator) -> Parts:
    x, y, height = rng.uniform(0.6, 0.9), rng.uniform(1.0, 1.3), rng.uniform(0.2, 0.35)
    head = rng.uniform(0.5, 0.8)
    mattress = _box((2 * x, 2 * y, height), (0, 0, 0.25))
    pillow = _box((1.2 * x, 0.4, 0.12), (0, y - 0.35, 0.25 + height / 2 + 0.06))
    boards = [_box((2 * x, 0.08, tall), (0, side * y, tall / 2)) for side, tall in ((1, head), (-1, 0.5 * head))]
    return [mattress, pillow, *boards]


def _shelf(rng: np.random.Generator) -> Parts:
    x, y, height, boards = rng.uniform(0.4, 0.8), rng.uniform(0.2, 0.3), rng.uniform(1.4, 2.0), int(rng.integers(3, 6))
    sides = [_box((0.06, 2 * y, height), (side * x, 0, height / 2)) for side in (-1, 1)]
    return sides + [_box((2 * x, 2 * y, 0.06), (0, 0, level)) for level in np.linspace(0.03, height - 0.03, boards)]


def _cup(rng: np.random.Generator) -> Parts:
    radius, height, wall = rng.uniform(0.4, 0.6), rng.uniform(0.8, 1.2), 0.06
    rim = radius * rng.uniform(1.0, 1.2)
    body = _turned([(0, 0), (radius, 0), (rim, height), (rim - wall, height), (radius - wall, wall), (0, wall)])
    handle = _ring(rng.uniform(0.2, 0.3), 0.05)
    handle.apply_transform([[1, 0, 0, rim + 0.1], [0, 0, -1, 0], [0, 1, 0, height / 2], [0, 0, 0, 1]])
    return [body, handle]


def _bottle(rng: np.random.Generator) -> Parts:
    radius, height, neck = rng.uniform(0.25, 0.4), rng.uniform(0.8, 1.2), rng.uniform(0.08, 0.13)
    top = height + rng.uniform(0.2, 0.3)
    end = top + rng.uniform(0.2, 0.5)
    return [_turned([(0, 0), (radius, 0), (radius, height), (neck, top), (neck, end), (0, end)])]


def _lamp(rng: np.random.Generator) -> Parts:
    height, base = rng.uniform(1.0, 1.6), rng.uniform(0.3, 0.45)
    low, high, shade = rng.uniform(0.4, 0.6), rng.uniform(0.15, 0.3), rng.uniform(0.4, 0.6)
    hood = _turned([(low, height), (high, height + shade), (high - 0.03, height + shade), (low - 0.03, height)])
    return [_rod(base, 0.08, (0, 0, 0.04), 28), _rod(0.04, height + 0.1, (0, 0, height / 2)), hood]


def _container(rng: np.random.Generator) -> Parts:
    x, y, height, wall = *rng.uniform(0.5, 0.8, 2), rng.uniform(0.4, 0.8), 0.06
    walls = [_box((wall, 2 * y, height), (side * x, 0, height / 2)) for side in (-1, 1)]
    walls += [_box((2 * x, wall, height), (0, side * y, height / 2)) for side in (-1, 1)]
    return [_box((2 * x, 2 * y, wall), (0, 0, wall / 2)), *walls]


def _wheel(rng: np.random.Generator) -> Parts:
    major, minor = rng.uniform(0.7, 0.9), rng.uniform(0.08, 0.2)
    spokes = int(rng.integers(2, 4))
    parts = [_ring(major, minor), _rod(rng.uniform(0.1, 0.2), 0.3, (0, 0, 0))]
    for index in range(spokes):
        spoke = _box((2 * major, 0.07, 0.07), (0, 0, 0))
        angle = np.pi * index / spokes
        turn = [[np.cos(angle), -np.sin(angle), 0, 0], [np.sin(angle), np.cos(angle), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        parts.append(spoke.apply_transform(turn))
    for part in parts:  # upright, as on a cart
        part.apply_transform([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, major], [0, 0, 0, 1]])
    return parts


def _stairs(rng: np.random.Generator) -> Parts:
    steps, width = int(rng.integers(3, 7)), rng.uniform(0.4, 0.7)
    tread, rise = rng.uniform(0.22, 0.34), rng.uniform(0.18, 0.3)
    return [_box((2 * width, tread, rise * (k + 1)), (0, tread * k, rise * (k + 1) / 2)) for k in range(steps)]


def _cone(rng: np.random.Generator) -> Parts:
    base, radius, height = rng.uniform(0.5, 0.65), rng.uniform(0.3, 0.42), rng.uniform(1.0, 1.5)
    body = _turned([(0, 0.05), (radius, 0.05), (0.08, height), (0, height)])
    return [_box((2 * base, 2 * base, 0.1), (0, 0, 0.05)), body]


CLASSES: dict[str, Callable[[np.random.Generator], Parts]] = {
    "bed": _bed,
    "bottle": _bottle,
    "box": _container,
    "chair": _chair,
    "cone": _cone,
    "cup": _cup,
    "lamp": _lamp,
    "shelf": _shelf,
    "stairs": _stairs,
    "stool": _stool,
    "table": _table,
    "wheel": _wheel,
}
