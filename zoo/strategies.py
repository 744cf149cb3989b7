"""Training on many devices: DDP as this zoo sets it up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy

from zoo.errors import ZooError
from zoo.nn.batch_norm import layer_sync

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it gives up."""

_DDP_SAYS_UNUSED = "Expected to have finished reduction in the prior iteration"
_PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "timed out after",
              "NCCL communicator was aborted", "Watchdog caught collective operation timeout")  # fmt: skip


class ZooDDP(DDPStrategy):
    """DDP with gradients as views into the buckets, and settings that the module asks for.

    `lightning run` uses it wherever Lightning would use plain DDP (`strategy: auto` or `ddp`). A module may set

    - `static_graph = True`: every step uses the same parameters in the same way, so DDP need look only once
      (not together with gradient accumulation, which it would break);
    - `sync_batchnorm = True`: batch normalisation over all devices.

    Parameters that took no part in a loss are named in the error.
    """

    def __init__(self, timeout: timedelta = TIMEOUT, gradient_as_bucket_view: bool = True, **kwargs: Any) -> None:
        super().__init__(timeout=timeout, gradient_as_bucket_view=gradient_as_bucket_view, **kwargs)

    @classmethod
    def upgrade(cls, strategy: DDPStrategy) -> None:
        """Makes the strategy that Lightning chose by itself one of these."""
        # It only lacks methods and settings; building the trainer again would start everything twice.
        strategy.__class__ = cls
        strategy._timeout = TIMEOUT
        strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)

    def setup(self, trainer: Trainer) -> None:
        module = self.lightning_module
        synchronise_batch_norm(self)
        if getattr(module, "static_graph", False) and trainer.accumulate_grad_batches == 1:
            self._ddp_kwargs.setdefault("static_graph", not self._ddp_kwargs.get("find_unused_parameters", False))
        super().setup(trainer)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        return super().reduce(reduce_exactly(tensor, reduce_op), group, reduce_op)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if _DDP_SAYS_UNUSED not in str(error):
                raise
            assert self.lightning_module is not None
            raise ZooError(_unused_message(self.lightning_module)) from error


def synchronise_batch_norm(strategy: ParallelStrategy) -> None:
    """Converts the batch normalisation of a module that asks for it."""
    module = strategy.lightning_module
    if module is None or not getattr(module, "sync_batchnorm", False) or strategy._layer_sync is not None:
        return
    strategy._layer_sync = layer_sync(module, strategy.root_device)


def reduce_exactly(tensor: Any, reduce_op: Any) -> Any:
    """Lightning counts logged samples in integers: their mean over devices would be cut off where they are uneven."""
    if isinstance(tensor, torch.Tensor) and reduce_op in ("mean", "avg") and not tensor.is_floating_point():
        return tensor.double()
    return tensor


def _unused_message(module: LightningModule) -> str:
    unused = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
    return (
        f"These parameters of {type(module).__name__} took no part in the last loss: {shown or 'unknown'}. "
        "Freeze them (requires_grad_(False)) if that is meant, or run with "
        "--trainer.strategy ddp_find_unused_parameters_true, which is slower."
    )


def peer_lost(error: BaseException) -> bool:
    """Whether an error means that another process of the run is gone."""
    return isinstance(error, RuntimeError | torch.distributed.DistError) and any(s in str(error) for s in _PEER_LOST)
