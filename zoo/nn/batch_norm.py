"""Batch normalisation over the samples of all devices, on CPUs too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.errors import ZooError


class _Synchronised:
    """Goes before a batch norm class. torch's SyncBatchNorm refuses CPUs; these are its numbers, written plainly."""

    def forward(self: _BatchNorm, x: Tensor) -> Tensor:  # type: ignore[misc]
        if not (self.training and dist.is_initialized()):
            return _BatchNorm.forward(self, x)
        self._check_input_dim(x)
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        values = x.float() if x.dtype in (torch.half, torch.bfloat16) else x
        count = all_reduce(values.new_tensor(x.numel() / x.shape[1]))
        mean = all_reduce(values.sum(dims)) / count
        centred = values - mean.view(shape)
        var = all_reduce(centred.square().sum(dims)) / count
        if self.track_running_stats:
            _update(self, mean.detach(), var.detach() * (count / (count - 1).clamp(min=1)))
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


@torch.no_grad()
def _update(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    factor = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    for running, value in ((norm.running_mean, mean), (norm.running_var, var)):
        assert running is not None
        running.lerp_(value.to(running.dtype), factor)


class SyncOnCPU(LayerSync):
    """Lightning's conversion to synchronised layers and back, for processes without a GPU."""

    def apply(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                cls = type(module)
                module.__class__ = type(f"Synchronised{cls.__name__}", (_Synchronised, cls), {})
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, _Synchronised):
                module.__class__ = type(module).__bases__[1]
        return model


def layer_sync(model: nn.Module, device: torch.device) -> LayerSync:
    """What synchronises the batch norm of `model` on such devices.

    Raises `ZooError` for batch norm that does more than normalise: what else it does would be lost.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module).forward is not _BatchNorm.forward:
            raise ZooError(f"{name} ({type(module).__name__}) is no plain batch norm: it cannot be synchronised.")
    return SyncOnCPU() if device.type == "cpu" else TorchSyncBatchNorm()
