"""Killed runs that go on: the same weights bit for bit, and the same metrics.csv byte for byte."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import torchmetrics
import yaml
from torch.utils.data import DataLoader

from zoo.callbacks.loop_state import _restore_metrics, capture
from zoo.callbacks.resumable import file_position
from zoo.cli.run import main
from zoo.resume import damage, find_resume, last_good

RECIPE = {
    "recipe": {"title": "small", "subcommand": "fit"},
    "seed_everything": 3,
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 5,
        "limit_train_batches": 12,
        "limit_val_batches": 2,
        "check_val_every_n_epoch": 2,
        "accumulate_grad_batches": 2,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "zoo.callbacks.resumable.ResumableCheckpoint", "init_args": {"every_n_steps": 2}},
            {"class_path": "zoo.callbacks.ema.EMA", "init_args": {"decay": 0.9}},
        ],
    },
    "model": {
        "class_path": "zoo.papers.droppos.DropPos",
        "init_args": {
            "image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_embed_dim": 16,
            "decoder_depth": 1, "decoder_num_heads": 2, "mask_ratio": 0.25, "lr": 1e-3, "warmup_epochs": 1,
        },
    },
    "data": {
        "class_path": "datamodules.droppos.DropPosDataModule",
        "init_args": {"root": "digits", "image_size": 16, "batch_size": 16, "crop_scale": [0.6, 1.0], "num_workers": 0},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(recipe, folder) == 0
    return folder


def _child(arguments: list[str], log: Path) -> None:
    torch.set_num_threads(1)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
    main(arguments)


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def start(recipe: Path, folder: Path, *more: str) -> multiprocessing.Process:
    # A server that has everything imported and forks: a run starts at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.cli.runner", "zoo.papers.droppos", "datamodules.droppos", "tensorboard"])
    process = context.Process(
        target=_child, args=(["run", str(recipe), "--run-dir", str(folder), *more], log_of(folder))
    )
    process.start()
    return process


def run(recipe: Path, folder: Path, *more: str) -> int:
    process = start(recipe, folder, *more)
    process.join(120)
    return process.exitcode


def assert_same(folder: Path, whole: Path) -> None:
    mine, theirs = (torch.load(path / "checkpoints" / "last.ckpt") for path in (folder, whole))
    for checkpoint in (mine, theirs):  # a resumed run has every default written out, and may use other workers
        checkpoint.pop("datamodule_hyper_parameters", None)
    assert_equal(mine, theirs, "")
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def assert_equal(mine, theirs, where: str) -> None:
    assert type(mine) is type(theirs), where
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs), where
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for key in mine:
            assert_equal(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs), where
        for index, pair in enumerate(zip(mine, theirs, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert mine == theirs, where


def test_twenty_random_kills(recipe, whole, tmp_path):
    draw = random.Random(0)
    kills, runs = 0, 0
    while kills < 20:
        folder, runs, finished, resume = tmp_path / str(runs), runs + 1, False, ()
        while not finished:
            # The number of workers may change on the way as well.
            workers = ("--data.num_workers", str(draw.choice([0, 0, 2])))
            process = start(recipe, folder, *resume, *workers)
            if kills < 20:
                process.join(draw.uniform(0.2, 2.5))
            if kills < 20 and process.is_alive():
                process.kill()
                kills += 1
            process.join(120)
            assert process.exitcode in (0, -signal.SIGKILL)
            finished, resume = process.exitcode == 0, ("--resume",)
        assert_same_but_workers(folder, whole)


def assert_same_but_workers(folder: Path, whole: Path) -> None:
    for path in (folder, whole):
        file = path / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(file)
        checkpoint.get("datamodule_hyper_parameters", {}).pop("num_workers", None)
        torch.save(checkpoint, file)
    assert_same(folder, whole)


def test_a_damaged_checkpoint_is_passed_over_and_named(recipe, whole, tmp_path):
    folder = tmp_path / "run"
    interrupt(recipe, folder, after="epoch0003-batch000004.ckpt")
    newest, before = sorted((folder / "checkpoints").glob("epoch*.ckpt"), key=file_position, reverse=True)[:2]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    assert not damage(before)
    flipped = tmp_path / "flipped.ckpt"
    flipped.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    assert "damaged" in damage(flipped)

    assert run(recipe, folder, "--resume") == 0
    printed = log_of(folder).read_text()
    assert f"{newest} is truncated" in printed
    assert f"Going on from {before}" in printed
    assert_same(folder, whole)


def interrupt(recipe: Path, folder: Path, after: str, how: int = signal.SIGKILL, *more: str) -> int:
    """Kills a run once it has written a certain checkpoint, or a later one."""
    process, wanted = start(recipe, folder, *more), file_position(Path(after))
    while process.is_alive():
        if any((file_position(path) or (0, 0)) >= wanted for path in (folder / "checkpoints").glob("epoch*.ckpt")):
            os.kill(process.pid, how)
            break
        time.sleep(0.01)
    process.join(60)
    return process.exitcode


def test_sigterm_saves_and_says_how_to_go_on(recipe, whole, tmp_path):
    folder = tmp_path / "run"
    assert interrupt(recipe, folder, "epoch0001.ckpt", signal.SIGTERM) == 143
    assert f"--resume --run-dir {folder}" in log_of(folder).read_text()
    assert run(recipe, folder, "--resume") == 0
    assert_same(folder, whole)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=True).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def test_tensorboard_shows_every_event_once(recipe, whole, tmp_path):
    folder = tmp_path / "run"
    interrupt(recipe, folder, "epoch0000-batch000006.ckpt")
    interrupt(recipe, folder, "epoch0002-batch000004.ckpt", signal.SIGKILL, "--resume")
    # What the killed run still logged after its last checkpoint.
    from torch.utils.tensorboard import SummaryWriter

    logged = torch.load(folder / "checkpoints" / "last.ckpt")["zoo_resume"]["logged_steps"]
    # Files are read in the order of their names, and those of one second may be out of it: none is, before or after.
    time.sleep(1.1)
    with SummaryWriter(folder) as stale:
        stale.add_scalar("train/loss", 1e9, logged)
    time.sleep(1.1)
    assert (logged, 1e9) in [(step, round(value)) for step, value in events(folder)["train/loss"]]
    assert run(recipe, folder, "--resume") == 0
    assert len(list(folder.glob("events.out.tfevents.*"))) == 4
    assert events(folder) == events(whole)
    assert len(events(whole)["train/loss"]) == 30


def test_validation_within_an_epoch(recipe, tmp_path):
    """Resumed right after a validation, and from where a whole epoch's mean is in the making."""
    more = ("--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "4", "--trainer.max_epochs", "2")
    assert run(recipe, tmp_path / "whole", *more) == 0
    for after in ("epoch0000-batch000004.ckpt", "epoch0001-batch000006.ckpt"):
        folder = tmp_path / after
        interrupt(recipe, folder, after, signal.SIGKILL, *more)
        assert run(recipe, folder, "--resume") == 0
        assert_same(folder, tmp_path / "whole")


def test_a_finished_run_can_be_prolonged(recipe, whole, tmp_path):
    # A constant learning rate: the cosine would have another length.
    short, long = ("--trainer.max_epochs", "2"), ("--trainer.max_epochs", "3")
    flat = ("--trainer.callbacks", "null", "--model.min_lr", "1e-3", "--model.warmup_epochs", "0",
            "--model.sigma_decay", "false")  # fmt: skip
    assert run(recipe, tmp_path / "long", *flat, *long) == 0
    assert run(recipe, tmp_path / "short", *flat, *short) == 0
    assert run(recipe, tmp_path / "short", "--resume") == 0  # nothing is left to do
    assert run(recipe, tmp_path / "short", "--resume", *long) == 0
    mine, theirs = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("short", "long"))
    assert_equal(mine["state_dict"], theirs["state_dict"], "")
    assert (tmp_path / "short" / "metrics.csv").read_bytes() == (tmp_path / "long" / "metrics.csv").read_bytes()


def test_nothing_to_resume_is_a_first_run(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_RESUME", raising=False)
    found = find_resume("small", None)
    assert found.folder is None
    assert "this is the first" in found.notes[0]
    (tmp_path / "runs" / "small" / "20260101-000000" / "checkpoints").mkdir(parents=True)
    newest = tmp_path / "runs" / "small" / "20260102-000000"
    newest.mkdir()
    found = find_resume("small", None)
    assert found.folder == Path("runs/small") / newest.name
    assert "from the beginning" in found.notes[0]
    assert last_good(newest) == (None, [])
    with pytest.raises(SystemExit):
        main(["run", str(recipe), "--resume", "--ckpt_path", "x.ckpt"])


def test_running_means_of_metrics_survive():
    """What a module's torchmetrics and its epoch logs have gathered is part of the state."""
    module = Means()
    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, accelerator="cpu", callbacks=[Halfway()])  # fmt: skip
    trainer.fit(module, DataLoader(torch.arange(8.0), batch_size=2))
    state = module.captured
    fresh = Means()
    _restore_metrics(fresh, state["ranks"][0]["metrics"])
    assert fresh.metric.compute() == torch.arange(4.0).mean()
    values = {entry["meta"]["name"]: entry["values"] for entry in state["ranks"][0]["results"]}
    assert values["mean"]["value"] == torch.arange(4.0).sum()
    assert values["mean"]["cumulated_batch_size"] == 4


class Means(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.metric = torchmetrics.MeanMetric()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        self.metric(batch)
        self.log("mean", batch.mean(), on_epoch=True, on_step=False, batch_size=len(batch))
        return self.weight * batch.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Halfway(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            pl_module.captured = capture(trainer, pl_module)
