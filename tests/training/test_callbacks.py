"""Throughput, probes and averages."""

from __future__ import annotations

import csv
import dataclasses
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from datamodules.droppos import DropPosDataModule
from zoo.callbacks.completed import CompletedRun
from zoo.callbacks.dry_run import DryRun
from zoo.callbacks.ema import EMA
from zoo.callbacks.figures import Figures
from zoo.callbacks.modes import evaluating
from zoo.callbacks.online_probe import OnlineProbe
from zoo.callbacks.resumable import ResumableCheckpoint
from zoo.callbacks.seeding import SeedEachStep
from zoo.callbacks.throughput import Throughput, first_dimension
from zoo.flops import peak_flops
from zoo.loggers import MetricsCSV
from zoo.papers.droppos import DropPos


def fit(tmp_path, *callbacks, **more):
    L.seed_everything(0)
    module = DropPos(image_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, decoder_embed_dim=16,
                     decoder_depth=1, decoder_num_heads=2, mask_ratio=0.25, lr=1e-2, warmup_epochs=0)  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=4, limit_val_batches=1, logger=MetricsCSV(tmp_path),
        callbacks=list(callbacks), enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=1, **more,
    )  # fmt: skip
    data = DropPosDataModule("digits", image_size=16, batch_size=32, num_workers=0)
    trainer.fit(module, datamodule=data)
    with (tmp_path / "metrics.csv").open() as file:
        return module, list(csv.DictReader(file))


def test_throughput_changes_nothing_and_counts_flops(tmp_path):
    plain, _ = fit(tmp_path / "plain")
    monitor = Throughput(window_size=3)
    watched, rows = fit(tmp_path / "watched", monitor)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    speeds = [float(row["train/device/samples_per_sec"]) for row in rows if row.get("train/device/samples_per_sec")]
    assert speeds
    assert min(speeds) > 0
    assert max(float(row["train/process_memory_gib"] or 0) for row in rows) > 0.1
    # One block of width 24 on 32 images of 13 tokens, three passes' worth of products, and the rest on top.
    assert monitor.flops_per_batch > 3 * 2 * 32 * 13 * 12 * 24**2


class SmallViT(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10)

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def hand_count(batch: int) -> int:
    """Forward and backward pass of `SmallViT`: two operations a product, the backward pass twice the forward."""
    tokens, dim, depth = 17, 32, 2
    block = tokens * dim * (3 * dim + dim + 4 * dim + 4 * dim) + 2 * tokens * tokens * dim
    patches, head = 16 * (3 * 16) * dim, dim * 10
    return 2 * batch * (3 * depth * block + 2 * patches + 3 * head)  # no gradient of the images


@pytest.mark.parametrize("accumulate", [1, 2])
def test_utilisation_is_the_hand_count_over_time_and_peak(tmp_path, accumulate):
    monitor, batch = Throughput(window_size=3), 6
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=MetricsCSV(tmp_path), callbacks=[monitor, Peak(1e12)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(SmallViT(), torch.utils.data.DataLoader(torch.randn(batch * 8, 3, 16, 16), batch_size=batch))
    assert monitor.flops_per_batch == hand_count(batch)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/device/mfu")]
    assert rows
    for row in rows:
        done = hand_count(batch) * float(row["train/device/batches_per_sec"])
        assert float(row["train/device/flops_per_sec"]) == pytest.approx(done)
        assert float(row["train/device/mfu"]) == pytest.approx(done / 1e12)
        assert float(row["train/device/samples_per_sec"]) == pytest.approx(
            batch * float(row["train/device/batches_per_sec"])
        )


class Peak(L.Callback):
    """A CPU whose peak is known."""

    def __init__(self, flops: float) -> None:
        self.flops = flops

    def on_train_start(self, trainer, pl_module):
        monitor = next(callback for callback in trainer.callbacks if isinstance(callback, Throughput))
        for throughput in monitor._throughputs.values():
            throughput.available_flops = self.flops


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H100 NVL", torch.bfloat16, 835.5e12),
        ("NVIDIA H200", torch.bfloat16, 989.4e12),
        ("NVIDIA H200", torch.float16, 989.4e12),
        ("NVIDIA H200", torch.float32, 66.9e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("Tesla V100-SXM2-32GB", torch.float16, 125e12),
        ("NVIDIA H200", torch.int8, None),
    ],
)
def test_peaks_are_dense_ones(monkeypatch, name, dtype, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda._is_ampere_or_later", lambda: True)
    assert peak_flops(torch.device("cuda", 0), dtype) == peak
    assert peak_flops(torch.device("cpu"), dtype) is None


def test_looking_at_a_model_leaves_frozen_parts_alone(tmp_path):
    module = SmallViT()
    module.net.blocks[0].eval()
    module.train(True)
    module.net.blocks[0].eval()
    before = [part.training for part in module.modules()]
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == before
    with pytest.raises(RuntimeError), evaluating(module):
        raise RuntimeError
    assert [part.training for part in module.modules()] == before


class Ends(L.Callback):
    """What a report sees at the end of a run, and what validation came before it."""

    def __init__(self):
        self.validated, self.seen = [], {}

    def on_validation_epoch_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(trainer.current_epoch)

    def on_fit_end(self, trainer, pl_module):
        self.seen = {key: float(value) for key, value in trainer.callback_metrics.items()}
        self.stage = trainer.state.stage


class Saves(L.pytorch.callbacks.Checkpoint):
    validated = 0

    def on_validation_end(self, trainer, pl_module):
        self.validated += not trainer.sanity_checking


@pytest.mark.parametrize(
    "limits", [dict(max_epochs=2), dict(max_epochs=3, check_val_every_n_epoch=2), dict(max_steps=6)]
)
def test_a_run_with_nothing_left_to_train_gives_its_reports_what_they_had(tmp_path, limits):
    first, again, saves = Ends(), Ends(), Saves()
    for ends, more in ((first, []), (again, [saves])):
        L.seed_everything(0)
        module = DropPos(image_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, decoder_embed_dim=16,
                         decoder_depth=1, decoder_num_heads=2, mask_ratio=0.25, lr=1e-2, warmup_epochs=0)  # fmt: skip
        trainer = L.Trainer(
            accelerator="cpu", limit_train_batches=4, limit_val_batches=1, logger=MetricsCSV(tmp_path),
            callbacks=[CompletedRun(), EMA(0.5), ends, Throughput(), SeedEachStep(), ResumableCheckpoint(), *more],
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **limits,
        )  # fmt: skip
        data = DropPosDataModule("digits", image_size=16, batch_size=32, num_workers=0)
        before = (tmp_path / "metrics.csv").read_bytes() if more else b""
        trainer.fit(module, datamodule=data, ckpt_path=tmp_path / "checkpoints" / "last.ckpt" if more else None)
    assert again.seen == first.seen
    assert any(key.startswith("val/") for key in first.seen)
    assert again.stage == first.stage
    assert again.validated == [trainer.current_epoch - 1]
    assert saves.validated == 0
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_figures_are_of_the_first_batch_of_the_first_loader(tmp_path):
    drawn = []

    class TwoLoaders(SmallViT):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.net(batch)

        def figures(self, batch):
            drawn.append((float(batch.mean()), self.training, self.net.norm.training))
            torch.rand(3)  # must not move what training draws
            return {}

    module = TwoLoaders()
    loaders = [torch.utils.data.DataLoader(torch.full((4, 3, 16, 16), value), batch_size=2) for value in (1.0, 2.0)]
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, callbacks=[Figures(1)], num_sanity_val_steps=0,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                        default_root_dir=tmp_path)  # fmt: skip
    module.train()
    module.net.norm.eval()
    trainer.fit(module, loaders[0], loaders)
    assert drawn == [(1.0, False, False)] * 2
    assert module.net.blocks.training
    assert not module.net.norm.training


class Sized:
    """A loader of so many batches, or of an unknown number."""

    def __init__(self, count: int | None) -> None:
        self.count = count

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError("no length")
        return self.count


@pytest.mark.parametrize(
    ("count", "limits", "said"),
    [
        (10, dict(max_epochs=3), ["10 batches on each of 4 devices, about 20 s", "3 epochs, about 60 s"]),
        (10, dict(max_epochs=3, limit_train_batches=0.5), ["5 batches", "3 epochs, about 30 s"]),
        (10, dict(max_epochs=3, limit_train_batches=4), ["4 batches", "3 epochs, about 24 s"]),
        (10, dict(max_steps=6), ["10 batches", "6 steps, about 24 s"]),
        (None, dict(max_steps=6), ["6 steps, about 24 s"]),
        (None, dict(max_epochs=3), ["2.000 s"]),
    ],
)
def test_dry_run_projects_what_one_device_does(capsys, monkeypatch, count, limits, said):
    dry = DryRun(**limits)
    dry.step_seconds = [9.0, 2.0]
    trainer = SimpleNamespace(is_global_zero=True, world_size=4, accumulate_grad_batches=2,
                              train_dataloader=Sized(count))  # fmt: skip
    monkeypatch.setenv("COLUMNS", "200")
    dry.on_fit_end(trainer, SmallViT())
    printed = capsys.readouterr().out
    assert all(text in printed for text in said)
    assert ("epoch " in printed) == (count is not None)


@dataclasses.dataclass
class Pair:
    name: str
    images: torch.Tensor


def test_first_dimension():
    assert first_dimension(Pair("x", torch.zeros(4, 2))) == 4
    assert first_dimension({"scale": torch.zeros(()), "images": torch.zeros(5)}) == 5
    images = torch.zeros(3, 2)
    assert first_dimension(images) == first_dimension([images, 1]) == first_dimension({"a": {"b": images}}) == 3
    assert first_dimension("text") == 0


def test_online_probe_draws_nothing_and_beats_chance(tmp_path):
    plain, _ = fit(tmp_path / "plain")
    probed, rows = fit(tmp_path / "probed", OnlineProbe(every_n_epochs=2, linear=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), probed.parameters(), strict=True))
    scores = [row for row in rows if row.get("probe/knn_acc")]
    assert len(scores) == 1
    assert float(scores[0]["probe/knn_acc"]) > 0.2
    assert float(scores[0]["probe/linear_acc"]) > 0.2
    with pytest.raises(Exception, match="at least 1"):
        OnlineProbe(every_n_epochs=0)


def test_ema_averages_weights_but_no_targets(tmp_path):
    """The smoothing map of DropPos is a buffer outside the state dict: it is not averaged."""
    ema = EMA(decay=0.5)
    module, _ = fit(tmp_path, ema)
    assert torch.equal(module.smoothing, module.smoothing_at(0.5))  # of the second of two epochs
    weights = dict(module.named_parameters())
    average = dict(ema._average_model.module.named_parameters())
    assert all(torch.equal(weights[name], average[name]) for name in weights)  # taken over when training ends
