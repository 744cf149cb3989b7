"""Throughput, probes and averages."""

from __future__ import annotations

import csv

import lightning as L
import pytest
import torch

from datamodules.droppos import DropPosDataModule
from zoo.callbacks.ema import EMA
from zoo.callbacks.online_probe import OnlineProbe
from zoo.callbacks.throughput import Throughput, first_dimension
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
    assert monitor._flops > 3 * 2 * 32 * 13 * 12 * 24**2


def test_first_dimension():
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
