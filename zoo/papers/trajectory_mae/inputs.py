"""The user's raw scene to the batch that the models take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.driving.features import Frame, Sample, collate, localise, make_sample, sample_from_arrays
from zoo.driving.files import MapSource, read_any_scene
from zoo.driving.maps import VectorMap
from zoo.errors import ZooError

_WANTED = (
    "A scene is the path of an Argoverse 1 CSV (with map_files beside or above it) or Argoverse 2 scenario (.parquet), "
    '{"scene": CSV, "map": map folder}, or {"history": (20, 2) positions, "map": VectorMap or centre lines}'
)


def to_tensors(batch: Sample) -> dict[str, Tensor]:
    """NumPy batch to tensors; float64 stays only for what leads back to the city frame."""
    return {key: torch.from_numpy(value) for key, value in batch.items()}


def read_raw(raw: Any) -> tuple[Sample, Frame]:
    """One raw scene to its forecasting sample and frame. Raises `ZooError` that says what a scene is."""
    if isinstance(raw, (str, os.PathLike)):
        raw = {"scene": raw}
    if not isinstance(raw, Mapping) or not ({"scene"} <= set(raw) or {"history", "map"} <= set(raw)):
        raise ZooError(f"{_WANTED}; this is a {type(raw).__name__}.")
    if "history" in raw:
        return sample_from_arrays(raw["history"], raw["map"])
    path = Path(raw["scene"]).expanduser()
    if not path.is_file():
        raise ZooError(f"There is no scene {path}.")
    scene = read_any_scene(path, need_future=False)
    given = raw.get("map")
    if isinstance(given, VectorMap):
        vector_map = given
    else:
        vector_map = MapSource(None if given is None else Path(given).expanduser()).of(path, scene.city)
    local = localise(scene, vector_map)
    return make_sample(local, history_only=True), local.frame


def preprocess_scene(raw: Any) -> dict[str, Tensor]:
    """A raw scene, or a list of them, to a batch on the CPU."""
    many = list(raw) if isinstance(raw, (list, tuple)) else [raw]
    if not many:
        raise ZooError(f"{_WANTED}; this list is empty.")
    return to_tensors(collate([read_raw(one)[0] for one in many]))
