"""Files of systems: the official pickle (read without running anything in it) and the same as `.npz`."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.fractals.systems import check_system
from zoo.errors import ZooError

_PICKLE_GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    # numpy 1 and numpy 2 name the module of these two differently.
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


class StoredSystems:
    """Systems held in memory, packed: callable like `SeededSystems`."""

    def __init__(self, systems: list[np.ndarray]) -> None:
        self._offsets = np.concatenate([[0], np.cumsum([len(system) for system in systems])])
        self._maps = np.concatenate(systems)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __call__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"system {index} of {len(self)}")
        return self._maps[self._offsets[index] : self._offsets[index + 1]]


def read_systems(path: str | Path, num_systems: int | None = None, allow_expansion: bool = False) -> StoredSystems:
    """The first `num_systems` systems of a file, checked one by one.

    Args:
        path: the official `.pkl` (`{"params": [{"system": (n, 2, 3)}, ...]}`) or a `.npz` with `n` (k,) and `systems`
            (k, most maps, 2, 3), padded.
        num_systems: None takes all.
        allow_expansion: take systems with singular values above 1, too.

    Raises:
        ZooError: names the file, and the entry where one is bad.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ZooError(f"There is no file of fractal systems {str(path)!r}.")
    if num_systems is not None and num_systems < 1:
        raise ZooError(f"There is at least one system, not {num_systems}.")
    entries = _read_npz(path) if path.suffix == ".npz" else _read_pickle(path)
    if num_systems is not None and len(entries) < num_systems:
        raise ZooError(f"{path} holds {len(entries)} systems, fewer than the {num_systems} that are asked for.")
    chosen = entries[:num_systems]
    if not chosen:
        raise ZooError(f"{path} holds no systems.")
    return StoredSystems(
        [check_system(system, f"{path}, entry {index},", allow_expansion) for index, system in enumerate(chosen)]
    )


def write_systems(path: str | Path, systems: list[np.ndarray]) -> None:
    """Writes the `.npz` that `read_systems` takes."""
    most = max(len(system) for system in systems)
    padded = np.zeros((len(systems), most, 2, 3))
    for row, system in zip(padded, systems, strict=True):
        row[: len(system)] = system
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez_compressed(file, n=np.array([len(system) for system in systems]), systems=padded)
    except OSError as error:
        raise ZooError(f"Cannot write {path}: {error.strerror or error}.") from error


class _NumpyOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PICKLE_GLOBALS:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are let in")


def _read_pickle(path: Path) -> list[Any]:
    try:
        content = _NumpyOnly(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = str(error) or type(error).__name__
        raise ZooError(f"{path} is no file of fractal systems: {reason}.") from error
    params = content.get("params") if isinstance(content, dict) else None
    if not isinstance(params, list):
        raise ZooError(f"{path} is no file of fractal systems: it should hold a list under 'params'.")
    for index, entry in enumerate(params):
        if not isinstance(entry, dict) or "system" not in entry:
            raise ZooError(f"{path}, entry {index}, has no 'system'.")
    return [entry["system"] for entry in params]


def _read_npz(path: Path) -> list[Any]:
    try:
        with np.load(path, allow_pickle=False) as content:
            counts, systems = content["n"], content["systems"]
    except Exception as error:  # so can a damaged archive
        raise ZooError(f"{path} is no file of fractal systems: it should hold the arrays n and systems.") from error
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or systems.ndim != 4 or len(counts) != len(systems):
        shapes = f"{counts.shape} {counts.dtype} and {systems.shape}"
        raise ZooError(f"{path}: n should be (k,) integers and systems (k, maps, 2, 3), not {shapes}.")
    return [system[: int(count)] for system, count in zip(systems, counts, strict=True)]
