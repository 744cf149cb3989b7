"""Labelled shapes from where users have them, as clouds: class folders of meshes and clouds, ModelNet, h5 files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.clip2point.names import CLASS_LISTS, MODELNET40
from zoo.errors import ZooError, did_you_mean
from zoo.extras import require
from zoo.nn.points import SHAPE_SUFFIXES, Shape, Thinning, read_shape, to_cloud

Split = Literal["train", "test"]
_FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "validation")}
_KEPT = 20_000_000  # vertices and faces that stay in memory, about 1 GB


class FileShapes(Sequence[Shape]):
    """Shapes read from files when asked for; small collections stay in memory."""

    def __init__(self, paths: Sequence[str], keep: bool = False) -> None:
        self.paths, self.keep = list(paths), keep
        self._kept: dict[int, Shape] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if index not in self._kept:
            shape = read_shape(self.paths[index])
            size = len(shape.vertices) + (0 if shape.faces is None else len(shape.faces))
            if not self.keep or self._size + size > _KEPT:
                return shape
            self._kept[index] = shape
            self._size += size
        return self._kept[index]


class ArrayShapes(Sequence[Shape]):
    """Clouds of an array (M, N, 3)."""

    def __init__(self, points: np.ndarray, name: str) -> None:
        self.points, self.name = points, name

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        from zoo.nn.points import check_shape

        return check_shape(self.points[index], None, f"{self.name}, object {index},")


class CloudDataset(Dataset):
    """Item i is `(cloud (num_points, 3) float32 in the unit sphere, label)`.

    Args:
        shapes, labels, classes: what there is; `classes` are folder names.
        num_points, thinning: see `zoo.nn.points.to_cloud`.
        seed: draws the points of item i, the same every time, and the finished clouds are kept. None draws new points
            every time, from torch's generator (which Lightning seeds, in workers too).
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        labels: Sequence[int],
        classes: Sequence[str],
        num_points: int = 1024,
        thinning: Thinning = "random",
        seed: int | None = None,
    ) -> None:
        self.shapes, self.labels, self.classes = shapes, list(labels), list(classes)
        self.num_points, self.thinning, self.seed = num_points, thinning, seed
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self._kept:
            return self._kept[index], self.labels[index]
        rng = item_generator(self.seed, index)
        cloud = torch.from_numpy(to_cloud(self.shapes[index], self.num_points, rng, self.thinning))
        if self.seed is not None:
            self._kept[index] = cloud
        return cloud, self.labels[index]

    def subset(self, indices: Sequence[int]) -> CloudDataset:
        """The same with some of the items."""
        shapes = _Chosen(self.shapes, indices)
        labels = [self.labels[index] for index in indices]
        return CloudDataset(shapes, labels, self.classes, self.num_points, self.thinning, self.seed)


class _Chosen(Sequence[Shape]):
    def __init__(self, shapes: Sequence[Shape], indices: Sequence[int]) -> None:
        self.shapes, self.indices = shapes, [int(index) for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.shapes[self.indices[index]]


def item_generator(seed: int | None, index: int) -> np.random.Generator:
    """Of item `index`: the same for the same seed; without a seed a new one, drawn from torch's generator."""
    if seed is None:
        return np.random.default_rng(int(torch.randint(2**62, ()).item()))
    return np.random.default_rng((seed, index))


def few_shots(labels: Sequence[int], shots: int, seed: int, classes: Sequence[str] = ()) -> list[int]:
    """Indices of `shots` items a class, drawn by `seed`; fewer shots are a subset of more."""
    if shots < 1:
        raise ZooError(f"Few-shot learning needs at least 1 example a class, not {shots}.")
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    short = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(np.asarray(labels) == label))
        chosen += members[:shots].tolist()
        if len(members) < shots:
            short.append(classes[label] if len(classes) > label else str(label))
    if short:
        warnings.warn(f"fewer than {shots} examples of {', '.join(short[:5])}: all of them are used", stacklevel=2)
    return sorted(chosen)


# ---------------------------------------------------------------------- finding them

Found = tuple[Sequence[Shape], list[int], list[str]]


def find_shapes(
    root: str | Path,
    split: Split,
    *,
    class_list: str | None = None,
    h5_variant: str = "objectdataset",
    val_fraction: float = 0.1,
    seed: int = 0,
    keep: bool = False,
) -> Found:
    """The shapes of a split, their labels and the class names.

    Args:
        root: a folder of one of these layouts:
            - `<class>/{train,test}/*.off` (ModelNet), or `{train,test}/<class>/*`;
            - `<class>/*`: a stratified share `val_fraction` is held out, by `seed` (0: all are for training);
            - `<label>_*.ply`: the authors' sampled test clouds of ModelNet40 (test only);
            - `training_<h5_variant>.h5` and `test_<h5_variant>.h5`, with `data` (M, N, 3) and `label` (ScanObjectNN).
        split: "train" or "test".
        class_list: "modelnet10", "modelnet40" or "scanobjectnn": fixes which classes there are and their order. None
            takes the folders in alphabetical order.
        h5_variant: the middle of the h5 file's name: `objectdataset_augmentedrot_scale75` is PB_T50_RS.
        keep: keep parsed files in memory.

    Raises `ZooError` that says what was looked for and what was found.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise ZooError(f"There is no data folder {str(path)!r}: give one with --data.root.")
    if class_list is not None and class_list not in CLASS_LISTS:
        raise ZooError(f"There is no class list {class_list!r}.{did_you_mean(class_list, CLASS_LISTS)}")
    if any(path.glob("*.h5")) or any(path.glob("*.hdf5")):
        return _from_h5(path, split, h5_variant, class_list)
    flat = sorted(path.glob("*_*.ply"))
    if flat and not any(entry.is_dir() for entry in path.iterdir()):
        return _labelled_files(path, flat, split)
    known = list(CLASS_LISTS[class_list][0]) if class_list else None
    split_first = next((path / name for name in _FOLDERS["train"] if (path / name).is_dir()), None)
    if split_first is not None:
        folder = next((path / name for name in _FOLDERS[split] if (path / name).is_dir()), None)
        if folder is None:
            raise ZooError(f"{path} has a folder {split_first.name} but none named {' or '.join(_FOLDERS[split])}.")
        classes = known or _subfolders(split_first)
        files = {name: _shape_files(folder / name) for name in _checked(folder, classes)}
    else:
        names = _subfolders(path)
        if not names:
            loose = sum(entry.suffix.lower() in SHAPE_SUFFIXES for entry in path.iterdir())
            raise ZooError(
                f"{path} has no class subfolders ({loose} shapes directly in it). Put shapes into one subfolder a "
                f"class, as in {path.name}/chair/1.off."
            )
        classes = known or names
        files = {}
        nested = any((path / name / sub).is_dir() for name in names for sub in _FOLDERS["train"] + _FOLDERS["test"])
        for name in _checked(path, classes):
            if nested:
                subs = [path / name / sub for sub in _FOLDERS[split] if (path / name / sub).is_dir()]
                files[name] = [file for sub in subs for file in _shape_files(sub)]
            else:
                files[name] = _hold_out(_shape_files(path / name), split, val_fraction, seed)
    paths = [str(file) for name in classes for file in files.get(name, [])]
    labels = [classes.index(name) for name in classes for _ in files.get(name, [])]
    if not paths:
        raise ZooError(f"No shapes for the split {split} under {path} (looked for {', '.join(SHAPE_SUFFIXES)}).")
    return FileShapes(paths, keep), labels, list(classes)


def _checked(folder: Path, classes: Sequence[str]) -> list[str]:
    there = _subfolders(folder)
    unknown = sorted(set(there) - set(classes))
    if unknown:
        raise ZooError(
            f"{folder} has the class {unknown[0]!r}, which is not in the list.{did_you_mean(unknown[0], classes)}"
        )
    return there


def _hold_out(files: list[Path], split: Split, fraction: float, seed: int) -> list[Path]:
    if fraction == 0 and split == "train":
        return files
    if not 0 < fraction < 1:
        raise ZooError(f"val_fraction is a share between 0 and 1, not {fraction}.")
    order = np.random.default_rng(seed).permutation(len(files))
    count = min(max(1, round(len(files) * fraction)), len(files) - 1) if len(files) > 1 else 0
    chosen = set((order[:count] if split == "test" else order[count:]).tolist())
    return [file for index, file in enumerate(files) if index in chosen]


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _shape_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SHAPE_SUFFIXES and file.is_file())


def _labelled_files(root: Path, files: list[Path], split: Split) -> Found:
    if split != "test":
        raise ZooError(f"{root} holds sampled test clouds only: train on the meshes, as ModelNet40_manually_aligned.")
    labels = []
    for file in files:
        label = file.stem.split("_")[0]
        if not label.isdigit() or int(label) >= len(MODELNET40):
            raise ZooError(f"{file} should begin with its label, 0 to {len(MODELNET40) - 1}, as in 8_chair_0890.ply.")
        labels.append(int(label))
    return FileShapes([str(file) for file in files]), labels, list(MODELNET40)


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`data` (M, N, 3) float32 and `label` (M,) int64 of an h5 file. Raises `ZooError` that names it."""
    require("h5py", extra="pointcloud", why="h5 files are read with h5py")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in ("data", "label") if key not in file]
            if missing:
                raise ZooError(f"{path} has no data set {missing[0]!r}; it has {', '.join(file) or 'none'}.")
            points, labels = np.asarray(file["data"]), np.asarray(file["label"]).reshape(-1)
    except OSError as error:
        raise ZooError(f"Cannot read {path}: the file is damaged or no h5 file ({str(error)[:100]}).") from error
    if points.ndim != 3 or points.shape[-1] < 3 or len(points) != len(labels):
        raise ZooError(f"{path} should hold data (M, N, 3) and label (M,), not {points.shape} and {labels.shape}.")
    return points[..., :3].astype(np.float32), labels.astype(np.int64)


def _from_h5(root: Path, split: Split, variant: str, class_list: str | None) -> Found:
    path = root / f"{'training' if split == 'train' else 'test'}_{variant}.h5"
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in root.glob("*.h5"))[:6])
        raise ZooError(f"There is no {path.name} in {root}; it has {there}: choose with --data.h5_variant.")
    points, labels = read_h5(path)
    classes = list(CLASS_LISTS[class_list][0]) if class_list else [str(n) for n in range(int(labels.max()) + 1)]
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ZooError(f"{path} has the label {int(labels.max())}, but there are {len(classes)} classes.")
    return ArrayShapes(points, str(path)), labels.tolist(), classes
