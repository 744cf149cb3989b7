"""Finding out where a number that is none came from, and keeping the batch that brought it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from zoo.callbacks.loop_state import _metric_states, _restore_metrics
from zoo.seeding import STEP, seed_batch

_SHOWN = 5


def describe(trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, loss: Tensor) -> str:
    """One paragraph on a fault: where in the run, which module first, which parameters.

    Args:
        batch: repeated through `training_step` with the same draws to find the module; None leaves that out.
        loss: as it came out, scaled or not.
    """
    value = "finite" if bool(loss.isfinite().all()) else f"{float(loss.float().sum())}"
    parts = [f"Step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch_idx}): the loss is {value}."]
    weights = [name for name, p in module.named_parameters() if not _finite(p)]
    if weights:
        parts.append(f"Weights that are not finite: {_names(weights)}.")
    if batch is not None:
        bad_input = [name for name, tensor in _tensors(batch) if not _finite(tensor)]
        if bad_input:
            parts.append(f"The batch itself is not finite ({_names(bad_input)}).")
        parts.append(first_bad_module(trainer, module, batch, batch_idx))
    grads = [name for name, p in module.named_parameters() if p.grad is not None and not _finite(p.grad)]
    if grads:
        parts.append(f"Gradients that are not finite: {_names(grads)}.")
    return " ".join(part for part in parts if part)


def first_bad_module(trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> str:
    """Repeats the forward pass and names the first module whose output is not finite. Leaves no trace in the module."""
    found: list[str] = []
    hooks = []

    def hook(name: str) -> Any:
        def check(child: nn.Module, inputs: Any, output: Any) -> None:
            if not found and any(not _finite(tensor) for _, tensor in _tensors(output)):
                fine = all(_finite(tensor) for _, tensor in _tensors(inputs))
                state = "from finite input" if fine else "its input was not finite already"
                found.append(f"First output that is not finite: {name} ({type(child).__name__}), {state}.")

        return check

    for name, child in module.named_modules():
        if name:
            hooks.append(child.register_forward_hook(hook(name)))
    try:
        with untouched(module), torch.no_grad(), trainer.precision_plugin.forward_context():
            seed_batch(trainer, STEP, batch_idx)
            module.training_step(batch, batch_idx)
    except Exception as error:  # the search must not hide the fault
        return f"(The forward pass could not be repeated: {type(error).__name__}.)"
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else "All outputs of its modules are finite: the loss or the backward pass is at fault."


@contextmanager
def untouched(module: LightningModule) -> Iterator[None]:
    """Buffers, metrics and logs stay as they are."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    metrics = {name: {**state, "state": _copied(state["state"])} for name, state in _metric_states(module).items()}
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.log, module.log_dict
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        _restore_metrics(module, metrics)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: [t.clone() for t in v] if isinstance(v, list) else v.clone() for key, v in state.items()}


def keep_batch(batch: Any, path: Path, content: dict[str, Any], max_bytes: int) -> None:
    """Saves `batch` with `content` at `path`, cut to the first samples where it is larger than `max_bytes`."""
    share = min(1.0, max_bytes / max(1, size_of(batch)))

    def cut(tensor: Tensor) -> Tensor:
        length = max(1, math.floor(len(tensor) * share)) if tensor.ndim and share < 1 else None
        return tensor.detach()[:length].cpu().clone() if tensor.ndim else tensor.detach().cpu()

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "whole": share == 1.0, "batch": _map(batch, cut)}, path)


def size_of(batch: Any) -> int:
    """Bytes in the tensors of a batch."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(batch))


def _finite(tensor: Tensor) -> bool:
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _names(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _tensors(value: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _tensors(entry, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _tensors(entry, f"{name}[{index}]")
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        for key, entry in vars(value).items():
            yield from _tensors(entry, f"{name}.{key}")


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(entry, function) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_map(entry, function) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)[:200]
