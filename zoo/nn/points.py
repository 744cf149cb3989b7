"""Shapes from files as point clouds: what `preprocess` and the data modules agree on.

Meshes are sampled uniformly over their surface; clouds are thinned. What comes out is centred and fits the unit sphere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extras import require

MESH_SUFFIXES = (".off", ".ply", ".obj", ".stl")
SHAPE_SUFFIXES = (*MESH_SUFFIXES, ".xyz", ".npy")
Thinning = Literal["random", "farthest"]


@dataclass(frozen=True)
class Shape:
    """A mesh, or a cloud if `faces` is None.

    Attributes:
        vertices: (V, 3) float64, finite.
        faces: (F, 3) indices into them; polygons come as triangles.
        name: what to call it in an error, usually its path.
    """

    vertices: np.ndarray
    faces: np.ndarray | None
    name: str


def read_shape(path: str | Path) -> Shape:
    """Reads a mesh (OFF, PLY, OBJ, STL) or a cloud (PLY without faces, XYZ, NPY of (N, 3 or more)).

    ModelNet's OFF files with counts glued to the header, comments, blank lines and polygons are fine.
    Raises `ZooError` that names a file that is missing, damaged, empty, or holds coordinates that are no numbers.
    """
    path = Path(path)
    if path.suffix.lower() not in SHAPE_SUFFIXES:
        raise ZooError(f"{path} is none of the known kinds of shape: {', '.join(SHAPE_SUFFIXES)}.")
    if not path.is_file():
        raise ZooError(f"There is no file {path}.")
    faces = None
    try:
        if path.suffix.lower() == ".npy":
            vertices = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".xyz":
            vertices = np.atleast_2d(np.loadtxt(path, comments=("#", "//"), ndmin=2))
        else:
            vertices, faces = _read_mesh(path)
    except ZooError:
        raise
    except Exception as error:  # whatever the reader of this format raises
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise ZooError(f"Cannot read the shape {path}: it is damaged or not what its name says ({reason}).") from error
    return check_shape(vertices, faces, str(path))


def _read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    require("trimesh", extra="pointcloud", why=f"{path.suffix} files are read with trimesh")
    import trimesh

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = trimesh.load(path, process=False, skip_materials=True)
        if isinstance(loaded, trimesh.Scene):  # several objects, or nothing at all
            loaded = loaded.to_geometry() if loaded.geometry else trimesh.PointCloud(np.zeros((0, 3)))
    return np.asarray(loaded.vertices), np.asarray(loaded.faces) if hasattr(loaded, "faces") else None


def check_shape(vertices: Any, faces: Any, name: str) -> Shape:
    """A `Shape` of arrays that make sense, or a `ZooError` that says in a line what is wrong with `name`."""
    vertices = np.asarray(vertices)
    if vertices.size == 0:
        raise ZooError(f"{name} is empty: it holds no points.")
    if vertices.ndim != 2 or vertices.shape[1] < 3 or vertices.dtype.kind not in "fiu":
        raise ZooError(f"{name} should hold points as numbers (N, 3), not {vertices.dtype} of shape {vertices.shape}.")
    vertices = vertices[:, :3].astype(np.float64)
    bad = int((~np.isfinite(vertices).all(axis=1)).sum())
    if bad:
        raise ZooError(f"{name} has {bad} of {len(vertices)} points with coordinates that are NaN or infinite.")
    if faces is not None and len(faces):
        faces = np.asarray(faces)
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ZooError(f"{name} has a face with vertex {int(faces.max())}, but only {len(vertices)} vertices.")
        return Shape(vertices, faces, name)
    return Shape(vertices, None, name)


def face_areas(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """(F,) areas and (F, 3) unit normals of a mesh; a degenerate face has area and normal 0."""
    assert shape.faces is not None
    corners = shape.vertices[shape.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(cross, axis=1)
    return length / 2, cross / np.where(length > 0, length, 1)[:, None]


def sample_surface(shape: Shape, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` points uniform over a mesh's area: (count, 3), and the faces (count,) that they lie on."""
    assert shape.faces is not None
    areas, _ = face_areas(shape)
    total = areas.sum()
    if not np.isfinite(total) or total <= 0:
        raise ZooError(f"{shape.name} has no surface: all its {len(areas)} faces are degenerate.")
    chosen = np.searchsorted(np.cumsum(areas) / total, rng.random(count), side="right").clip(max=len(areas) - 1)
    first, second, third = shape.vertices[shape.faces[chosen]].transpose(1, 0, 2)
    u, v = rng.random((2, count, 1))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    return first + u * (second - first) + v * (third - first), chosen


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """Indices (count,) of farthest-point sampling of (N, 3), starting with point 0."""
    chosen = np.zeros(count, dtype=np.int64)
    distance = np.full(len(points), np.inf)
    for step in range(1, count):
        difference = points - points[chosen[step - 1]]
        np.minimum(distance, np.einsum("ij,ij->i", difference, difference), out=distance)
        chosen[step] = distance.argmax()
    return chosen


def normalize_cloud(points: np.ndarray, name: str = "The cloud") -> np.ndarray:
    """Centred on its mean and divided by its largest norm: (N, 3) float32 in the unit sphere."""
    points = points - points.mean(axis=0, keepdims=True)
    radius = np.sqrt(np.square(points).sum(axis=1).max())
    if not radius > 1e-12:
        raise ZooError(f"{name} has no extent: all its points are the same.")
    return (points / radius).astype(np.float32)


def to_cloud(shape: Shape, count: int, rng: np.random.Generator, thinning: Thinning = "random") -> np.ndarray:
    """`count` points of a shape in the unit sphere: (count, 3) float32.

    A mesh is sampled uniformly over its area and then normalised. A cloud is thinned to a random subset that is then
    normalised (pre-training), or normalised and thinned by farthest points (the zero-shot protocol of ScanObjectNN).
    """
    if count < 2:
        raise ZooError(f"A cloud needs at least 2 points, not {count}.")
    if shape.faces is not None:
        return normalize_cloud(sample_surface(shape, count, rng)[0], shape.name)
    points = shape.vertices
    if len(points) < count:
        raise ZooError(f"{shape.name} has {len(points)} points, fewer than the {count} asked for: lower num_points.")
    if thinning == "farthest":
        points = normalize_cloud(points, shape.name)
        return points[farthest_points(points, count)]
    return normalize_cloud(points[rng.permutation(len(points))[:count]], shape.name)


def preprocess_shapes(raw: Any, num_points: int, seed: int = 0) -> Tensor:
    """Paths, arrays (N, 3) or trimesh meshes, one or a list, to clouds (B, num_points, 3) in the unit sphere.

    Clouds of more points are thinned by farthest points. The same input gives the same points: `seed` draws them.
    Raises `ZooError` for what `read_shape` and `to_cloud` refuse.
    """
    if isinstance(raw, Tensor | np.ndarray) and raw.ndim == 3:
        raw = list(raw)
    items: Sequence[Any] = raw if isinstance(raw, list | tuple) else [raw]
    if not items:
        raise ZooError("There are no shapes to preprocess: the list is empty.")
    clouds = []
    for item in items:
        shape = _as_shape(item)
        clouds.append(to_cloud(shape, num_points, np.random.default_rng(seed), "farthest"))
    return torch.from_numpy(np.stack(clouds))


def is_single(raw: Any) -> bool:
    """Whether `raw`, as `preprocess_shapes` takes it, is one shape and not a list or batch of them."""
    return not isinstance(raw, list | tuple) and getattr(raw, "ndim", 2) < 3


def _as_shape(item: Any) -> Shape:
    if isinstance(item, Shape):
        return item
    if isinstance(item, str | Path):
        return read_shape(item)
    if isinstance(item, Tensor | np.ndarray):
        return check_shape(item.detach().cpu().numpy() if isinstance(item, Tensor) else item, None, "The cloud")
    if hasattr(item, "vertices"):  # trimesh's meshes and clouds
        return check_shape(item.vertices, getattr(item, "faces", None), "The mesh")
    raise ZooError(f"Give shapes as paths, arrays (N, 3) or trimesh meshes, not as {type(item).__name__}.")
