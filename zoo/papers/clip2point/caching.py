"""The frozen image tower sees each picture once instead of once an epoch."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.errors import ZooError


class _Pictures(Dataset):
    """All views of all objects of a pair data set, one after the other."""

    def __init__(self, pairs: Any) -> None:
        self.pairs, self.views = pairs, len(pairs.elev)

    def __len__(self) -> int:
        return len(self.pairs) * self.views

    def __getitem__(self, index: int) -> Tensor:
        return self.pairs.picture(*divmod(index, self.views))


class KeepImageFeatures(Callback):
    """Computes the features of all training pictures before training starts and gives them to the data set.

    Training is the same to rounding, since the tower is frozen and pictures are not augmented; the step then spends no
    time on pictures. Takes 4 * 10 * D bytes an object in every process.

    Args:
        batch_size: pictures at once.
    """

    def __init__(self, batch_size: int = 256) -> None:
        self.batch_size = batch_size

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pairs = getattr(trainer.datamodule, "train_data", None)  # type: ignore[attr-defined]
        if not hasattr(pairs, "image_features"):
            raise ZooError("KeepImageFeatures needs the pairs of a PairDataModule: take it out of the recipe.")
        if trainer.fast_dev_run:  # a trial should not wait for all pictures
            return
        from rich.progress import track

        workers = trainer.datamodule.num_workers  # type: ignore[attr-defined]
        loader = DataLoader(_Pictures(pairs), batch_size=self.batch_size, num_workers=workers)
        features = []
        for images in track(loader, description="image features", disable=not trainer.is_global_zero):
            features.append(pl_module.encode_images(images.to(pl_module.device)).float().cpu())
        pairs.image_features = torch.cat(features).unflatten(0, (len(pairs), -1))
