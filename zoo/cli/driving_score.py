"""Scores a forecaster on scenes whose future is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoo.errors import ZooError

Scores = dict[str, float]


def score_scenes(
    model: str, path: Path, map_dir: Path | None, no_map: bool, batch_size: int
) -> tuple[int, dict[str, Scores]]:
    """Number of scenes, and minADE_6, minFDE_6, MR_6 of the forecaster and of driving on at constant velocity.

    Args:
        path: a scene or a folder of them. no_map: arcs stand in for lanes, see `zoo.driving.mapless`.
    """
    from zoo.driving.features import collate, localise, make_sample
    from zoo.driving.files import MapSource, read_any_scene, scene_files
    from zoo.driving.mapless import localise_without_map
    from zoo.loading import load
    from zoo.papers.trajectory_mae.inputs import to_tensors
    from zoo.papers.trajectory_mae.metrics import constant_velocity, forecast_errors

    files = [path] if path.is_file() else scene_files(path)
    forecaster: Any = load(model)
    if not hasattr(forecaster, "forecast"):
        raise ZooError(f"{model} is no forecaster.")
    maps = MapSource(map_dir)
    found: dict[str, dict[str, list[torch.Tensor]]] = {"forecaster": {}, "constant velocity": {}}
    for start in range(0, len(files), batch_size):
        samples = []
        for file in files[start : start + batch_size]:
            scene = read_any_scene(file)
            local = localise_without_map(scene) if no_map else localise(scene, maps.of(file, scene.city))
            samples.append(make_sample(local, history_only=True))
        batch = to_tensors(collate(samples))
        for name, paths in (
            ("forecaster", forecaster.predict(batch)[0]),
            ("constant velocity", constant_velocity(batch)),
        ):
            for key, value in forecast_errors(paths, batch["future"]).items():
                found[name].setdefault(key, []).append(value)
    return len(files), {
        name: {key: float(torch.cat(values).mean()) for key, values in sides.items()} for name, sides in found.items()
    }
