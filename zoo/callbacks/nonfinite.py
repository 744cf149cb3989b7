"""What to do when a loss or a gradient stops being a number, and the figures that warn of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from zoo.callbacks.fault import describe, keep_batch, size_of
from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError


class NonFiniteGuard(Callback):
    """Logs gradient norm, loss scale and skipped steps; acts when the loss or a gradient is infinite or not a number.

    A fault is reported with the first module whose output was not finite (found by repeating the forward pass with the
    same draws) and the parameters concerned. The batch goes to `<run folder>/nonfinite/`, one file a device. The faulty
    step never reaches the weights.

    Under float16 an overflow now and then is how the loss scale is found: the scaler skips such a step, which is
    counted, and only `patience` of them in a row or a loss that is not finite itself are a fault.

    One value a step is read back from the device.

    Args:
        on_nonfinite: "stop" with an error; "skip" the step and go on; "rollback" weights and optimiser to the last
            snapshot (kept in main memory; a resumed run begins with a new one) and go on with the next batch.
        patience: so many faults in a row stop the run in any case.
        max_batch_mb: keep at most so many megabytes of a batch (its first samples).
        max_batches: keep at most so many batches a run.
        snapshot_every_n_steps: how often "rollback" takes a snapshot.
    """

    def __init__(
        self,
        on_nonfinite: Literal["stop", "skip", "rollback"] = "stop",
        patience: int = 20,
        max_batch_mb: float = 64.0,
        max_batches: int = 4,
        snapshot_every_n_steps: int = 100,
    ) -> None:
        if on_nonfinite not in ("stop", "skip", "rollback"):
            raise ZooError(f"on_nonfinite is 'stop', 'skip' or 'rollback', not {on_nonfinite!r}.")
        self.on_nonfinite, self.patience = on_nonfinite, patience
        self.max_batch_mb, self.max_batches = max_batch_mb, max_batches
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.skipped_steps = 0
        self._in_a_row = 0
        self._kept = 0
        self._group: list[tuple[int, Any, Tensor]] = []  # batch index, batch, loss of the steps being accumulated
        self._batch: tuple[int, Any] | None = None
        self._snapshot: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped_steps": self.skipped_steps, "in_a_row": self._in_a_row, "kept": self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped_steps, self._in_a_row = state_dict["skipped_steps"], state_dict["in_a_row"]
        self._kept = state_dict["kept"]

    # ------------------------------------------------------------------ watching

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = (batch_idx, batch)
        due = self._snapshot is None or trainer.global_step % self.snapshot_every_n_steps == 0
        if self.on_nonfinite == "rollback" and due and not self._group and not self._in_a_row:
            self._snapshot = _take_snapshot(trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        assert self._batch is not None
        index, batch = self._batch
        # Batches that are too large to be kept whole are not held on to either, except the current one.
        self._group = [(i, b if size_of(b) <= self.max_batch_mb * 2**20 else None, x) for i, b, x in self._group]
        self._group.append((index, batch, loss.detach()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        group, self._group = self._group, []
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if not grads:
            return
        norm = _total_norm(grads)
        scaler = _scaler(trainer)
        losses = torch.stack([loss.float().sum() for *_, loss in group] or [norm.new_zeros(())])
        # As one tensor, so that the device is waited for once; over all devices, so that all decide alike.
        checks = torch.stack([norm.isfinite(), losses.isfinite().all()]).int()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(checks, op=torch.distributed.ReduceOp.MIN)
        grads_fine, loss_fine = (bool(check) for check in checks.tolist())
        if scaler is not None and _optimizer_handles_unscaling(optimizer):
            norm = norm / scaler._get_scale_async()  # else the gradients are unscaled already
        values = {"train/grad_norm": norm}
        if grads_fine and loss_fine:
            self._in_a_row = 0
        else:
            self._in_a_row += 1
            self.skipped_steps += 1
            expected = scaler is not None and loss_fine and self._in_a_row < self.patience
            if not expected:  # otherwise the scaler skips the step and lowers the scale
                self._act(trainer, pl_module, optimizer, group)
        if scaler is not None and trainer._logger_connector.should_update_logs:  # the scale lives on the device
            values["train/loss_scale"] = torch.tensor(scaler.get_scale())
        if scaler is not None or self.skipped_steps:
            values["train/skipped_steps"] = torch.tensor(float(self.skipped_steps))
        self.log_dict(values)

    # ------------------------------------------------------------------ acting

    def _act(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, group: list[tuple[int, Any, Tensor]]
    ) -> None:
        last = (*self._batch, torch.zeros(()))  # type: ignore[misc]  # manual optimisation may not tell its losses
        bad = [entry for entry in group if not bool(entry[2].isfinite().all())]
        index, batch, loss = (bad or group or [last])[0]
        # Every device goes the same way here: the repeated pass may hold collective calls.
        folder = Path(trainer.strategy.broadcast(str(run_folder(trainer))))
        replay = batch is not None and not isinstance(trainer.strategy, ModelParallelStrategy)
        replay = trainer.strategy.reduce_boolean_decision(replay, all=True)
        report = describe(trainer, pl_module, batch if replay else None, index, loss)
        where = self._keep(trainer, folder, batch, index, report)
        text = f"{report} {where}".strip()
        if self.on_nonfinite == "stop" or self._in_a_row >= self.patience:
            why = f" {self._in_a_row} steps in a row." if self._in_a_row > 1 else ""
            raise ZooError(
                f"{text}{why} Go on from the last checkpoint with --resume, with a lower learning rate or another "
                "precision, or let the guard skip such steps (NonFiniteGuard.on_nonfinite: skip)."
            )
        rank_zero_warn(f"{text} The step is skipped.")
        optimizer.zero_grad(set_to_none=True)  # a step without gradients changes nothing
        if self.on_nonfinite == "rollback" and self._snapshot is not None:
            rank_zero_warn(f"Back to the weights of step {self._snapshot['step']}.")
            _go_back(trainer, pl_module, self._snapshot)

    def _keep(self, trainer: Trainer, folder: Path, batch: Any, index: int, report: str) -> str:
        if batch is None or self._kept >= self.max_batches:
            return ""
        self._kept += 1
        name = f"step{trainer.global_step:08d}-rank{trainer.global_rank}.pt"
        path = folder / "nonfinite" / name
        content = {"batch_idx": index, "epoch": trainer.current_epoch, "report": report}
        try:
            keep_batch(batch, path, content, int(self.max_batch_mb * 2**20))
        except OSError as error:
            return f"The batch could not be kept ({error.strerror})."
        return f"The batch is kept in {path}."


def _total_norm(grads: list[Tensor]) -> Tensor:
    norm = torch.linalg.vector_norm(torch.stack([n.float() for n in torch._foreach_norm(grads)]))
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _scaler(trainer: Trainer) -> Any:
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def _take_snapshot(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    return {
        "step": trainer.global_step,
        "module": _copy(module.state_dict()),
        "optimizers": [_copy(optimizer.state_dict()) for optimizer in trainer.optimizers],
    }


def _go_back(trainer: Trainer, module: LightningModule, snapshot: dict[str, Any]) -> None:
    module.load_state_dict(snapshot["module"])
    for optimizer, state in zip(trainer.optimizers, snapshot["optimizers"], strict=True):
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(_copy(state))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule goes on


def _copy(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.detach().clone()  # shared out: it stays where its mesh is
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    return [_copy(entry) for entry in value] if isinstance(value, list) else value
