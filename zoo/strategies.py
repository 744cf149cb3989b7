"""Training on many devices: DDP as this zoo sets it up, and FSDP2 for networks too large for one device."""

from __future__ import annotations

import types
from datetime import timedelta
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from zoo.errors import ZooError

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
    - `sync_batchnorm = True`: batch normalisation over all devices (on GPUs).

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
        if getattr(module, "sync_batchnorm", False) and self._layer_sync is None:
            if self.root_device.type == "cpu":
                rank_zero_warn("Batch normalisation is not synchronised: torch can do that on GPUs only.")
            else:
                self._layer_sync = TorchSyncBatchNorm()
        if getattr(module, "static_graph", False) and trainer.accumulate_grad_batches == 1:
            self._ddp_kwargs.setdefault("static_graph", not self._ddp_kwargs.get("find_unused_parameters", False))
        super().setup(trainer)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if _DDP_SAYS_UNUSED not in str(error):
                raise
            assert self.lightning_module is not None
            raise ZooError(_unused_message(self.lightning_module)) from error


class ZooFSDP2(ModelParallelStrategy):
    """Weights, gradients and optimiser state in shards over all devices (PyTorch's fully_shard).

    `--trainer.strategy zoo.strategies.ZooFSDP2`. Every block of a module list or sequence (transformer blocks) becomes
    a unit of its own; modules that want other units implement `configure_model` themselves.

    Args:
        save_distributed_checkpoint: a folder of shards a checkpoint, instead of one file gathered on the first device.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, timeout: timedelta = TIMEOUT) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, timeout=timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
        module = self.lightning_module
        assert module is not None
        if type(module).configure_model is LightningModule.configure_model:
            module.configure_model = types.MethodType(shard, module)  # type: ignore[method-assign]


def shard(module: LightningModule) -> None:
    """`configure_model` of modules that have none: shards each block, then the rest. May be called again."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(module, FSDPModule):
        return
    assert module.device_mesh is not None
    mesh = module.device_mesh["data_parallel"]
    for parent in list(module.modules()):
        if isinstance(parent, nn.ModuleList | nn.Sequential) and len(parent) > 1:
            for block in parent:
                if len(list(block.parameters())) > 4 and not isinstance(block, FSDPModule):
                    fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        register_fsdp_forward_method(module, name)  # entry points like forward: they gather what the root holds


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
