"""FSDP2 with two processes (gloo): the numbers of one, for every room, and checkpoints like any other's."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import MixedPrecision
from support_contract import Room, checkpoint_difference
from support_processes import assert_close, launch, logs, recipe_of, weights_of
from support_steps import split_batch
from torch import nn
from torch.utils.data import DataLoader

import zoo
from datamodules.base import ZooDataModule
from zoo import catalog
from zoo.callbacks.nonfinite import NonFiniteGuard
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.fsdp import blocks_of
from zoo.module import own_class
from zoo.papers.droppos import DropPos
from zoo.strategies import ZooDDP


@pytest.fixture(scope="module", params=catalog.list_papers())
def room(request, tmp_path_factory) -> Room:
    return Room(request.param, tmp_path_factory.mktemp(request.param))


def test_two_sharing_processes_equal_one(room: Room):
    if room.build()[0].per_device_loss:
        halves = [half for batch in room.whole for half in split_batch(room.ready, batch, 2)]
        one = room.steps(halves, hold_batch_norm=room.hold_batch_norm, accumulate_grad_batches=2)
    else:
        one = room.steps(room.whole, hold_batch_norm=room.hold_batch_norm)
    scalars = [name for name, parameter in room.build()[0].named_parameters() if parameter.ndim == 0]
    if scalars:
        with pytest.raises(AssertionError, match=rf"the single number {scalars[0]} as a parameter.*use --trainer"):
            room.two_processes(one.tapes, strategy="fsdp2")
        return
    two, other = room.two_processes(one.tapes, strategy="fsdp2")
    assert not checkpoint_difference(two.state, other.state), "the two processes end with different weights"
    assert set(two.state) == set(one.state)
    assert len(two.gradients) == len(one.gradients)
    for step, (mine, theirs) in enumerate(zip(one.gradients, two.gradients, strict=True)):
        assert set(mine) == set(theirs)
        norm = torch.stack([value.norm() for value in mine.values()]).norm()
        for name in mine:
            error = (mine[name] - theirs[name]).norm() / (mine[name].norm() + 1e-4 * norm)
            assert error < 1e-4 * 10**step, f"step {step}: the gradient of {name} differs by {error:.2%}"


# ---------------------------------------------------------------------- from the command line

WATCHERS = [
    {"class_path": "zoo.callbacks.probe_report.ProbeReport"},
    {"class_path": "zoo.callbacks.figures.Figures", "init_args": {"every_n_epochs": 1}},
    {"class_path": "zoo.callbacks.online_probe.OnlineProbe", "init_args": {"every_n_epochs": 1}},
    {"class_path": "zoo.callbacks.throughput.Throughput"},
    {"class_path": "zoo.callbacks.nonfinite.NonFiniteGuard"},
    {"class_path": "zoo.callbacks.resumable.ResumableCheckpoint", "init_args": {"every_n_steps": 1}},
]


def arguments(recipe: Path, folder: Path, strategy: str | None) -> list[str]:
    words = ["run", str(recipe), "--run-dir", str(folder)]
    return [*words, "--trainer.devices", "2", "--trainer.strategy", strategy] if strategy else words


def recipe_with_watchers(folder: Path, **trainer: Any) -> Path:
    recipe = recipe_of(folder, max_epochs=2, limit_train_batches=4, limit_val_batches=2, callbacks=WATCHERS, **trainer)
    config = yaml.safe_load(recipe.read_text())
    config["model"]["init_args"] |= {"clip_mode": "per_tensor", "clip_grad": 0.1}
    recipe.write_text(yaml.safe_dump(config))
    return recipe


def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())


def test_a_recipe_under_fsdp2_is_the_recipe_under_ddp_killed_and_resumed_too(tmp_path):
    """Data, draws, schedule, clipping, callbacks that look at the model on the first device alone, checkpoints."""
    recipe = recipe_with_watchers(tmp_path)
    ddp, fsdp = tmp_path / "ddp", tmp_path / "fsdp"
    assert launch(main, 2, tmp_path / "log0", arguments(recipe, ddp, "ddp")) == [0, 0], logs(tmp_path / "log0")
    assert launch(main, 2, tmp_path / "log1", arguments(recipe, fsdp, "fsdp2")) == [0, 0], logs(tmp_path / "log1")
    assert_close(weights_of(fsdp), weights_of(ddp))
    mine, theirs = (torch.load(path / "checkpoints" / "last.ckpt") for path in (fsdp, ddp))
    assert mine.keys() == theirs.keys()
    assert mine["zoo"] == theirs["zoo"]
    for first, second in zip(mine["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert first["param_groups"] == second["param_groups"]
        assert first["state"].keys() == second["state"].keys()
        for key, state in first["state"].items():
            assert_close(state, second["state"][key])
    for one, other in zip(rows(fsdp), rows(ddp), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert list((fsdp / "figures").glob("*.png"))
    assert "probe/knn_acc" in (fsdp / "metrics.csv").read_text()
    model = zoo.load(fsdp)
    assert type(model) is DropPos
    assert model(model.preprocess(model_input())).isfinite().all()

    killed = tmp_path / "killed"
    codes = launch(dying, 2, tmp_path / "log2", arguments(recipe, killed, "fsdp2"))
    assert codes[0] == -9, logs(tmp_path / "log2")
    shutil.copytree(killed, tmp_path / "moved")
    resume = [*arguments(recipe, killed, "fsdp2"), "--resume"]
    assert launch(main, 2, tmp_path / "log3", resume) == [0, 0], logs(tmp_path / "log3")
    again = torch.load(killed / "checkpoints" / "last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        assert not checkpoint_difference(mine[part], again[part], part)
    assert rows(killed) == rows(fsdp)

    # The same checkpoint goes on without FSDP2.
    resume = [*arguments(recipe, tmp_path / "moved", "ddp"), "--resume"]
    assert launch(main, 2, tmp_path / "log4", resume) == [0, 0], logs(tmp_path / "log4")
    assert_close(weights_of(tmp_path / "moved"), weights_of(ddp))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_killed_while_it_reports_reports_when_resumed(tmp_path, strategy):
    recipe, run = recipe_with_watchers(tmp_path), tmp_path / "run"
    assert launch(main, 2, tmp_path / "log0", arguments(recipe, run, strategy)) == [0, 0], logs(tmp_path / "log0")
    expected = rows(run)
    (run / "results.json").unlink()
    shutil.rmtree(run / "figures")
    resume = [*arguments(recipe, run, strategy), "--resume"]
    assert launch(main, 2, tmp_path / "log1", resume) == [0, 0], logs(tmp_path / "log1")
    for one, other in zip(rows(run), expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert list((run / "figures").glob("*.png"))


def model_input() -> Any:
    from PIL import Image

    return Image.new("RGB", (16, 16), "red")


def dying(arguments: list[str]) -> None:
    """The first process is killed in the seventh step."""
    step, mine = DropPos.training_step, int(os.environ["RANK"])

    def training_step(self, batch, batch_idx):
        if self.global_step == 6 and mine == 0:
            os.kill(os.getpid(), 9)
        return step(self, batch, batch_idx)

    DropPos.training_step = training_step
    main(arguments)


# ---------------------------------------------------------------------- what it holds, and what it refuses


class Stack(L.LightningModule):
    """Eight alike blocks between two layers; `habit` is how the step treats its last block."""

    def __init__(self, habit: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 64), nn.Linear(64, 1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(8)])
        self.habit = habit
        self.held: list[int] = []

    def training_step(self, batch, batch_idx):
        x = self.first(batch)
        for block in self.blocks:
            x = block(x)
        if self.habit == "part":
            x = self.blocks[-1][0](x)
        if self.habit == "weight":
            x = x @ self.blocks[-1][0].weight
        if self.habit == "overflow" and self.global_step == 2:
            x = x * float("inf")
        return self.last(x).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx), sync_dist=True)

    def on_train_batch_start(self, batch, batch_idx):
        self.held.append(sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in self.parameters()))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Rows(ZooDataModule):
    def train_dataloader(self) -> DataLoader:
        return self.loader(torch.randn(64, 8, generator=torch.Generator().manual_seed(1)), train=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(torch.randn(16, 8, generator=torch.Generator().manual_seed(2)), train=False)


def fit_stack(out: Path, habit: str, strategy: Any, *callbacks: Any, precision: str = "32-true") -> None:
    """`callbacks` are made here: they need not travel to the process."""
    L.seed_everything(0)
    numbers: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        numbers = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    callbacks = tuple(callback() if isinstance(callback, type) else callback for callback in callbacks)
    module = Stack(habit)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                        default_root_dir=out,
                        callbacks=list(callbacks), **numbers)  # fmt: skip
    try:
        trainer.fit(module, datamodule=Rows(4, num_workers=0))
    except ZooError as error:
        (out / f"error{trainer.global_rank}").write_text(str(error))
        return
    assert type(module) is Stack
    trainer.validate(module, datamodule=Rows(4, num_workers=0), verbose=False)  # whole again: an ordinary module
    assert not any(hook for part in module.modules() for hook in (part._forward_pre_hooks, part._forward_hooks))
    state = [value for value in trainer.optimizers[0].state.values() if "exp_avg" in value]
    held = sum(getattr(v["exp_avg"], "to_local", lambda v=v: v["exp_avg"])().numel() for v in state)
    torch.save({"weights": module.state_dict(), "held": module.held, "averages": held}, out / f"{trainer.global_rank}")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_each_process_holds_half(tmp_path, precision):
    whole = sum(p.numel() for p in Stack().parameters())
    fit = partial(fit_stack, precision=precision)
    for strategy in ("fsdp2", ZooDDP()):
        out = tmp_path / str(type(strategy).__name__)
        out.mkdir()
        assert launch(fit, 2, out / "log", out, "", strategy) == [0, 0], logs(out / "log")
    for rank in "01":
        mine, plain = torch.load(tmp_path / "str" / rank), torch.load(tmp_path / "ZooDDP" / rank)
        assert_close(mine["weights"], plain["weights"])
        assert max(mine["held"]) < 0.52 * whole
        assert mine["averages"] < 0.52 * whole
        assert min(plain["held"]) == plain["averages"] == whole


@pytest.mark.parametrize("habit", ["part", "weight"])
def test_what_it_cannot_follow_is_said_in_one_line(tmp_path, habit):
    assert launch(fit_stack, 2, tmp_path / "log", tmp_path, habit, "fsdp2") == [0, 0], logs(tmp_path / "log")
    text = (tmp_path / "error0").read_text()
    assert "FSDPStack" not in text
    assert text.startswith("Stack ")
    assert "outside its forward: fsdp2 cannot follow that, use --trainer.strategy ddp." in text


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_faults_are_skipped_and_rolled_back(tmp_path, action):
    for strategy in ("fsdp2", ZooDDP()):
        out = tmp_path / type(strategy).__name__
        out.mkdir()
        guard = NonFiniteGuard(action, snapshot_every_n_steps=1)
        codes = launch(fit_stack, 2, out / "log", out, "overflow", strategy, guard)
        assert codes == [0, 0], logs(out / "log")
    mine, plain = (torch.load(tmp_path / name / "0")["weights"] for name in ("str", "ZooDDP"))
    assert all(value.isfinite().all() for value in mine.values())
    assert_close(mine, plain)


def test_no_average_of_the_weights(tmp_path):
    from zoo.callbacks.ema import EMA

    assert launch(fit_stack, 2, tmp_path / "log", tmp_path, "", "fsdp2", EMA) == [0, 0], logs(tmp_path / "log")
    assert "EMA" in (tmp_path / "error0").read_text()


def test_blocks_are_found_and_classes_named():
    model = DropPos(image_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, decoder_embed_dim=16,
                    decoder_depth=1, decoder_num_heads=2)  # fmt: skip
    names = [name for name, _ in blocks_of(model)]
    assert names == ["backbone.blocks.0", "backbone.blocks.1", "backbone.blocks.2", "decoder.blocks.0"]
    assert own_class(model) is DropPos
