"""300W-LP and AFLW2000-3D: pictures with the coefficients of a 3D morphable model, and the meshes of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.faces.layouts import Annotations
from datamodules.faces.normalisation import box_around
from zoo.errors import ZooError


@dataclass(frozen=True)
class ShapeBasis:
    """A linear face model that the user brings (Basel's may not be passed on).

    Attributes:
        mean: (V, 3). shape: (V, 3, S). expression: (V, 3, E). triangles: (T, 3). landmarks: (68,) vertex numbers.
    """

    mean: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray

    def vertices(self, shape: np.ndarray, expression: np.ndarray, rows: Any = slice(None)) -> np.ndarray:
        """(..., S) and (..., E) coefficients to (..., V, 3), or to the vertices `rows` alone."""
        moved = np.tensordot(shape, self.shape[rows], (-1, -1)) + np.tensordot(
            expression, self.expression[rows], (-1, -1)
        )
        return self.mean[rows] + moved


@dataclass(frozen=True)
class Meshes:
    """The meshes of many coefficients, each computed when it is asked for: all of 300W-LP's would fill 80 GB.

    Attributes:
        shape: (n, S). expression: (n, E).
    """

    basis: ShapeBasis
    shape: np.ndarray
    expression: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: int) -> np.ndarray:
        """(V, 3)."""
        return self.basis.vertices(self.shape[index], self.expression[index])

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The vertices `rows` of all meshes, (n, len(rows), 3)."""
        return self.basis.vertices(self.shape, self.expression, rows)

    def mean(self, chosen: np.ndarray) -> np.ndarray:
        """(V, 3): the mean of the chosen meshes is the mesh of their mean coefficients."""
        return self.basis.vertices(self.shape[chosen].mean(axis=0), self.expression[chosen].mean(axis=0))


def read_basis(path: Path) -> ShapeBasis:
    """An `.npz` with `mean`, `shape`, `expression`, `triangles`, `landmarks`, as `ShapeBasis` describes them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in ("mean", "shape", "expression", "triangles", "landmarks")}
    except (OSError, KeyError, ValueError) as error:
        raise ZooError(
            f"{path} is no shape basis (.npz with mean, shape, expression, triangles, landmarks): {error}."
        ) from error
    basis = ShapeBasis(**{name: part.astype(np.float32) if part.dtype.kind == "f" else part
                          for name, part in parts.items()})  # fmt: skip
    count = len(basis.mean)
    if basis.shape.shape[:2] != (count, 3) or basis.expression.shape[:2] != (count, 3):
        raise ZooError(f"{path}: shape and expression need {count} vertices of 3 coordinates each, as mean has.")
    if basis.triangles.max() >= count or basis.landmarks.max() >= count:
        raise ZooError(f"{path}: triangles or landmarks name vertices beyond the {count} there are.")
    return basis


def read_3dmm(root: Path, basis: ShapeBasis) -> Annotations:
    """Every `.jpg` with a `.mat` beside it: `Shape_Para`, `Exp_Para`, and `pt2d` or `pt3d_68` for the box.

    Targets are meshes (n, V, 3) without pose; coefficients beyond those of the basis are not used.
    """
    from scipy.io import loadmat

    files = [path for path in sorted(root.rglob("*.jpg")) if path.with_suffix(".mat").is_file()]
    if not files:
        raise ZooError(f"No .jpg with a .mat beside it under {root}.")
    shapes, expressions, points = [], [], []
    for path in files:
        try:
            values = loadmat(path.with_suffix(".mat"))
            shapes.append(values["Shape_Para"].reshape(-1))
            expressions.append(values["Exp_Para"].reshape(-1))
            both = values["pt3d_68"][:2] if "pt3d_68" in values else values["pt2d"]
        except (KeyError, ValueError, OSError, NotImplementedError) as error:
            raise ZooError(f"{path.with_suffix('.mat')} lacks Shape_Para, Exp_Para or pt2d: {error}.") from error
        if both.shape != (2, 68):
            raise ZooError(f"{path.with_suffix('.mat')} has landmarks of shape {both.shape}, not (2, 68).")
        points.append(np.where(both.T < 0, np.nan, both.T))
    wanted = basis.shape.shape[2], basis.expression.shape[2]
    found = min(map(len, shapes)), min(map(len, expressions))
    if found[0] < wanted[0] or found[1] < wanted[1]:
        raise ZooError(f"The basis takes {wanted} coefficients, the files have {found}.")
    shape = np.stack([s[: wanted[0]] for s in shapes]).astype(np.float32)
    expression = np.stack([e[: wanted[1]] for e in expressions]).astype(np.float32)
    return Annotations(list(files), Meshes(basis, shape, expression), box_around(np.stack(points)))
