"""3D scans of faces with pictures of the same people (MICC Florence), to measure reconstructed meshes against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.images import IMAGE_SUFFIXES
from zoo.errors import ZooError
from zoo.extras import require

SCAN_SUFFIXES = (".obj", ".ply", ".stl", ".off")


@dataclass(frozen=True)
class ScannedPerson:
    """One person's scan and pictures.

    Attributes:
        scan: the file. landmarks: number in the 300-W order, from 0, to its point (3,). images: cropped faces.
    """

    scan: Path
    landmarks: dict[int, np.ndarray]
    images: list[Path]


def read_scans(root: Path) -> list[ScannedPerson]:
    """One folder a person: a scan (`.obj`, `.ply`, `.stl`, `.off`), a `.txt` of the same name with its landmarks, and
    pictures of the face at any depth (MICC's videos as frames, faces cut out).

    A line of the `.txt` is `number x y z`, numbers from 1 as in 300-W: 31 the tip of the nose, 37 and 46 the outer
    corners of the eyes, and at least one more.
    """
    if not root.is_dir():
        raise ZooError(f"There is no folder {str(root)!r}.")
    found = []
    for person in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        scans = [path for path in sorted(person.rglob("*")) if path.suffix.lower() in SCAN_SUFFIXES]
        images = [path for path in sorted(person.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not scans and not images:
            continue
        if len(scans) != 1 or not images:
            raise ZooError(f"{person} has {len(scans)} scans and {len(images)} pictures: one scan and some are wanted.")
        found.append(ScannedPerson(scans[0], _landmarks(scans[0].with_suffix(".txt")), images))
    if not found:
        raise ZooError(f"No folder under {root} has a scan ({', '.join(SCAN_SUFFIXES)}) and pictures.")
    return found


def load_scan(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points (S, 3) and unit normals (S, 3) of a scan's vertices. Raises `ZooError` that names the file."""
    require("trimesh", extra="faces", why="reading scans takes trimesh")
    import trimesh

    try:
        mesh = trimesh.load(path, force="mesh", process=False)
        points, normals = np.asarray(mesh.vertices, float), np.asarray(mesh.vertex_normals, float)
    except Exception as error:  # trimesh's readers raise whatever a broken file makes them stumble over
        raise ZooError(f"Cannot read the scan {path} ({str(error).splitlines()[0][:80] or 'broken'}).") from error
    if not len(points) or not len(mesh.faces) or not np.isfinite(points).all():
        raise ZooError(f"The scan {path} has no surface.")
    return points, normals


def _landmarks(path: Path) -> dict[int, np.ndarray]:
    if not path.is_file():
        raise ZooError(f"There is no {path.name} with landmarks beside the scan: lines of 'number x y z' in {path}.")
    found = {}
    for line, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = text.replace(",", " ").split()
        if not words:
            continue
        try:
            number, point = int(words[0]), np.array(words[1:], dtype=float)
        except ValueError as error:
            raise ZooError(f"{path}, line {line}: expected 'number x y z', found {text[:40]!r}.") from error
        if len(point) != 3 or not 1 <= number <= 68 or not np.isfinite(point).all():
            raise ZooError(f"{path}, line {line}: expected a number from 1 to 68 and x y z, found {text[:40]!r}.")
        found[number - 1] = point
    return found
