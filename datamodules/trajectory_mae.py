"""Driving scenes as padded vector batches: Argoverse 1 or 2 on disk, scenes written by `zoo driving synthesize`, or a
town that is made up in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.audit import Audit, both_sides, bytes_key, most_common, read_all
from datamodules.base import ZooDataModule
from datamodules.folds import check_fold, held_out_by_fold
from zoo.driving.argoverse2 import is_scenario
from zoo.driving.features import LocalScene, Sample, collate, make_sample
from zoo.driving.files import scene_files
from zoo.driving.maps import VectorMap, find_map_folder, write_map
from zoo.driving.scenes import Scene, write_scene
from zoo.driving.store import SceneStore
from zoo.driving.synthesis import generate_scenes
from zoo.driving.towns import make_town
from zoo.errors import ZooError
from zoo.paths import cache_dir

GENERATED = "generated"
_UNSEEN = 1000  # added to the seed for the town that forecasting is shown on


class SceneDataset(Dataset):
    """Samples (see `make_sample`) of the scenes of a store."""

    def __init__(self, store: SceneStore, history_only: bool, indices: Sequence[int] | None = None) -> None:
        self.store, self.history_only = store, history_only
        self.indices: Sequence[int] = range(len(store)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return make_sample(self.local(index), self.history_only)

    def local(self, index: int) -> LocalScene:
        return self.store[self.indices[index]]

    @property
    def names(self) -> list[str]:
        return [self.store.names[index] for index in self.indices]


def to_batch(samples: list[Sample]) -> dict[str, Tensor]:
    """Padded tensors, the scene first in all of them."""
    return {key: torch.from_numpy(value) for key, value in collate(samples).items()}


class DrivingDataModule(ZooDataModule):
    """Batches of vectorised scenes, for pre-training (all 5 s of every road user) or forecasting (2 s, and the truth).

    Args:
        root: a folder with `train/data/*.csv`, `val/data/*.csv` (to predict, `test_obs/data/*.csv`) as in Argoverse 1,
            or one with CSVs in it, of whose runs `val_fraction` is held out; or Argoverse 2's motion forecasting
            (`train/<id>/scenario_<id>.parquet` with its map, `val`, `test`), of which 2 s before and 3 s after the
            present are taken; or "generated".
        map_dir: the `map_files` folder of Argoverse 1; None looks in `root` and above it.
        task: "pretrain" or "forecast".
        batch_size: scenes of one step on one device.
        limit_train: take only the first so many training scenes, for low-data studies; None takes all.
        predict_split: which split `predict` reads: "val" or "test".
        val_fraction: see `root`; also of the generated runs.
        folds, fold: hold out part `fold` of `folds` of the training runs instead (`zoo kfold`);
            None for the usual split.
        cache_dir: where the memory-mapped scenes go; None takes the zoo's cache.
        generated_runs: drives of 25 s over the made-up town (about ten scenes each).
        generated_size: crossings a side of the town.
        augmented_share: share of generated runs on augmented maps.
        unseen_train, unseen_test: scenes of `unseen_scenes`.
        seed: of everything generated.
        num_workers, pin_memory: see `ZooDataModule`; as many processes read the CSVs.
    """

    def __init__(
        self,
        root: str = GENERATED,
        map_dir: str | None = None,
        task: Literal["pretrain", "forecast"] = "pretrain",
        batch_size: int = 64,
        limit_train: int | None = None,
        predict_split: Literal["val", "test"] = "val",
        val_fraction: float = 0.1,
        folds: int | None = None,
        fold: int = 0,
        cache_dir: str | None = None,
        generated_runs: int = 200,
        generated_size: int = 4,
        augmented_share: float = 0.5,
        unseen_train: int = 200,
        unseen_test: int = 200,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        self.save_hyperparameters()
        check_fold(folds, fold)
        if folds is not None and root == GENERATED:
            raise ZooError("data.folds is for scenes in a folder, not for generated ones.")
        if not 0 < val_fraction < 1:
            raise ZooError(f"val_fraction lies between 0 and 1, not at {val_fraction}.")
        if generated_runs < 2 or generated_size < 2:
            raise ZooError("generated_runs and generated_size are at least 2.")
        if min(unseen_train, unseen_test) < 1:
            raise ZooError("unseen_train and unseen_test are at least 1.")
        if limit_train is not None and limit_train < 1:
            raise ZooError(f"limit_train is at least 1, not {limit_train}.")
        for name, path in (("root", root if root != GENERATED else None), ("map_dir", map_dir)):
            if path is not None and not Path(path).expanduser().is_dir():
                raise ZooError(f"data.{name}: there is no folder {path}.")
        self.train_data: SceneDataset | None = None
        self.val_data: SceneDataset | None = None
        self.predict_data: SceneDataset | None = None
        self._town: tuple[VectorMap, list[Scene]] | None = None

    @property
    def history_only(self) -> bool:
        return self.hparams.task == "forecast"

    def setup(self, stage: str | None = None) -> None:
        h = self.hparams
        if self.train_data is None and stage != "predict":
            if h.root == GENERATED:
                train, val = self._generated(h.seed, h.generated_runs, h.augmented_share)
            else:
                train, val = self._from_folder()
            if h.limit_train is not None:
                train = SceneDataset(train.store, train.history_only, train.indices[: h.limit_train])
            self.train_data, self.val_data = train, val
        if stage == "predict" and self.predict_data is None:
            if h.root == GENERATED:
                self.predict_data = self._generated(h.seed, h.generated_runs, h.augmented_share)[1]
            else:
                root = Path(h.root).expanduser()
                first = "test_obs" if (root / "test_obs").is_dir() else "test"  # Argoverse 1, Argoverse 2
                store = self._store(
                    scene_files(root / ("val" if h.predict_split == "val" else first)), need_future=False
                )
                self.predict_data = SceneDataset(store, history_only=True)

    def _generated(self, seed: int, runs: int, share: float) -> tuple[SceneDataset, SceneDataset]:
        town = make_town(seed, self.hparams.generated_size)
        scenes = generate_scenes(town, runs, seed, share)
        held_out = [_run_number(scene) < max(1, round(runs * self.hparams.val_fraction)) for scene in scenes]
        self._town = (town, scenes)
        maps = {town.city: town}

        def part(wanted: bool) -> SceneDataset:
            chosen = [scene for scene, held in zip(scenes, held_out, strict=True) if held is wanted]
            return SceneDataset(SceneStore.from_scenes(chosen, maps), self.history_only)

        return part(False), part(True)

    def _from_folder(self) -> tuple[SceneDataset, SceneDataset]:
        root = Path(self.hparams.root).expanduser()
        if (root / "train").is_dir() and self.hparams.folds is None:
            train, val = (self._store(scene_files(root / split)) for split in ("train", "val"))
            return SceneDataset(train, self.history_only), SceneDataset(val, self.history_only)
        store = self._store(scene_files(root / "train" if (root / "train").is_dir() else root))
        # Windows of one run overlap, so a run is on one side; held-out runs are spread over the names.
        runs = list(dict.fromkeys(_run_name(name) for name in store.names))
        if len(runs) < 2:
            raise ZooError(f"{root} holds scenes of {len(runs)} run: at least two are needed, one of them to hold out.")
        if self.hparams.folds is not None:
            drives = [_run_name(name) for name in store.names]
            out = held_out_by_fold([0] * len(drives), self.hparams.folds, self.hparams.fold, groups=drives)
            kept, held = (
                SceneDataset(store, self.history_only, [i for i, flag in enumerate(out) if flag == side])
                for side in (False, True)
            )
            return kept, held
        count = min(len(runs) - 1, max(1, round(len(runs) * self.hparams.val_fraction)))
        held_out = {runs[(2 * k + 1) * len(runs) // (2 * count)] for k in range(count)}
        sides: tuple[list[int], list[int]] = ([], [])
        for index, name in enumerate(store.names):
            sides[_run_name(name) in held_out].append(index)
        train, val = (SceneDataset(store, self.history_only, side) for side in sides)
        return train, val

    def _store(self, files: list[Path], need_future: bool = True) -> SceneStore:
        from rich.progress import Progress

        h = self.hparams
        maps = Path(h.map_dir).expanduser() if h.map_dir else None
        if maps is None and not all(map(is_scenario, files)):
            maps = find_map_folder(Path(h.root).expanduser())
        cache = Path(h.cache_dir).expanduser() if h.cache_dir else cache_dir() / "driving"
        with Progress(transient=True, disable=len(files) < 1000) as bar:
            task = bar.add_task("reading scenes", total=len(files))
            return SceneStore.from_folder(
                files,
                maps,
                cache,
                need_future=need_future,
                processes=max(1, self.num_workers),
                progress=lambda count: bar.advance(task, count),
            )

    # ------------------------------------------------------------------ loaders

    def loader(self, dataset: Dataset, train: bool, drop_last: bool | None = None) -> DataLoader:
        loader = super().loader(dataset, train, drop_last)
        loader.collate_fn = to_batch
        return loader

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.train_data, train=True)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.val_data, train=False)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader:
        return self.loader(self.predict_data, train=False)  # type: ignore[arg-type]

    @property
    def predict_names(self) -> list[str]:
        """The file of each scene that `predict` goes through, in order."""
        assert self.predict_data is not None, 'call setup("predict") first'
        return self.predict_data.names

    def audit(self, read: bool = True) -> Audit:
        found, data, counts = both_sides(self, "scenes")
        if not read:
            return found

        def look(side: str, index: int) -> tuple[str, int, int, float, str]:
            scene = data[side].local(index)
            agent = scene.tracks[0]
            speed = float(np.linalg.norm(np.diff(agent.xy[:20], axis=0), axis=1).mean() * 10)
            return scene.city, len(scene.tracks), len(scene.lanes), speed, bytes_key(agent.xy, agent.times)

        seen = read_all(found, counts, look, "scenes")
        rows = [row for part in seen.values() for row in part.values()]
        found.facts["cities"] = most_common(row[0] for row in rows)
        found.spread("road users in a scene", [row[1] for row in rows])
        found.spread("lanes within reach", [row[2] for row in rows])
        found.spread("mean speed of the agent", [round(row[3], 1) for row in rows], "m/s")
        if bare := sum(not row[2] for row in rows):
            found.warnings.append(
                f"{bare} of {len(rows)} scenes have no lane within reach: is it the map of the place?"
            )
        if fast := sum(row[3] > 60 for row in rows):
            found.problems.append(f"In {fast} scenes the agent goes faster than 60 m/s: are X and Y metres?")
        keys = {side: {data[side].names[i]: row[4] for i, row in part.items()} for side, part in seen.items()}
        found.leaks(keys, "scenes")
        return found

    # ------------------------------------------------------------------ for reports

    def unseen_scenes(self) -> tuple[SceneDataset, SceneDataset]:
        """Forecasting scenes of another made-up town, without augmentation: few to train on, others to test on.

        No run has scenes in both.
        """
        train, test = self.hparams.unseen_train, self.hparams.unseen_test
        seed = self.hparams.seed + _UNSEEN
        town = make_town(seed, self.hparams.generated_size)
        runs = max(4, -(-(train + test) // 5))
        scenes = generate_scenes(town, runs, seed, augmented_share=0.0)
        share = train / (train + test)
        last = round(runs * share)
        parts = (
            [scene for scene in scenes if _run_number(scene) < last][:train],
            [scene for scene in scenes if _run_number(scene) >= last][:test],
        )
        maps = {town.city: town}
        few, held_out = (SceneDataset(SceneStore.from_scenes(part, maps), history_only=True) for part in parts)
        return few, held_out

    def town(self) -> tuple[VectorMap, list[Scene]] | None:
        """The made-up map and all scenes on it, or None for data from a folder."""
        return self._town

    def raw_sample(self) -> Any:
        """A held-out scene as a user has it: a CSV and the folder of its map."""
        h = self.hparams
        if h.root != GENERATED:
            root = Path(h.root).expanduser()
            folder = root / "val" if (root / "val").is_dir() else root
            scene = scene_files(folder)[0]
            if is_scenario(scene):
                return scene
            return {"scene": scene, "map": Path(h.map_dir).expanduser() if h.map_dir else find_map_folder(root)}
        town = make_town(h.seed, h.generated_size)
        folder = Path(tempfile.mkdtemp(prefix="zoo-driving-"))
        write_map(town, folder)
        return {"scene": write_scene(generate_scenes(town, 1, h.seed, 0.0)[0], folder), "map": folder}


def _run_name(name: str) -> str:
    """The run that a file belongs to: what stands before the window's number, or the whole name."""
    return name.split("_id_")[0]


def _run_number(scene: Scene) -> int:
    """The run that a generated scene was cut from."""
    return int(scene.name.split("_id_")[0].rsplit("_", 1)[1])
