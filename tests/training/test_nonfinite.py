"""A loss or gradient that is no number: what is said, kept and done."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks.nonfinite import NonFiniteGuard
from zoo.errors import ZooError

BAD_STEP = 3


class Net(L.LightningModule):
    """Fails at one batch, in its second layer or in the backward pass."""

    def __init__(self, fault: str = "forward") -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 4), Fragile(), nn.BatchNorm1d(4)
        self.fault = fault

    def training_step(self, batch, batch_idx):
        self.second.broken = self.fault == "forward" and batch_idx == BAD_STEP
        x = self.norm(self.second(self.first(batch[0])))
        if self.fault == "backward" and batch_idx == BAD_STEP:
            x = x + (x - x).abs().sqrt()  # 0, with the derivative 0 * inf
        loss = x.square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Fragile(nn.Module):
    broken = False

    def forward(self, x):
        return x / 0 if self.broken else x


class Record(L.Callback):
    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(pl_module.first.weight.detach().clone())


def fit(tmp_path, guard, fault="forward", **trainer_arguments):
    L.seed_everything(0)
    module, record = Net(fault), Record()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[guard, record], logger=CSVLogger(tmp_path, "", ""),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        **trainer_arguments,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(48, 4)), batch_size=8))
    return module, record, trainer


def test_stops_and_names_the_module(tmp_path):
    with pytest.raises(ZooError) as stop:
        fit(tmp_path, NonFiniteGuard("stop"))
    text = str(stop.value)
    assert "Step 3 (epoch 0, batch 3): the loss is nan" in text
    assert "First output that is not finite: second (Fragile), from finite input." in text
    assert "Gradients that are not finite: first.weight, first.bias" in text
    assert "\n" not in text
    kept = torch.load(tmp_path / "nonfinite" / "step00000003-rank0.pt")
    assert kept["whole"]
    assert kept["batch"][0].shape == (8, 4)
    assert kept["batch_idx"] == 3


def test_a_fault_of_the_backward_pass(tmp_path):
    with pytest.raises(ZooError, match=r"the loss is finite.*the loss or the backward pass is at fault.*first.weight"):
        fit(tmp_path, NonFiniteGuard("stop"), fault="backward")


def test_skips_the_step_and_nothing_else(tmp_path):
    with pytest.warns(UserWarning, match="The step is skipped"):
        module, record, trainer = fit(tmp_path, NonFiniteGuard("skip"))
    assert torch.equal(record.weights[BAD_STEP], record.weights[BAD_STEP - 1])
    assert not torch.equal(record.weights[BAD_STEP + 1], record.weights[BAD_STEP])
    assert all(p.isfinite().all() for p in module.parameters())
    state = trainer.optimizers[0].state[module.first.weight]
    assert state["step"] == 5  # of 6
    assert module.norm.num_batches_tracked == 6  # repeating the pass left no trace
    assert "train/skipped_steps" in (tmp_path / "metrics.csv").read_text()


def test_rolls_back_to_the_snapshot(tmp_path):
    with pytest.warns(UserWarning, match="Back to the weights of step 2"):
        _, record, _ = fit(tmp_path, NonFiniteGuard("rollback", snapshot_every_n_steps=2))
    assert torch.equal(record.weights[BAD_STEP], record.weights[1])


def test_patience_ends_a_hopeless_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Fragile, "forward", lambda self, x: x / 0)
    with pytest.raises(ZooError, match="2 steps in a row"), pytest.warns(UserWarning, match="skipped"):
        fit(tmp_path, NonFiniteGuard("skip", patience=2))


def test_the_kept_batch_is_bounded(tmp_path):
    with pytest.warns(UserWarning, match="skipped"):
        fit(tmp_path, NonFiniteGuard("skip", max_batch_mb=64 / 2**20))
    kept = torch.load(tmp_path / "nonfinite" / "step00000003-rank0.pt")
    assert not kept["whole"]
    assert kept["batch"][0].shape == (4, 4)


def test_float16_overflows_are_skipped_and_counted(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    guard = NonFiniteGuard("stop")
    fit(tmp_path, guard, fault="none", plugins=[plugin])
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert "train/loss_scale" in rows[0]
    assert "train/grad_norm" in rows[0]
    assert guard.skipped_steps > 0
    assert not (tmp_path / "nonfinite").exists()


def test_accumulation_blames_the_right_batch(tmp_path):
    with pytest.raises(ZooError, match=r"Step 0 \(epoch 0, batch 3\)"):
        fit(tmp_path, NonFiniteGuard("stop"), accumulate_grad_batches=6)
