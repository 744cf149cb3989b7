"""Batch normalisation over the samples of all devices, on CPUs too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class CPUSyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm for processes without a GPU, where torch refuses: the same numbers, written plainly."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        self._check_input_dim(x)
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        values = x.float() if x.dtype in (torch.half, torch.bfloat16) else x
        count = all_reduce(values.new_tensor(x.numel() / x.shape[1]))
        mean = all_reduce(values.sum(dims)) / count
        centred = values - mean.view(shape)
        var = all_reduce(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._update(mean.detach(), var.detach() * (count / (count - 1).clamp(min=1)))
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(var.to(self.running_var.dtype), factor)


class SyncOnCPU(TorchSyncBatchNorm):
    """Lightning's conversion to synchronised layers and back, for processes without a GPU."""

    def apply(self, model: nn.Module) -> nn.Module:
        model = super().apply(model)
        for module in model.modules():
            if type(module) is nn.SyncBatchNorm:
                module.__class__ = CPUSyncBatchNorm
        return model
