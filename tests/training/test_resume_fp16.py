"""The loss scale of a float16 run: its value and its count of good steps go on where a killed run left them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from datamodules.base import ZooDataModule
from zoo.callbacks.nonfinite import NonFiniteGuard
from zoo.callbacks.resumable import ResumableCheckpoint
from zoo.callbacks.seeding import SeedEachStep
from zoo.checkpoint_io import AtomicCheckpointIO
from zoo.loggers import MetricsCSV
from zoo.resume import last_good

GROWTH_INTERVAL = 4


class Net(L.LightningModule):
    """Overflows in float16 now and then, from the scale alone."""

    def __init__(self, die_at: int | None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 1))
        self.die_at = die_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.die_at:
            raise Killed
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Killed(Exception):
    pass


class Rows(ZooDataModule):
    def train_dataloader(self) -> DataLoader:
        return self.loader(torch.randn(80, 4, generator=torch.Generator().manual_seed(1)), train=True)


class Watch(L.Callback):
    def __init__(self) -> None:
        self.states: dict[int, tuple[float, int]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        state = trainer.precision_plugin.scaler.state_dict()
        self.states[trainer.global_step] = (state["scale"], state["_growth_tracker"])


def fit(folder: Path, die_at: int | None = None) -> tuple[Net, Watch]:
    L.seed_everything(0, verbose=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**21, growth_interval=GROWTH_INTERVAL)
    module, watch, saves = Net(die_at), Watch(), ResumableCheckpoint(folder / "checkpoints", every_n_steps=1)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=MetricsCSV(folder), enable_progress_bar=False, log_every_n_steps=1,
        enable_model_summary=False, plugins=[MixedPrecision("16-mixed", "cpu", scaler), AtomicCheckpointIO()],
        callbacks=[SeedEachStep(), NonFiniteGuard(), watch, saves],
    )  # fmt: skip
    checkpoint, _ = last_good(folder)
    trainer.fit(module, datamodule=Rows(8, num_workers=0), ckpt_path=checkpoint)
    return module, watch


@pytest.mark.parametrize("die_at", [2, 7, 13])
def test_scale_and_growth_go_on(tmp_path, die_at):
    whole, watched = fit(tmp_path / "whole")
    scales = [scale for scale, _ in watched.states.values()]
    assert len(set(scales)) > 2, "the scale neither fell nor rose: the test shows nothing"
    assert any(b > a for a, b in pairwise(scales))
    with pytest.raises(Killed):
        fit(tmp_path / "killed", die_at)
    resumed, again = fit(tmp_path / "killed")
    assert min(again.states) == die_at + 1  # nothing was trained twice
    assert again.states == {step: state for step, state in watched.states.items() if step > die_at}
    assert {growth for _, growth in watched.states.values()} > {0}
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    files = [(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "killed")]
    mine, theirs = (torch.load(file)["MixedPrecision"] for file in files)
    assert mine == theirs
    assert mine["scale"] == scales[-1]
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "killed" / "metrics.csv").read_bytes()
