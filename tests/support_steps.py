"""A few training steps under a glass: fixed batches, recorded or replayed random draws, gradients as the optimiser gets
them, and what was computed in sixteen bits."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

HALF = (torch.float16, torch.bfloat16)

# Operations of losses that lose or overflow in sixteen bits, wherever in a step they are.
_SENSITIVE = {
    "_log_softmax", "logsumexp", "log", "log1p", "log2", "exp", "expm1", "log_sigmoid_forward", "nll_loss_forward",
    "nll_loss2d_forward", "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "kl_div",
    "binary_cross_entropy_with_logits", "_cdist_forward", "_ctc_loss", "prod", "cumprod",
}  # fmt: skip

# Between the network's last product and the loss: nodes that only move numbers, and the nodes where the network begins.
_MOVES = re.compile(
    "View|Reshape|Slice|Select|Index|Gather|Cat|Stack|Split|Squeeze|Expand|Clone|Permute|Transpose|TBackward|Alias"
    "|Unbind|Unsqueeze|AsStrided|Flip|Roll"
)
_NETWORK = ("Mm", "Addmm", "Bmm", "Baddbmm", "Convolution", "Attention", "ToCopy", "LayerNorm", "AccumulateGrad")


class Draws(TorchDispatchMode):
    """Records the random draws inside it, or hands out recorded ones.

    Args:
        tape: what was recorded; None records anew (into `tape`).
        part, parts: replay for this part of the recorded batch: draws with `parts` times as many samples are cut.
    """

    def __init__(self, tape: Sequence[Tensor] | None = None, part: int = 0, parts: int = 1) -> None:
        super().__init__()
        self.replaying = tape is not None
        self.tape: list[Tensor] = list(tape or [])
        self.part, self.parts, self._next = part, parts, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # Fused attention carries the tag for a dropout that it does not do on a CPU.
        if torch.Tag.nondeterministic_seeded not in func.tags or "attention" in func.__name__:
            return out
        drawn = out[1] if isinstance(out, tuple) else out  # dropout gives (values, mask)
        if not self.replaying:
            self.tape.append(drawn.clone())
            return out
        drawn.copy_(self._recorded(drawn))
        if isinstance(out, tuple):
            torch.mul(args[0], drawn, out=out[0]).div_(1 - args[1])
        return out

    def _recorded(self, drawn: Tensor) -> Tensor:
        assert self._next < len(self.tape), "the step draws more often than the recorded one did"
        value = self.tape[self._next]
        self._next += 1
        if value.shape == drawn.shape:
            return value
        whole = (drawn.shape[0] * self.parts, *drawn.shape[1:]) if drawn.ndim else ()
        assert tuple(value.shape) == whole, (
            f"a random draw has shape {tuple(value.shape)} for the whole batch and {tuple(drawn.shape)} for one of "
            f"{self.parts} parts: draw with the samples first, or once for all of them"
        )
        return value.chunk(self.parts)[self.part]


class HalfWatch(TorchDispatchMode):
    """Notes in `found` the sensitive operations that are computed in sixteen bits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        values = [value for value in (*args, *(out if isinstance(out, tuple | list) else [out])) if _is_half(value)]
        if name in _SENSITIVE and values:
            self.found.add(f"{name} in {str(values[0].dtype).removeprefix('torch.')}")
        return out


def half_arithmetic(loss: Tensor) -> set[str]:
    """What is computed in sixteen bits between the network's last product and `loss`, read off the autograd graph."""
    found: set[str] = set()
    seen: set[Any] = set()
    queue = [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if any(name.startswith(part) or part + "Backward" in name for part in _NETWORK):
            continue
        half = any(meta.dtype in HALF for meta in node._input_metadata)
        if half and not _MOVES.search(name):
            found.add(f"{name.split('Backward')[0]} in sixteen bits")
        queue += [edge for edge, _ in node.next_functions]
    return found


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in HALF


# ---------------------------------------------------------------------- batches


def split_batch(data: LightningDataModule, batch: Any, parts: int) -> list[Any]:
    """A batch in `parts` equal ones: by the data module's own `split_batch`, else along the first dimension."""
    if hasattr(data, "split_batch"):
        return data.split_batch(batch, parts)
    size = batch_size(batch)
    assert size % parts == 0, f"the batch has {size} samples, which {parts} processes cannot share"
    return [_cut(batch, size, part, parts) for part in range(parts)]


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor."""
    sizes = [leaf.shape[0] for leaf in _tensors(batch) if leaf.ndim]
    assert sizes, "the batch holds no tensor: give the data module a split_batch"
    return sizes[0]


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(batch):
        for entry in dataclasses.fields(batch):
            yield from _tensors(getattr(batch, entry.name))


def _cut(batch: Any, size: int, part: int, parts: int) -> Any:
    share = slice(part * size // parts, (part + 1) * size // parts)
    if isinstance(batch, Tensor):
        return batch[share].clone() if batch.ndim and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        cut = {key: _cut(value, size, part, parts) for key, value in batch.items()}
        return cut if type(batch) is dict else type(batch)(cut)
    if isinstance(batch, list | tuple):
        if len(batch) == size and not any(isinstance(value, Tensor) and value.ndim for value in batch):
            return batch[share]
        values = [_cut(value, size, part, parts) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [entry.name for entry in dataclasses.fields(batch)]
        return dataclasses.replace(batch, **{name: _cut(getattr(batch, name), size, part, parts) for name in names})
    return batch


def replace_sample(batch: Any, size: int, place: int, by: int) -> Any:
    """A batch of `size` samples in which sample `by` stands at `place` too."""
    order = list(range(size))
    order[place] = by
    parts = [_cut(batch, size, index, size) for index in order]
    return _joined(batch, parts, size)


def _joined(batch: Any, parts: list[Any], size: int) -> Any:
    if isinstance(batch, Tensor):
        return torch.cat(parts) if batch.ndim and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        joined = {key: _joined(value, [part[key] for part in parts], size) for key, value in batch.items()}
        return joined if type(batch) is dict else type(batch)(joined)
    if isinstance(batch, list | tuple):
        if len(batch) == size and not any(isinstance(value, Tensor) and value.ndim for value in batch):
            return type(batch)(entry for part in parts for entry in part)
        values = [_joined(value, [part[i] for part in parts], size) for i, value in enumerate(batch)]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [entry.name for entry in dataclasses.fields(batch)]
        values = {name: _joined(getattr(batch, name), [getattr(part, name) for part in parts], size) for name in names}
        return dataclasses.replace(batch, **values)
    return batch


class _Batches:
    """A loader; Lightning would take a list for several of them."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def fixed_data(data: LightningDataModule, batches: list[Any], batch_size: int) -> LightningDataModule:
    """`data` with these training batches, which have been through its hooks already."""
    fixed = copy.copy(data)
    fixed.trainer = None
    fixed.batch_size = batch_size
    fixed.train_dataloader = lambda: _Batches(batches)  # type: ignore[method-assign]
    for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
        setattr(fixed, hook, lambda batch, dataloader_idx: batch)
    return fixed


# ---------------------------------------------------------------------- steps


@dataclass
class Steps:
    """What some steps left behind, in order.

    Attributes:
        losses: of each batch, where training_step gives one.
        gradients: by parameter name, as each optimiser step got them, before clipping.
        rates: learning rates of each optimiser step.
        tapes: the random draws of each batch.
        half: what was computed in sixteen bits (`watch` only).
        state: the state dict after the last step.
        forgotten: parameters that got a gradient, but that no optimiser has.
        metrics: what validation logged, the last of each.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    tapes: list[list[Tensor]] = field(default_factory=list)
    half: set[str] = field(default_factory=set)
    state: dict[str, Tensor] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)


def _whole(value: Tensor) -> Tensor:
    """A tensor that FSDP2 has shared out among the devices, put together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class _Capture(Callback):
    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.steps.gradients.append({name: _whole(p.grad).clone() for name, p in named if p.grad is not None})
        self.steps.rates.append([group["lr"] for group in optimizer.param_groups])
        known = {id(p) for other in trainer.optimizers for group in other.param_groups for p in group["params"]}
        named = pl_module.named_parameters()
        self.steps.forgotten |= {name for name, p in named if p.grad is not None and id(p) not in known}


def fit_steps(
    module: LightningModule,
    data: LightningDataModule,
    *,
    replay: Callable[[int], Draws] | None = None,
    autocast: torch.dtype | None = None,
    watch: bool = False,
    hold_batch_norm: bool = False,
    val_batches: list[Any] | None = None,
    **trainer: Any,
) -> Steps:
    """Trains for one epoch on the CPU and reports every step.

    Args:
        replay: batch index to the draws that it gets; without it they are recorded.
        autocast: run training_step under autocast to this type.
        watch: look for arithmetic of the loss in sixteen bits.
        hold_batch_norm: keep batch norm at its running statistics.
        val_batches: validate on these after every second step.
        trainer: further arguments of the Trainer.
    """
    steps = Steps()
    original = module.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        index = len(steps.tapes)
        random.seed(index)  # draws of the step that no tape holds
        np.random.seed(index)  # noqa: NPY002
        draws = replay(index) if replay else Draws()
        half = HalfWatch()
        with contextlib.ExitStack() as stack:
            if autocast is not None:
                stack.enter_context(torch.autocast("cpu", autocast))
            if watch:
                stack.enter_context(half)
            stack.enter_context(draws)
            out = original(*args, **kwargs)
        steps.tapes.append(draws.tape)
        loss = out.get("loss") if isinstance(out, Mapping) else out
        if isinstance(loss, Tensor):
            steps.losses.append(loss.item())
            steps.half |= half_arithmetic(loss) if watch else set()
        steps.half |= half.found
        return out

    class HoldBatchNorm(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            for part in pl_module.modules():
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    part.eval()

    module.training_step = training_step  # type: ignore[method-assign]
    options: dict[str, Any] = dict(accelerator="cpu", devices=1, max_epochs=1, logger=False, limit_val_batches=0,
                                   num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False,
                                   enable_model_summary=False, callbacks=[_Capture(steps)])  # fmt: skip
    if hold_batch_norm:
        options["callbacks"].append(HoldBatchNorm())
    if val_batches is not None:
        data.val_dataloader = lambda: _Batches(val_batches)  # type: ignore[method-assign]
        options |= {"limit_val_batches": 1.0, "val_check_interval": 2}
    fitted = Trainer(**options | trainer)
    fitted.fit(module, datamodule=data)
    del module.training_step
    steps.metrics = {name: float(value) for name, value in fitted.callback_metrics.items() if name.startswith("val/")}
    steps.state = {key: value.detach().clone() for key, value in module.state_dict().items()}
    return steps
