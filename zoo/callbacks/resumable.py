"""Checkpoints that a killed run goes on from as if nothing had happened."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from zoo.callbacks import loop_state
from zoo.callbacks.folder import run_folder
from zoo.loggers import MetricsCSV

KEY = "zoo_resume"
_GO_ON, _SAVE, _STOP, _REQUEUE = range(4)
_TALK_SECONDS, _LONGEST_PAUSE = 2.0, 200  # between two agreements; batches


class Stopped(SIGTERMException):
    """A signal asked the run to end, and its state is saved."""


class ResumableCheckpoint(Checkpoint):
    """Saves at the end of epochs, every few minutes within them, and when a signal announces the end.

    `lightning run … --resume` goes on from the newest that is whole, bit for bit on a CPU. Files are
    `epoch0004.ckpt` (epoch 4 is done) and `epoch0005-batch000120.ckpt` (120 batches of epoch 5 are); `last.ckpt` is a
    hard link to the newest.

    SIGTERM saves and ends the run with exit code 143. Under SLURM, the requeue signal (`#SBATCH --signal=SIGUSR1@120`)
    saves, asks SLURM to queue the job again and ends. Several devices tell each other of signals and clocks every two
    seconds or so, and act in the same step; to whichever of them a signal came, all of them stop.

    Args:
        folder: where; None is `checkpoints` in the run folder.
        every_n_epochs: save when so many epochs are done; the end of training is always saved.
        every_minutes: save within an epoch when the last save is so long ago; 0 never.
        every_n_steps: save within an epoch every so many optimiser steps; 0 never.
        keep: how many of the newest files to keep; with two, a damaged one costs little.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        every_n_epochs: int = 1,
        every_minutes: float = 15.0,
        every_n_steps: int = 0,
        keep: int = 2,
    ) -> None:
        self.folder = Path(folder) if folder else None
        self.every_n_epochs, self.every_minutes, self.every_n_steps = every_n_epochs, every_minutes, every_n_steps
        self.keep = max(1, keep)
        self.last_path: Path | None = None
        self._saved_at = time.monotonic()
        self._saving = False
        self._resumed: dict[str, Any] | None = None
        self._signal = _GO_ON
        self._agreed = _GO_ON
        self._countdown = 0  # batches until the devices talk again
        self._batches, self._talked_at = 0, time.monotonic()  # of the stretch since they last did

    # ------------------------------------------------------------------ saving

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, _ = loop_state.position(trainer)
        if epoch and epoch % self.every_n_epochs == 0:
            self._save(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        wish = self._wish(trainer, batch_idx)
        if wish == _GO_ON or batch_idx % trainer.accumulate_grad_batches:
            return
        self._agreed = _GO_ON
        if batch_idx == 0 or loop_state.resumes_within_epochs(trainer):
            self._save(trainer)
        if wish >= _STOP:
            self._end(trainer, requeue=wish == _REQUEUE)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _wish(self, trainer: Trainer, batch_idx: int) -> int:
        """What to do before this batch: the same on every device."""
        by_clock = self.every_minutes and (time.monotonic() - self._saved_at) / 60 >= self.every_minutes
        mine = max(self._signal, _SAVE if by_clock and batch_idx else _GO_ON)
        if trainer.world_size == 1:
            self._agreed = mine
        elif self._agreed < _STOP:
            self._agreed = max(self._agreed, self._agree(trainer, mine))
        due = self.every_n_steps and batch_idx and trainer.global_step % self.every_n_steps == 0
        return max(self._agreed, _SAVE if due else _GO_ON)  # steps are counted alike everywhere

    def _agree(self, trainer: Trainer, mine: int) -> int:
        """The highest wish of all devices. To ask is to wait for the device, so it is done every few batches only."""
        self._batches += 1
        if self._countdown > 0:
            self._countdown -= 1
            return _GO_ON
        seconds = (time.monotonic() - self._talked_at) / self._batches
        pause = min(_LONGEST_PAUSE, int(_TALK_SECONDS / max(seconds, 1e-6)))
        votes = torch.tensor([mine, -pause], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        wish, pause = votes.tolist()
        self._countdown = -pause
        self._batches, self._talked_at = 0, time.monotonic()
        return wish

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:
            return
        epoch, batch = loop_state.position(trainer)
        name = f"epoch{epoch:04d}-batch{batch:06d}.ckpt" if batch else f"epoch{max(epoch - 1, 0):04d}.ckpt"
        if not batch and not epoch:
            name = "start.ckpt"
        assert self.folder is not None
        self.last_path = self.folder / name
        self._saving = True
        try:
            trainer.save_checkpoint(self.last_path, weights_only=False)
        finally:
            self._saving = False
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            _link_last(self.last_path)
            _clean(self.folder, (epoch, batch), self.keep)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._saving:
            return  # another callback saves somewhere else, where the loops are not between two batches
        checkpoint[KEY] = loop_state.capture(trainer, pl_module)
        checkpoint[KEY]["rows"] = {
            index: logger.flush() for index, logger in enumerate(trainer.loggers) if isinstance(logger, MetricsCSV)
        }
        if not checkpoint[KEY]["batch"]:
            checkpoint["epoch"] = checkpoint[KEY]["epoch"] - 1  # the last one that is done

    # ------------------------------------------------------------------ going on

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint.get(KEY)
        if self._resumed is None:
            rank_zero_warn("This checkpoint was saved in the middle of something: the run goes on, but not exactly.")
            return
        for index, logger in enumerate(trainer.loggers):
            if isinstance(logger, MetricsCSV):
                logger.keep(self._resumed["rows"].get(index, 0))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder = Path(trainer.strategy.broadcast(str(self.folder or run_folder(trainer) / "checkpoints")))
        if self._resumed is not None:
            if len(self._resumed["ranks"]) != trainer.world_size:
                rank_zero_warn(
                    f"The run had {len(self._resumed['ranks'])} processes and goes on with {trainer.world_size}: "
                    "the weights carry over, but batches are dealt out otherwise."
                )
            loop_state.restore(trainer, pl_module, self._resumed)
            self._resumed = None
        self._saved_at = self._talked_at = time.monotonic()
        self._countdown = self._batches = 0
        self._listen(trainer)

    # ------------------------------------------------------------------ signals

    def _listen(self, trainer: Trainer) -> None:
        # Lightning's own handlers save at once, between any two instructions, and broadcast from within the handler.
        # It puts the former ones back when it tears down.
        connector = trainer._signal_connector
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            connector._register_signal(environment.requeue_signal, self._heard_requeue)
        connector._register_signal(signal.SIGTERM, self._heard_term)

    def _heard_term(self, *_: Any) -> None:
        self._signal = max(self._signal, _STOP)

    def _heard_requeue(self, *_: Any) -> None:
        self._signal = _REQUEUE

    def _end(self, trainer: Trainer, requeue: bool) -> None:
        trainer.strategy.barrier("saved before stopping")
        if requeue and trainer.is_global_zero:
            _requeue()
        raise Stopped(128 + signal.SIGTERM)


def _link_last(path: Path) -> None:
    """Makes `last.ckpt` beside `path` the same file."""
    partial = path.with_name(".last.ckpt.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:  # a file system without hard links, or a folder of shards
        if not path.is_file():
            return
        shutil.copyfile(path, partial)
    os.replace(partial, path.with_name("last.ckpt"))


def _clean(folder: Path, newest: tuple[int, int], keep: int) -> None:
    """Leaves `keep` files up to `newest`; what lies beyond it is a damaged future that was given up."""
    files = sorted((where, path) for path in folder.glob("*.ckpt") if (where := file_position(path)))
    past = [path for where, path in files if where <= newest]
    for path in [*past[:-keep], *(path for where, path in files if where > newest)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def file_position(path: Path) -> tuple[int, int] | None:
    """(epoch, batch) that a checkpoint of `ResumableCheckpoint` goes on with, from its name; None for others."""
    match = re.fullmatch(r"epoch(\d+)(?:-batch(\d+))?\.ckpt", path.name)
    if match is None:
        return (0, 0) if path.name == "start.ckpt" else None
    return (int(match[1]), int(match[2])) if match[2] else (int(match[1]) + 1, 0)


def _requeue() -> None:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        rank_zero_warn("There is no scontrol here to queue the job again: submit it again by hand.")
        return
    if done.returncode:
        rank_zero_warn(f"SLURM did not queue job {job} again ({done.stderr.strip()}): submit it again by hand.")
    else:
        rank_zero_info(f"SLURM will run job {job} again.")
