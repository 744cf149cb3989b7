"""What every DataModule shares: loader settings, and normalisation on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.errors import ZooError


class ZooDataModule(LightningDataModule):
    """Base class of the zoo's DataModules.

    Args:
        batch_size: samples of one step on one device; learning-rate rules read it.
        num_workers: worker processes of each loader.
        pin_memory: page-locked batches, for transfers to a GPU; None decides by whether there is one.
        mean, std: per-channel values in [0, 1]. When given, uint8 image batches (B, C, H, W) are normalised to float
            after they have reached the device: a quarter of the bytes travel, and the workers do less.
    """

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
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.mean, self.std = mean, std

    def loader(self, dataset: Dataset, train: bool, drop_last: bool | None = None) -> DataLoader:
        """A DataLoader: shuffled and without the short last batch for training, complete and in order otherwise."""
        drop_last = train if drop_last is None else drop_last
        if drop_last and len(dataset) < self.batch_size:  # type: ignore[arg-type]
            raise ZooError(
                f"There are {len(dataset)} training samples, fewer than one batch of {self.batch_size}: "  # type: ignore[arg-type]
                "lower data.batch_size."
            )
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=train,
            drop_last=drop_last,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )

    @property
    def num_skipped(self) -> int:
        """How often an unreadable file was passed over, in all data of this module and by all workers."""
        return sum(getattr(data, "num_skipped", 0) for data in vars(self).values() if isinstance(data, Dataset))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.mean is None or self.std is None:
            return batch
        images, *rest = batch
        return (normalize(images, self.mean, self.std), *rest) if images.dtype == torch.uint8 else batch


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, C, H, W) to float32: (x / 255 - mean) / std per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)[:, None, None]
    return images.float().mul_(scale).add_(shift)  # in place: a second buffer of this size costs a CPU three times more
