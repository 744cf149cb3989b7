"""Writes forecasts in the file format of Argoverse 1's forecasting challenge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.errors import ZooError
from zoo.extras import imports_of


def write_submission(model: str, root: Path, output: Path, split: str, batch_size: int) -> str:
    """Forecasts every scene of `root`'s split and writes HDF5: one row a waypoint (scene number, x, y, probability).

    Scenes are named by number there, so their files must be (`123.csv`); `ZooError` names one that is not.
    """
    with imports_of("driving", why="a submission is an HDF5 file, written with h5py"):
        import h5py
    from datamodules.trajectory_mae import DrivingDataModule
    from zoo.loading import load

    forecaster: Any = load(model)
    if not hasattr(forecaster, "predict_step") or not hasattr(forecaster, "forecast"):
        raise ZooError(f"{model} is no forecaster.")
    data = DrivingDataModule(str(root), task="forecast", predict_split="val" if split == "val" else "test",
                             batch_size=batch_size)  # fmt: skip
    data.setup("predict")
    names = data.predict_names
    for name in names:
        if Path(name).suffix == ".parquet":
            raise ZooError(
                "Argoverse 2's challenge wants 6 s, and this method forecasts 3 s: only Argoverse 1 can be sent. "
                "zoo driving score compares with the first 3 s."
            )
        if not Path(name).stem.isdecimal():
            raise ZooError(
                f"The benchmark knows scenes by number, and {name} is none: only Argoverse's own can be sent."
            )
    rows, done = [], 0
    for index, batch in enumerate(data.predict_dataloader()):
        with torch.no_grad():
            found = forecaster.predict_step(batch, index)
        for paths, probability in zip(found["trajectories"], found["probabilities"], strict=True):
            modes, steps, _ = paths.shape
            block = np.empty((modes * steps, 4))
            block[:, 0] = int(Path(names[done]).stem)
            block[:, 1:3] = paths.reshape(-1, 2).astype(np.float32)
            block[:, 3] = np.repeat(probability, steps)
            rows.append(block)
            done += 1
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_name(f".{output.name}.new")
    with h5py.File(new, "w") as file:
        file.create_dataset("argoverse_forecasting", data=np.concatenate(rows), compression="gzip", compression_opts=9)
    new.replace(output)
    return f"{output}: {done} scenes, {forecaster.hparams.modes} trajectories each"
