"""Labelled clouds for zero-shot evaluation and few-shot learning."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch.utils.data import DataLoader

from datamodules.audit import Audit, bytes_key, read_all
from datamodules.base import ZooDataModule
from datamodules.clip2point.clouds import CloudDataset, few_shots, find_shapes
from datamodules.clip2point.names import CLASS_LISTS
from datamodules.folds import check_fold, held_out_by_fold
from zoo.nn.points import Shape


class PointCloudDataModule(ZooDataModule):
    """Any labelled shapes as `(clouds (B, num_points, 3), labels)` batches.

    Args:
        root: where the shapes are (`datamodules.clip2point.clouds.find_shapes` has the layouts).
        class_list: "modelnet10", "modelnet40", "scanobjectnn", or None for the folders that are there.
        num_points: of a cloud.
        shots: train on so many examples a class, drawn by `seed`; None takes all.
        thinning: how a cloud of more points is thinned: "random" or "farthest" (ScanObjectNN's zero-shot protocol).
        test_root: other place for the test split, such as the authors' sampled clouds ModelNet40_Ply.
        h5_variant: which h5 files (ScanObjectNN).
        batch_size, num_workers, pin_memory: see `ZooDataModule`.
        val_fraction, seed: the held-out share of data that has no split of its own, and all draws. Test clouds are the
            same in every run; training clouds are drawn anew each time.
        folds, fold: hold out part `fold` of `folds` of the training side instead (`zoo kfold`);
            None for the usual split.
    """

    def __init__(
        self,
        root: str,
        class_list: str | None = None,
        num_points: int = 1024,
        shots: int | None = None,
        thinning: Literal["random", "farthest"] = "random",
        test_root: str | None = None,
        h5_variant: str = "objectdataset",
        batch_size: int = 32,
        val_fraction: float = 0.1,
        seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        num_workers: int = 4,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        self.save_hyperparameters(logger=False)
        check_fold(folds, fold)
        self.train_data: CloudDataset | None = None
        self.test_data: CloudDataset | None = None

    def _open(self, split: Literal["train", "test"]) -> CloudDataset:
        h = self.hparams
        if h.folds is not None:
            return self._fold(split)
        root = h.test_root if split == "test" and h.test_root else h.root
        shapes, labels, classes = find_shapes(
            root, split, class_list=h.class_list, h5_variant=h.h5_variant, val_fraction=h.val_fraction, seed=h.seed
        )
        seed = h.seed if split == "test" else None
        return CloudDataset(shapes, labels, classes, h.num_points, h.thinning, seed)

    def _fold(self, split: Literal["train", "test"]) -> CloudDataset:
        h = self.hparams
        shapes, labels, classes = find_shapes(
            h.root, "train", class_list=h.class_list, h5_variant=h.h5_variant, val_fraction=0.0, seed=h.seed
        )
        every = CloudDataset(shapes, labels, classes, h.num_points, h.thinning, h.seed if split == "test" else None)
        out = held_out_by_fold(labels, h.folds, h.fold, h.seed)
        return every.subset(np.flatnonzero(out == (split == "test")).tolist())

    def setup(self, stage: str | None = None) -> None:
        if self.test_data is None:
            self.test_data = self._open("test")
        if self.train_data is None and stage in (None, "fit"):
            self.train_data = self._open("train")
            if self.hparams.shots is not None:
                data, h = self.train_data, self.hparams
                self.train_data = data.subset(few_shots(data.labels, h.shots, h.seed, data.classes))

    @property
    def classes(self) -> list[str]:
        """Class names as the folders have them, known after `setup`."""
        assert self.test_data is not None, "call setup() first"
        return self.test_data.classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def prompt_names(self) -> list[str]:
        """Class names as prompts have them: those of the list, or the folders' with blanks for underscores."""
        if self.hparams.class_list:
            return list(CLASS_LISTS[self.hparams.class_list][1])
        return [name.replace("_", " ") for name in self.classes]

    def audit(self, read: bool = True) -> Audit:
        self.setup()
        assert self.train_data is not None
        assert self.test_data is not None
        found, data = Audit(), {"training": self.train_data, "validation": self.test_data}
        counts = {side: len(part) for side, part in data.items()}
        found.sides(counts, "shapes")
        found.class_counts({side: part.labels for side, part in data.items()}, self.classes)
        if not read:
            return found

        def look(side: str, index: int) -> tuple[int, bool, str]:
            shape = data[side].shapes[index]
            data[side][index]  # as a cloud: a mesh without area, fewer points than none
            return len(shape.vertices), shape.faces is not None, bytes_key(np.asarray(shape.vertices))

        seen = read_all(found, counts, look, "shapes")
        rows = [row for part in seen.values() for row in part.values()]
        found.spread("points of a shape", [row[0] for row in rows])
        found.facts["kinds"] = f"{sum(row[1] for row in rows)} meshes, {sum(not row[1] for row in rows)} clouds"
        paths = {side: getattr(part.shapes, "paths", None) for side, part in data.items()}
        keys = {
            side: {str(paths[side][i]) if paths[side] else f"{side} {i}": row[2] for i, row in part.items()}
            for side, part in seen.items()
        }
        found.leaks(keys, "shapes")
        return found

    def raw_sample(self) -> Shape:
        """A shape as a user would give it to a model's `preprocess`."""
        self.setup("test")
        assert self.test_data is not None
        return self.test_data.shapes[0]

    def train_dataloader(self) -> DataLoader:
        assert self.train_data is not None
        # As in the official code the last batch may be short - but not a single cloud, which BatchNorm cannot take.
        lonely = len(self.train_data) % self.batch_size == 1
        return self.loader(self.train_data, train=True, drop_last=lonely)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.test_data, train=False)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def labelled_dataloaders(self) -> tuple[DataLoader, DataLoader]:
        """Training and test clouds, both complete and in order: what feature probes need."""
        self.setup()
        return self.loader(self.train_data, train=False), self.loader(self.test_data, train=False)
