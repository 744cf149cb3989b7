"""What every DataModule shares: loader settings, and normalisation on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.audit import Audit
from datamodules.sampling import EvalBatches, LengthBuckets, SeededCollate, SeededDataset, TrainBatches
from zoo.errors import ZooError
from zoo.seeding import TRANSFER, run_seed, seed_batch


class ZooDataModule(LightningDataModule):
    """Base class of the zoo's DataModules.

    Args:
        batch_size: samples of one step on one device; learning-rate rules read it.
        num_workers: worker processes of each loader.
        pin_memory: page-locked batches, for transfers to a GPU; None decides by whether there is one.
        mean, std: per-channel values in [0, 1]. When given, uint8 image batches (B, C, H, W) are normalised to float
            after they have reached the device: a quarter of the bytes travel, and the workers do less.
    """

    sharded = True  # False gives every device all samples (zoo.tasks.probes.every_sample)

    def __init__(
        self,
        batch_size: int,
        num_workers: int = 8,
        pin_memory: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ZooError(f"batch_size is at least 1, not {batch_size}.")
        if num_workers < 0:
            raise ZooError(f"num_workers is 0 (none) or more, not {num_workers}.")
        if std is not None and min(std) <= 0:
            raise ZooError(f"std is above 0 in every channel, not {list(std)}.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.mean, self.std = mean, std

    def loader(
        self,
        dataset: Dataset,
        train: bool,
        drop_last: bool | None = None,
        *,
        batch_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        lengths: np.ndarray | None = None,
    ) -> DataLoader:
        """A DataLoader: shuffled and without the short last batch for training, complete and in order otherwise.

        The order, and whatever a sample or `collate_fn` draws from the global generators of torch, numpy or Python,
        follow from the run's seed, the epoch and the index alone: a run resumes exactly, with any number of workers,
        as long as the dataset is map-style and keeps no generator of its own. Over several devices training batches are
        dealt out and evaluation sees every sample once.

        Args:
            dataset: map-style (`len` and integer index).
            train: for training or for evaluation.
            drop_last: leave out the short last batch; None means when training.
            batch_size: another than the module's.
            collate_fn: makes a batch of a list of samples; None is torch's.
            lengths: (len(dataset),) sizes; given, a training batch holds samples of like size, so that little is
                padding.
        """
        drop_last = train if drop_last is None else drop_last
        batch_size = self.batch_size if batch_size is None else batch_size
        count: int = len(dataset)  # type: ignore[arg-type]
        seed = run_seed()
        rank, world = self._rank_and_world()
        order: TrainBatches | EvalBatches | None = None
        if train and not getattr(self.trainer, "overfit_batches", 0):
            settings: dict[str, Any] = dict(seed=seed, drop_last=drop_last, rank=rank, world=world)
            if lengths is None:
                order = TrainBatches(count, batch_size, **settings)
            else:
                order = LengthBuckets(lengths, batch_size, **settings)
        elif world > 1 and not train and not self.trainer.predicting:  # type: ignore[union-attr]
            order = EvalBatches(count, batch_size, rank=rank, world=world)
        batching: dict[str, Any] = dict(batch_sampler=order) if order else dict(batch_size=batch_size)
        loader = DataLoader(
            SeededDataset(dataset, seed),
            **batching,
            collate_fn=None if collate_fn is None else SeededCollate(collate_fn),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )
        if order is not None:
            # Where Lightning looks for set_epoch, and for a DistributedSampler that it need not replace.
            loader.__dict__["sampler"] = order
        return loader

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None or not self.sharded:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # What `on_after_batch_transfer` draws on the device must not depend on what was drawn before either.
        if self.trainer is not None and self.trainer.training:
            seed_batch(self.trainer, TRANSFER, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        return batch

    def audit(self, read: bool = True) -> Audit:
        """What is in the data and what is wrong with it; `read` opens every file, else only what is known is told.

        This one knows the sides alone. Raises what `setup` raises where the data cannot be opened at all.
        """
        self.setup()
        found = Audit()
        sides = {"training": getattr(self, "train_data", None), "validation": getattr(self, "val_data", None)}
        found.sides({side: len(data) for side, data in sides.items() if data is not None})
        return found

    def class_counts(self) -> list[int] | None:
        """Training samples of each class, in the order of the classes; None where there are none. Known after setup."""
        labels = getattr(getattr(self, "train_data", None), "labels", None)
        if labels is None or getattr(self, "regression", False):
            return None
        classes = len(getattr(self, "classes", None) or ())
        return np.bincount(np.asarray(labels), minlength=classes).tolist()

    def raw_sample(self) -> Any:
        """One held-out sample before any transform, as the user has it and as a model's `preprocess` takes it."""
        raise NotImplementedError(f"{type(self).__name__} has no raw_sample yet")

    @property
    def num_skipped(self) -> int:
        """How often an unreadable file was passed over, in all data of this module and by all workers."""
        return sum(getattr(data, "num_skipped", 0) for data in vars(self).values() if isinstance(data, Dataset))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.mean is None or self.std is None:
            return batch
        images, *rest = batch
        if images.dtype != torch.uint8:
            return batch
        images = normalize(images, self.mean, self.std)
        if self.trainer is not None:  # networks wholly in half or double precision (16-true, 64-true)
            images = self.trainer.precision_plugin.convert_input(images)
        return images, *rest


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, C, H, W) to float32: (x / 255 - mean) / std per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)[:, None, None]
    return images.float().mul_(scale).add_(shift)  # in place: a second buffer of this size costs a CPU three times more
