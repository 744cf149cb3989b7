"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator

from lightning import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor


class EMA(EMAWeightAveraging):
    """Lightning's EMA, for modules that also hold buffers outside their state dict (schedules, targets).

    Lightning would average such buffers, validate with the averages, and lose them when a run resumes: here they stay
    the module's own. Validation and the saved `state_dict` are the averaged weights; `zoo.load` therefore gives these.

    Args:
        decay: share of the old average that each update keeps.
        every_n_steps: update after every so many optimiser steps.
        start_step: the first step after which to update; before it the average is the initial model.
        device: where the averages live; None is the model's device.
    """

    def __init__(
        self, decay: float = 0.999, every_n_steps: int = 1, start_step: int = 0, device: str | None = None
    ) -> None:
        super().__init__(
            device=device, decay=decay, update_every_n_steps=every_n_steps, update_starting_at_step=start_step
        )

    def _pairs(self, module: LightningModule) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._average_model is not None
        current = module.state_dict(keep_vars=True)
        for name, average in self._average_model.module.state_dict(keep_vars=True).items():
            yield average, current[name]

    def _swap_models(self, pl_module: LightningModule) -> None:
        for average, current in self._pairs(pl_module):
            kept = average.data.clone()
            average.data.copy_(current.data)
            current.data.copy_(kept)

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        for average, current in self._pairs(pl_module):
            current.data.copy_(average.data)
