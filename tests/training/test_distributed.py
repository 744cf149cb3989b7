"""Several processes on this machine (gloo): the same numbers as one, and no hanging."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from support_processes import SMALL, assert_close, free_port, launch, logs, recipe_of, weights_of
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils.data import DataLoader

from datamodules.base import ZooDataModule
from datamodules.sampling import EvalBatches, TrainBatches
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.nn.batch_norm import SyncOnCPU, layer_sync
from zoo.nn.contrastive import contrastive_loss
from zoo.papers.droppos import DropPos
from zoo.papers.droppos.masking import make_masks
from zoo.strategies import ZooDDP

# ---------------------------------------------------------------------- who gets which sample


@pytest.mark.parametrize("count", [1, 4, 5, 7, 32, 33, 63, 64, 65])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_evaluation_sees_every_sample_once_in_as_many_batches(count, world, batch_size):
    if count < world:
        with pytest.raises(ZooError, match="use fewer devices"):
            EvalBatches(count, batch_size, rank=0, world=world)
        return
    shards = [list(EvalBatches(count, batch_size, rank=rank, world=world)) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    assert len(shards[0]) == len(EvalBatches(count, batch_size, rank=0, world=world))
    assert sorted(index for shard in shards for batch in shard for _, index in batch) == list(range(count))
    assert all(batch for shard in shards for batch in shard)
    assert max(len(batch) for shard in shards for batch in shard) <= max(batch_size, 2)


@pytest.mark.parametrize("world", [2, 4])
def test_training_batches_of_many_devices_are_those_of_accumulation(world):
    one = list(TrainBatches(50, 3, seed=1))
    many = [list(TrainBatches(50, 3, seed=1, rank=rank, world=world)) for rank in range(world)]
    dealt = [batch for step in zip(*many, strict=True) for batch in step]
    assert dealt == one[: len(dealt)]
    order = TrainBatches(50, 3, seed=1)
    order.go_to(1, 5)
    resumed = list(order)
    order.set_epoch(1)
    assert resumed == list(order)[5:]
    assert resumed != one[5:]
    assert len(set(map(tuple, list(TrainBatches(10, 3, seed=1, drop_last=False))[-1]))) == 1


# ---------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("world", [2, 4])
def test_a_recipe_on_many_processes_equals_one_that_accumulates(world, tmp_path):
    """Ten steps of the whole of DropPos from the command line: data, augmentation, masks, schedule, optimiser; and what
    watches them changes nothing."""
    steps = ("--trainer.limit_train_batches", str(10 * world), "--trainer.accumulate_grad_batches", str(world))
    watchers = ("throughput.Throughput", "nonfinite.NonFiniteGuard")
    recipe = recipe_of(tmp_path, callbacks=[{"class_path": f"zoo.callbacks.{name}"} for name in watchers])
    one = ["run", str(recipe), "--run-dir", str(tmp_path / "one"), *steps]
    assert launch(main, 1, tmp_path / "log1", one) == [0]
    many = ["run", str(recipe), "--run-dir", str(tmp_path / "many"), "--trainer.devices", str(world),
            "--trainer.strategy", "ddp", "--trainer.limit_train_batches", "10"]  # fmt: skip
    assert launch(main, world, tmp_path / "log", many) == [0] * world, logs(tmp_path / "log")
    assert_close(weights_of(tmp_path / "many"), weights_of(tmp_path / "one"))
    assert torch.load(tmp_path / "many" / "checkpoints" / "last.ckpt")["global_step"] == 10


class Pairs(L.LightningModule):
    """Two towers under a contrastive loss over the global batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 5)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def training_step(self, batch, batch_idx):
        return contrastive_loss(self.left(batch), self.right(batch.flip(-1)), self.scale)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Rows(ZooDataModule):
    def train_dataloader(self) -> DataLoader:
        return self.loader(torch.randn(160, 6, generator=torch.Generator().manual_seed(1)), train=True)


def fit_pairs(out: Path, world: int, batch_size: int) -> None:
    L.seed_everything(5)
    module = Pairs()
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy=ZooDDP() if world > 1 else "auto", max_epochs=1, max_steps=10,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Rows(batch_size, num_workers=0))
    gradients = {f"{name}.grad": p.grad for name, p in module.named_parameters()}
    if trainer.is_global_zero:
        torch.save({**module.state_dict(), **gradients}, out)


@pytest.mark.parametrize("world", [2, 4])
def test_a_loss_that_gathers_equals_one_process_with_the_global_batch(world, tmp_path):
    assert launch(fit_pairs, 1, tmp_path / "1", tmp_path / "one.pt", 1, 16) == [0]
    assert launch(fit_pairs, world, tmp_path / "n", tmp_path / "many.pt", world, 16 // world) == [0] * world
    assert_close(torch.load(tmp_path / "many.pt"), torch.load(tmp_path / "one.pt"))


def global_loss_gradients(out: Path, world: int, global_loss: bool) -> None:
    torch.manual_seed(0)
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    model = DropPos(**SMALL, global_loss=global_loss).train()
    images, noise, positions = torch.randn(8, 3, 16, 16), torch.rand(8, 16), torch.rand(8, 12)
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    masks = make_masks(noise[mine], 0.25, 0.75, position_noise=positions[mine])
    model.position_task(images[mine], masks).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        torch.distributed.all_reduce(gradient)
        gradient /= world
    if rank == 0:
        torch.save(gradients, out)
    torch.distributed.destroy_process_group()


def test_droppos_can_take_its_loss_over_the_global_batch(tmp_path):
    for world, exact in ((1, True), (2, True), (2, False)):
        out = tmp_path / f"{world}{exact}.pt"
        assert launch(global_loss_gradients, world, tmp_path / out.stem, out, world, exact) == [0] * world
    one, two, plain = (torch.load(tmp_path / f"{name}.pt") for name in ("1True", "2True", "2False"))
    assert_close(two, one)
    assert max((plain[key] - one[key]).abs().max() for key in one) > 1e-5  # and it makes a difference


# ---------------------------------------------------------------------- nodes, clusters, accidents


def documented_torchrun(recipe: Path, where: str, run_dir: Path) -> str:
    """The line of the README, for two nodes of one process each."""
    page = Path(__file__).resolve().parents[2] / "README.md"
    (line,) = re.findall(r"(?m)^ +(torchrun .*)$", page.read_text(encoding="utf-8"))
    for written, meant in (("...", where), ("RECIPE", str(recipe)), (" 8", " 1")):
        assert written in line
        line = line.replace(written, meant)
    return f"{line} --run-dir {run_dir}"


def test_two_nodes_through_torchrun_and_slurm_from_the_same_file(tmp_path):
    recipe = recipe_of(tmp_path, num_nodes=2, devices=1, limit_train_batches=3)
    port = free_port()
    nodes = [
        subprocess.Popen(
            documented_torchrun(recipe, f"--node-rank {node} --master-addr 127.0.0.1 --master-port {port}",
                                tmp_path / "torchrun"),
            shell=True, executable="/bin/bash", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        for node in range(2)
    ]  # fmt: skip
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum(output.count("Left behind") for output in outputs) == 1  # the first process alone reports

    slurm = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "{rank}", "SLURM_LOCALID": "0", "SLURM_NODEID": "{rank}", "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NODELIST": "127.0.0.1",
    }  # fmt: skip
    arguments = ["run", str(recipe), "--run-dir", str(tmp_path / "slurm")]
    codes = launch(in_slurm, 2, tmp_path / "log", arguments, **slurm)
    assert codes == [0, 0], logs(tmp_path / "log")
    assert_close(weights_of(tmp_path / "slurm"), weights_of(tmp_path / "torchrun"))
    assert (tmp_path / "slurm" / "metrics.csv").read_bytes() == (tmp_path / "torchrun" / "metrics.csv").read_bytes()


def in_slurm(arguments: list[str]) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"):
        os.environ.pop(name)
    main(arguments)


def test_slurm_requeue_signal_saves_and_queues_again(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    (tools / "scontrol").chmod(0o755)
    recipe = recipe_of(tmp_path, devices=1, max_epochs=2, limit_train_batches=8)
    environment = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_NODELIST": "127.0.0.1", "PATH": f"{tools}:{os.environ['PATH']}",
    }  # fmt: skip
    whole = ["run", str(recipe), "--run-dir", str(tmp_path / "whole")]
    assert launch(in_slurm, 1, tmp_path / "log0", whole, **environment) == [0]
    arguments = ["run", str(recipe), "--run-dir", str(tmp_path / "run")]
    codes = launch(signalled, 1, tmp_path / "log1", arguments, **environment)
    assert codes == [143], logs(tmp_path / "log1")
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n"
    assert launch(in_slurm, 1, tmp_path / "log2", [*arguments, "--resume"], **environment) == [0]
    assert_close(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def signalled(arguments: list[str]) -> None:
    """Sends itself the requeue signal within the fifth step."""
    import signal

    step = DropPos.training_step

    def training_step(self, batch, batch_idx):
        if batch_idx == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch, batch_idx)

    DropPos.training_step = training_step
    in_slurm(arguments)


def test_two_killed_processes_resume_exactly(tmp_path):
    recipe = recipe_of(tmp_path, devices=2, strategy="ddp", limit_train_batches=6, max_epochs=3)
    whole = ["run", str(recipe), "--run-dir", str(tmp_path / "whole")]
    assert launch(main, 2, tmp_path / "log0", whole) == [0, 0], logs(tmp_path / "log0")
    arguments = ["run", str(recipe), "--run-dir", str(tmp_path / "run")]
    codes = launch(dying, 2, tmp_path / "log1", arguments, 0)
    assert codes[0] == -9
    assert codes[1] == 1, logs(tmp_path / "log1")
    assert "another process of this run is gone" in logs(tmp_path / "log1")
    assert launch(main, 2, tmp_path / "log2", [*arguments, "--resume"]) == [0, 0], logs(tmp_path / "log2")
    assert all(torch.equal(a, weights_of(tmp_path / "whole")[key]) for key, a in weights_of(tmp_path / "run").items())
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_a_signal_to_one_process_stops_all_in_the_same_step(tmp_path):
    recipe = recipe_of(tmp_path, devices=2, strategy="ddp", limit_train_batches=40, max_epochs=2)
    whole = ["run", str(recipe), "--run-dir", str(tmp_path / "whole")]
    assert launch(main, 2, tmp_path / "log0", whole) == [0, 0], logs(tmp_path / "log0")
    arguments = ["run", str(recipe), "--run-dir", str(tmp_path / "run")]
    codes = launch(terminated, 2, tmp_path / "log1", arguments, 1)
    assert codes == [143, 0], logs(tmp_path / "log1")
    text = logs(tmp_path / "log1")
    assert "everything is saved" in text
    asked, steps = (sum(map(int, re.findall(rf"{word} (\d+)", text))) for word in ("asked", "steps"))
    assert 0 < asked < steps / 2, text  # the device is not waited for in every step
    assert launch(main, 2, tmp_path / "log2", [*arguments, "--resume"]) == [0, 0], logs(tmp_path / "log2")
    assert all(torch.equal(a, weights_of(tmp_path / "whole")[key]) for key, a in weights_of(tmp_path / "run").items())
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def terminated(arguments: list[str], rank: int) -> None:
    """One process alone gets SIGTERM in the 30th step. Prints how often the processes asked each other."""
    import signal

    from zoo.callbacks import resumable

    step, mine = DropPos.training_step, int(os.environ["RANK"])
    reduce, counts = torch.distributed.all_reduce, {"asked": 0, "steps": 0}
    resumable._TALK_SECONDS = 0.3

    def training_step(self, batch, batch_idx):
        counts["steps"] += 1
        if self.global_step == 30 and mine == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    def all_reduce(tensor, *args, **kwargs):
        counts["asked"] += tensor.shape == (2,) and tensor.dtype == torch.int64
        return reduce(tensor, *args, **kwargs)

    DropPos.training_step, torch.distributed.all_reduce = training_step, all_reduce
    try:
        main(arguments)
    finally:
        print(f"asked {counts['asked']} steps {counts['steps']}", flush=True)


def dying(arguments: list[str], rank: int) -> None:
    """One process is killed in the ninth step."""
    step, mine = DropPos.training_step, int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))

    def training_step(self, batch, batch_idx):
        if self.global_step == 8 and mine == rank:
            os.kill(os.getpid(), 9)
        return step(self, batch, batch_idx)

    DropPos.training_step = training_step
    main(arguments)


def test_a_dead_process_ends_the_other_with_a_message(tmp_path):
    recipe = recipe_of(tmp_path, devices=2, strategy="ddp", limit_train_batches=10)
    began = time.monotonic()
    codes = launch(dying, 2, tmp_path / "log", ["run", str(recipe), "--run-dir", str(tmp_path / "run")], 1)
    assert codes == [1, -9], logs(tmp_path / "log")
    assert time.monotonic() - began < 60
    assert "another process of this run is gone" in (tmp_path / "log" / "rank0.log").read_text()


class Forgetful(Pairs):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Linear(3, 3)


def fit_forgetful(out: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=ZooDDP(), max_steps=3, logger=False,
                        enable_checkpointing=False, enable_progress_bar=False)  # fmt: skip
    try:
        trainer.fit(Forgetful(), datamodule=Rows(8, num_workers=0))
    except ZooError as error:
        (out / os.environ["RANK"]).write_text(str(error))


def test_unused_parameters_are_named(tmp_path):
    launch(fit_forgetful, 2, tmp_path / "log", tmp_path)
    assert "forgotten.weight, forgotten.bias" in (tmp_path / "0").read_text(), logs(tmp_path / "log")


def evaluate(out: Path) -> None:
    L.seed_everything(0)
    module = Counting()
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=ZooDDP(), max_epochs=1, logger=False,
                        limit_train_batches=1, enable_checkpointing=False, enable_progress_bar=False,
                        num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(module, datamodule=Uneven(4, num_workers=0))
    if trainer.is_global_zero:
        torch.save({"mean": trainer.callback_metrics["mean"]}, out)


class Counting(Pairs):
    def validation_step(self, batch, batch_idx):
        self.all_gather(torch.zeros(()))  # a collective call in every step: none may be missing
        self.log("mean", batch.mean(), sync_dist=True, batch_size=len(batch))


class Normalised(L.LightningModule):
    """Batch normalisation in one, two and three dimensions."""

    def __init__(self, synchronised: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sync_batchnorm = synchronised
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 1),
            nn.BatchNorm2d(4, momentum=None), nn.Unflatten(1, (4, 1)), nn.BatchNorm3d(4, affine=False),
            nn.Flatten(), nn.Linear(16, 1),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        return self.net(batch + batch.square()).sub(batch.sum(1, keepdim=True)).square().mean()

    def on_train_start(self):
        self.kinds = [type(module).__name__ for module in self.modules() if "BatchNorm" in type(module).__name__]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit_normalised(out: Path, world: int, batch_size: int, synchronised: bool, strategy: Any = None) -> None:
    L.seed_everything(5)
    module = Normalised(synchronised).double()
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy=strategy or (ZooDDP() if world > 1 else "auto"), max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        precision="64-true",
    )  # fmt: skip
    trainer.fit(module, datamodule=Rows(batch_size, num_workers=0))
    kinds = [type(part).__name__ for part in module.modules() if "BatchNorm" in type(part).__name__]
    if trainer.is_global_zero:
        torch.save({"state": module.state_dict(), "during": module.kinds, "after": kinds}, out)


def test_batch_norm_is_synchronised_where_a_module_asks_and_only_there(tmp_path):
    runs = {"one": (1, 16, True), "two": (2, 8, True), "plain": (2, 8, False)}
    for name, options in runs.items():
        codes = launch(fit_normalised, options[0], tmp_path / name, tmp_path / f"{name}.pt", *options)
        assert codes == [0] * options[0], logs(tmp_path / name)
    one, two, plain = (torch.load(tmp_path / f"{name}.pt") for name in runs)
    assert two["during"] == ["SynchronisedBatchNorm1d", "SynchronisedBatchNorm2d", "SynchronisedBatchNorm3d"]
    assert one["during"] == plain["during"] == ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
    assert two["after"] == one["during"]
    assert_close(two["state"], one["state"])
    assert max((plain["state"][key] - one["state"][key]).abs().max() for key in one["state"]) > 1e-3


def test_batch_norm_that_does_more_is_not_synchronised():
    plain, more = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(BatchNormAct2d(3))
    assert isinstance(layer_sync(plain, torch.device("cpu")), SyncOnCPU)
    assert isinstance(layer_sync(plain, torch.device("cuda", 0)), TorchSyncBatchNorm)
    with pytest.raises(ZooError, match=r"0 \(BatchNormAct2d\) is no plain batch norm"):
        layer_sync(more, torch.device("cpu"))


class Uneven(Rows):
    def val_dataloader(self) -> DataLoader:
        return self.loader(torch.arange(17.0)[:, None], train=False)


def test_uneven_evaluation_is_exact(tmp_path):
    assert launch(evaluate, 2, tmp_path / "log", tmp_path / "out.pt") == [0, 0], logs(tmp_path / "log")
    assert torch.load(tmp_path / "out.pt")["mean"] == np.arange(17).mean()
