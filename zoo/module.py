"""What every paper's LightningModule shares: the contract that `zoo.load`, the recipes and the callbacks rely on."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from torch import Tensor, nn

from zoo.errors import ZooError

StateDict = dict[str, Tensor]


class ZooModule(LightningModule):
    """Base class of the zoo's models.

    A subclass sets `self.backbone` (the bare network in its ecosystem's own class), calls `save_hyperparameters()`,
    and implements `forward` (the representation), `preprocess` (the user's raw thing to what `forward` takes) and
    `training_step`. Where an official checkpoint exists, it overrides `convert_state_dict` and `official_state_dict`
    as well.

    Attributes:
        per_device_loss: True where the loss is normalised over the samples of one device, so that two devices give the
            mean of two losses and not the loss of both batches together. The room's README says why.
    """

    backbone: nn.Module
    per_device_loss: ClassVar[bool] = False
    static_graph: ClassVar[bool] = False  # every step uses the same parameters in the same way (zoo.strategies.ZooDDP)
    sync_batchnorm: ClassVar[bool] = False  # batch normalisation over all devices

    def preprocess(self, raw: Any) -> Tensor:
        """Turns raw input (a path, a PIL image, ...) into the batch that `forward` takes."""
        raise NotImplementedError(f"{type(self).__name__} has no preprocess yet")

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        """Renames the keys of an official checkpoint to ours; what is ours already passes through unchanged."""
        return state_dict

    def official_state_dict(self) -> StateDict:
        """This model's weights under the official names, for the authors' own code; undoes `convert_state_dict`."""
        return self.state_dict()

    def load_weights(self, state_dict: StateDict, source: str = "these weights") -> None:
        """Loads `state_dict` (ours or the official one, told apart by its keys), strictly.

        Raises `ZooError` that names the keys that are missing, left over or of another shape.
        """
        state = self.convert_state_dict(state_dict)
        self._check_fit(state, source)
        self.load_state_dict(state)

    def _check_fit(self, state: StateDict, source: str) -> None:
        own = self.state_dict()
        problems = [f"{key} is missing" for key in own if key not in state]
        problems += [f"{key} is not a parameter of this model" for key in state if key not in own]
        shared = [key for key in own if key in state]
        problems += [
            f"{key} has shape {tuple(state[key].shape)}, the model needs {tuple(own[key].shape)}"
            for key in shared
            if state[key].shape != own[key].shape
        ]
        # torch would turn them into each other without a word, 8-bit codes into weights among them.
        problems += [
            f"{key} holds {_kind(state[key])}, the model needs {_kind(own[key])}"
            for key in shared
            if _kind(state[key]) != _kind(own[key])
        ]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise ZooError(f"{source} do not fit {type(self).__name__}: {shown}.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lets `zoo.load(run_folder_or_ckpt)` find the class without the recipe.
        cls = own_class(self)
        checkpoint["zoo"] = {"class_path": f"{cls.__module__}.{cls.__qualname__}"}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_fit(checkpoint["state_dict"], "The weights of this checkpoint")
        if self._trainer is not None:
            # Lightning would do so only after loading, when double precision is already rounded away.
            self._trainer.precision_plugin.convert_module(self)


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floating-point numbers"
    return "complex numbers" if tensor.is_complex() else "whole numbers"


def own_class(module: nn.Module) -> type:
    """The class that a module was written as: torch puts one of its own before it while FSDP2 shares it out."""
    return next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.distributed."))


def import_class(class_path: str) -> type:
    """The class behind `package.module.Class`; a `ZooError` says which part does not exist."""
    module_name, _, class_name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ZooError(f"Cannot import {class_path!r}: {error}.") from error


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters of `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def full_precision(device_type: str) -> torch.autocast:
    """Context in which autocast is off: for losses that need float32 (log-softmax over long rows)."""
    return torch.autocast(device_type, enabled=False)
