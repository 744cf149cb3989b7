"""Different random draws on every rank, the same on every run."""

from __future__ import annotations

import random

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer


class SeedPerRank(Callback):
    """Adds the rank to the seed when training starts, as the official codes do.

    Lightning's `seed_everything` gives all ranks the same seed, so all would draw the same masks.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            seed = torch.initial_seed() + trainer.global_rank
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
            torch.manual_seed(seed)
