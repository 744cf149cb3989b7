"""Where a fit stands, in one place: what Lightning's loops hold, read and put back between two batches.

Lightning restores its loops from whatever moment a checkpoint was saved at, by guessing from counters, and loses the
epoch's running means and the log row that was due. Checkpoints of the zoo are only saved where nothing is pending
(`position`), and `restore` puts the loops into the state that the uninterrupted run has there.
This file is the only one that touches Lightning's private attributes; `tests/training` notices if they change.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, WeightAveraging
from lightning.pytorch.loops.fit_loop import RestartStage as FitStage
from lightning.pytorch.loops.training_epoch_loop import RestartStage as EpochStage
from lightning.pytorch.trainer import call
from torch import Tensor
from torchmetrics import Metric

from zoo.callbacks.seeding import SeedEachStep
from zoo.fsdp import Shares

State = dict[str, Any]


def position(trainer: Trainer) -> tuple[int, int]:
    """(epoch, batch): the next batch that is to be trained. Meaningful where an epoch or a batch is about to start,
    and when training has ended."""
    loop = trainer.fit_loop
    epoch = loop.epoch_progress.current
    at_epoch_start = epoch.ready > epoch.started or epoch.ready == epoch.completed
    return epoch.completed, 0 if at_epoch_start else loop.epoch_loop.batch_progress.current.completed


def capture(trainer: Trainer, module: LightningModule) -> State:
    """What a checkpoint needs beside Lightning's own content. Collective: every rank calls it and adds its part."""
    epoch, batch = position(trainer)
    loop = trainer.fit_loop.epoch_loop
    mine = {"results": _results(trainer) if batch else [], "metrics": _metric_states(module)}
    ranks: list[Any] = [mine]
    if trainer.world_size > 1:
        ranks = [None] * trainer.world_size
        torch.distributed.all_gather_object(ranks, mine)
    return {
        "epoch": epoch,
        "batch": batch,
        "batches": loop.batch_progress.total.completed,
        "logged_steps": loop._batches_that_stepped,
        "shown": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "ranks": [_cpu(rank) for rank in ranks],
    }


def restore(trainer: Trainer, module: LightningModule, state: State) -> None:
    """Puts loops, loader, running means and metrics where `capture` found them. Call from `on_train_start`."""
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    epoch, batch = state["epoch"], state["batch"]
    underway = int(batch > 0)
    for tracker in (fit.epoch_progress.current, fit.epoch_progress.total):
        tracker.ready = tracker.started = epoch + underway  # type: ignore[attr-defined]
        tracker.processed = tracker.completed = epoch  # type: ignore[attr-defined]
    for tracker, done in ((loop.batch_progress.total, state["batches"]), (loop.batch_progress.current, batch)):
        tracker.ready = tracker.started = tracker.processed = tracker.completed = done  # type: ignore[attr-defined]
    loop.batch_progress.is_last_batch = False
    loop._batches_that_stepped = state["logged_steps"]
    loop.val_loop.restarting = False
    fit._restarting = loop._restarting = bool(underway)
    fit._restart_stage = FitStage.RESTARTED_MID_EPOCH if underway else FitStage.NONE
    loop._restart_stage = EpochStage.RESTARTED_ON_LAST if underway else EpochStage.NONE

    rank = state["ranks"][trainer.global_rank] if trainer.global_rank < len(state["ranks"]) else None
    if underway:
        # Lightning does not run this hook again within an epoch, but what it set may be in no state dict.
        call._call_lightning_module_hook(trainer, "on_train_epoch_start")
        loop._results.clear()
        if rank is not None:
            _restore_results(trainer, module, rank["results"])
        trainer._logger_connector._first_loop_iter = True  # the next batch is not the first: keep the running means
    if rank is not None:
        _restore_metrics(module, rank["metrics"])
    _show(trainer, module, state)

    loader = fit._combined_loader
    assert loader is not None
    for part in loader.flattened:
        if hasattr(sampler := getattr(part, "sampler", None), "go_to"):
            sampler.go_to(epoch, batch)
        elif hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
    iter(fit._data_fetcher)  # type: ignore[arg-type]  # started before the position was known

    if underway and loop._should_check_val_fx(fit._data_fetcher):  # type: ignore[arg-type]
        loop._batches_that_stepped -= 1  # Lightning passes by that validation and counts its batch again


def repeat_validation(trainer: Trainer, module: LightningModule, state: State) -> None:
    """The validation of the last epoch once more, and the metrics that `capture` found. Call from `on_fit_end`.

    Seen by the callbacks that report (they have an `on_fit_end`), the bar, seeds and averages of weights, which no
    training has to precede; nothing is logged. Collective.
    """
    connector, epoch = trainer._logger_connector, trainer.fit_loop.epoch_progress.current
    callbacks, first = trainer.callbacks, connector._first_loop_iter
    if trainer.enable_validation:
        trainer.callbacks = [c for c in callbacks if _has_part(c)]
        connector.log_metrics = lambda *args, **kwargs: None  # type: ignore[method-assign]
        epoch.completed -= 1  # as it was then
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        try:
            loop.run()
        finally:
            trainer.training = True
            epoch.completed += 1
            trainer.callbacks, connector._first_loop_iter = callbacks, first
            del connector.log_metrics
    _show(trainer, module, state)


def _has_part(callback: Callback) -> bool:
    if isinstance(callback, Checkpoint | Shares):
        return False
    reports = type(callback).on_fit_end is not Callback.on_fit_end
    return reports or isinstance(callback, ProgressBar | SeedEachStep | WeightAveraging)


def _show(trainer: Trainer, module: LightningModule, state: State) -> None:
    shown = {name: torch.tensor(value, device=module.device) for name, value in state["shown"].items()}
    trainer._logger_connector._callback_metrics.update(shown)


def resumes_within_epochs(trainer: Trainer) -> bool:
    """Whether every training loader can start at any batch."""
    loader = trainer.fit_loop._combined_loader
    return loader is not None and all(hasattr(getattr(part, "sampler", None), "go_to") for part in loader.flattened)


_META = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx",
         "dataloader_idx", "metric_attribute")  # fmt: skip


def _results(trainer: Trainer) -> list[State]:
    """The values that the epoch's logging has gathered so far."""
    saved = []
    for result in trainer.fit_loop.epoch_loop._results.values():
        if not result.is_tensor or result.has_reset:  # metrics of the module are saved with the module
            continue
        meta = {name: getattr(result.meta, name) for name in _META}
        meta |= {"reduce_fx": result.meta.reduce_fx.__name__, "sync_dist": result.meta.sync.should}
        meta |= {"rank_zero_only": result.meta.sync.rank_zero_only}
        values = {name: getattr(result, name, None) for name in ("value", "cumulated_batch_size", "_forward_cache")}
        saved.append({"meta": meta, "values": values})
    return saved


def _restore_results(trainer: Trainer, module: LightningModule, saved: list[State]) -> None:
    results = trainer.fit_loop.epoch_loop._results
    for entry in saved:
        meta = dict(entry["meta"])
        key = f"{meta['fx']}.{meta['name']}"
        meta["reduce_fx"] = getattr(torch, meta["reduce_fx"])
        results.dataloader_idx = meta.pop("dataloader_idx")
        value = torch.zeros((), device=module.device)
        results.log(value=value, sync_dist_fn=trainer.strategy.reduce, batch_size=1, **meta)
        for name, content in entry["values"].items():
            if content is not None:
                setattr(results[key], name, content.to(module.device) if isinstance(content, Tensor) else content)
    results.dataloader_idx = None


def _metric_states(module: LightningModule) -> dict[str, State]:
    """torchmetrics of the module keep their state out of state dicts."""
    return {
        name: {"state": metric.metric_state, "count": metric._update_count}
        for name, metric in module.named_modules()
        if isinstance(metric, Metric)
    }


def _restore_metrics(module: LightningModule, saved: dict[str, State]) -> None:
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name in saved:
            for key, value in saved[name]["state"].items():
                moved = [part.to(module.device) for part in value] if isinstance(value, list) else value
                setattr(metric, key, moved.to(module.device) if isinstance(moved, Tensor) else moved)
            metric._update_count = saved[name]["count"]
            metric._computed = None


def _cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _cpu(entry) for key, entry in value.items()}
    return [_cpu(entry) for entry in value] if isinstance(value, list | tuple) else value
