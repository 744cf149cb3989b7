"""Training that shares weights, gradients and optimiser state among the devices (FSDP2), as an override:

    lightning run RECIPE --trainer.devices 8 --trainer.strategy fsdp2

For models that do not fit one device with their optimiser; below that `ddp` is quicker. Built on torch's `fully_shard`.
Checkpoints are whole files like those of any other run: `zoo.load`, `zoo export` and `--resume` take them, the latter
with any number of devices, with or without FSDP2.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from zoo.errors import ZooError
from zoo.module import own_class
from zoo.strategies import TIMEOUT, reduce_exactly, synchronise_batch_norm

_MIXED = "got mixed torch.Tensor and DTensor"


class ZooFSDP(ModelParallelStrategy):
    """FSDP2 for any module: each repeated block in a group of its own, all the rest in the module's.

    Blocks are the members of every list of alike modules (`blocks`, `layer`). A block's weights are gathered while it
    runs, forward and backward; the rest while a step runs, so that a step may use its own parameters as it likes.
    Between the steps every device holds its share alone, except while callbacks look at the model when a validation or
    an epoch ends: the first device may probe or draw by itself. `on_fit_start` sees the module before it is shared out,
    `on_fit_end` after it has been put together again.

    Not with an EMA of the weights. Evaluation alone needs no optimiser and keeps the module whole.
    """

    def __init__(self, timeout: timedelta = TIMEOUT, **kwargs: Any) -> None:
        super().__init__(
            data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout,
            **kwargs,
        )  # fmt: skip
        self._hooks: list[Any] = []

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False  # weights are loaded while the module is whole

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            synchronise_batch_norm(self)
            if self._layer_sync is not None:
                self.model = self._layer_sync.apply(self.model)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.barrier()
        if trainer.state.fn != TrainerFn.FITTING:
            self.setup_precision_plugin()
            return
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
            raise ZooError("An average of the weights (EMA) is not kept under fsdp2: take it out, or use ddp.")
        trainer.callbacks = [_Before(self), *trainer.callbacks, _After(self)]

    # ------------------------------------------------------------------ sharing out and putting together

    def shard(self, trainer: Trainer) -> None:
        """Shares the module out; called when everyone's `on_fit_start` has seen it whole."""
        module = self.lightning_module
        assert module is not None
        for name, parameter in module.named_parameters():
            if parameter.ndim == 0:
                raise ZooError(
                    f"{type(module).__name__} has the single number {name} as a parameter, which fsdp2 cannot share "
                    "out: use --trainer.strategy ddp."
                )
            parameter.data = parameter.data.contiguous()  # nor anything in channels-last order
        for tensor in (*module.parameters(), *module.buffers()):  # as DDP does: the first device's weights count
            whole = tensor.detach().contiguous()
            torch.distributed.broadcast(whole, src=0)
            tensor.detach().copy_(whole)
        mesh = self.device_mesh["data_parallel"]
        for name, block in list(blocks_of(module)):
            fully_shard(block, mesh=mesh)
            self._watch(name, block)
        fully_shard(module, mesh=mesh)
        module._get_fsdp_state()._lazy_init()  # else the first block that a callback runs would count as the root
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        _optimizers_to_device(self.optimizers, self.root_device)

    def _watch(self, name: str, block: nn.Module) -> None:
        """Parts of a block that are called without it find its weights gathered, where no gradient is wanted."""

        def gather(part: nn.Module, *_: Any) -> None:
            if not any(isinstance(value, DTensor) for value in part._parameters.values()):
                return  # within the block's own forward
            if torch.is_grad_enabled():
                raise self._cannot(f"trains parts of {name}")
            block.unshard()  # type: ignore[operator]

        for part in block.modules():
            if part is not block and part._parameters:
                self._hooks.append(part.register_forward_pre_hook(gather))

    def _cannot(self, what: str) -> ZooError:
        name = own_class(self._root).__name__  # type: ignore[arg-type]
        return ZooError(f"{name} {what} outside its forward: fsdp2 cannot follow that, use --trainer.strategy ddp.")

    def gather(self) -> None:
        """Every device holds all weights, and forward passes leave it so."""
        root = self._root
        root.set_reshard_after_forward(False)
        for part in shared_parts(root):
            part.unshard()

    def release(self) -> None:
        """Every device holds its share alone."""
        root = self._root
        root.set_reshard_after_forward(True)
        root.set_reshard_after_forward(False, recurse=False)  # its backward pass comes at once
        for part in shared_parts(root):
            part.reshard()

    def dissolve(self) -> None:
        """Makes the module an ordinary one with all its weights; training is over."""
        self.release()
        root: Any = self._root
        for module in root.modules():
            for name, parameter in module._parameters.items():
                if isinstance(parameter, DTensor):
                    whole = parameter.detach().full_tensor().clone()
                    module._parameters[name] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
        for part in list(shared_parts(root)):
            state: Any = part._get_fsdp_state()
            handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
            if group := state._fsdp_param_group:
                handles += group._module_to_pre_save_state_dict_hook_handle.values()
                handles += group._module_to_pre_load_state_dict_hook_handle.values()
            for handle in handles:
                handle.remove()
            part.__class__ = own_class(part)
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
        if self._layer_sync is not None:
            self.model = self._layer_sync.revert(root)

    @property
    def _root(self) -> FSDPModule:
        assert isinstance(self.lightning_module, FSDPModule)
        return self.lightning_module

    # ------------------------------------------------------------------ steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._step("training_step", *args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._step("validation_step", *args, **kwargs)

    def _step(self, name: str, *args: Any, **kwargs: Any) -> Any:
        module = self.lightning_module
        assert module is not None
        if not isinstance(module, FSDPModule):
            return getattr(super(), name)(*args, **kwargs)
        with self.precision_plugin.forward_context():
            try:
                # As the module's forward, around which its own weights are gathered.
                out = self._forward_redirection(module, module, name, *args, **kwargs)
            except RuntimeError as error:
                if _MIXED not in str(error):
                    raise
                raise self._cannot("uses weights of a block") from error
            finally:
                module.__dict__.pop("forward", None)
        if not torch.is_grad_enabled():
            for part in shared_parts(module):
                part.reshard()
        return out

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        return super().reduce(reduce_exactly(tensor, reduce_op), group, reduce_op)

    # ------------------------------------------------------------------ checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return self._whole(self.model.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self._whole(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            state = {
                number: {key: _share(value, parameter) for key, value in saved["state"][number].items()}
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})
            _optimizers_to_device([optimizer], self.root_device)

    def _whole(self, value: Any) -> Any:
        """Tensors put together, in main memory, on the first device; the others help and get the rest."""
        if isinstance(value, DTensor):
            whole = value.full_tensor()
            return whole.cpu() if self.global_rank == 0 else None
        if isinstance(value, Tensor):
            return value.detach().cpu()
        if isinstance(value, dict):
            return {key: self._whole(entry) for key, entry in value.items()}
        return [self._whole(entry) for entry in value] if isinstance(value, list) else value


def blocks_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The repeated blocks of a network with their names: members of outermost lists of alike modules with weights."""

    seen: set[nn.Module] = set()

    def within(name: str, parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for key, child in parent.named_children():
            if child in seen:  # it hangs in two places
                continue
            seen.add(child)
            path = f"{name}.{key}" if name else key
            members = list(child.children())
            listed = isinstance(child, nn.ModuleList | nn.Sequential) and len({type(part) for part in members}) == 1
            if listed and list(members[0].children()) and any(True for _ in members[0].parameters()):
                yield from ((f"{path}.{index}", part) for index, part in enumerate(members))
            else:
                yield from within(path, child)

    yield from within("", module)


def shared_parts(module: nn.Module) -> Iterator[Any]:
    """The groups that `fully_shard` made of a module."""
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def _share(value: Any, parameter: Tensor) -> Any:
    """This device's share of a state of `parameter` that a checkpoint holds whole."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    mesh: DeviceMesh = parameter.device_mesh
    value = value.to(parameter.to_local().device)
    return distribute_tensor(value, mesh, parameter.placements, src_data_rank=None)


class _Before(Callback):
    """Ahead of all other callbacks."""

    def __init__(self, strategy: ZooFSDP) -> None:
        self.strategy = strategy

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.strategy.gather()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.strategy.gather()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.strategy.dissolve()


class _After(Callback):
    """Behind all other callbacks."""

    def __init__(self, strategy: ZooFSDP) -> None:
        self.strategy = strategy

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.strategy.shard(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, _Before | _After)]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.strategy.release()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.strategy.release()


Shares = _Before | _After
"""The callbacks that share weights out and put them together."""


def register_fsdp2() -> None:
    """Makes `fsdp2` a name that `trainer.strategy` takes."""
    if "fsdp2" not in StrategyRegistry:
        StrategyRegistry.register("fsdp2", ZooFSDP, description="weights, gradients and optimiser state shared out")
