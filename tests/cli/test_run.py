"""`lightning run` as a user meets it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from zoo.cli.run import main
from zoo.recipes import recipe_names

TINY = [
    "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2", "--trainer.check_val_every_n_epoch", "1",
    "--model.embed_dim", "24", "--model.depth", "1", "--model.decoder_embed_dim", "16", "--model.decoder_depth", "1",
    "--model.warmup_epochs", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet_logging(monkeypatch):
    # Lightning's log handler holds on to the stderr that the first test captured.
    monkeypatch.setattr("logging.raiseExceptions", False)


def fails(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_quickstart_leaves_everything_it_promises(tmp_path, capsys):
    run = tmp_path / "run"
    # No validation in the last epoch: its weights must be saved all the same.
    main(["run", "droppos/quickstart", "--run-dir", str(run), *TINY, "--trainer.max_epochs", "3",
          "--trainer.check_val_every_n_epoch", "2"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "position top-1" in printed
    assert "same network untrained" in printed
    assert str(run / "figures" / "positions.png") in printed
    assert "Try next" in printed
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["sigma"] == 1.0  # a default, resolved
    assert config["model"]["init_args"]["embed_dim"] == 24
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert any(row.get("val/position_acc") for row in rows)
    assert list(run.glob("events.out.tfevents*"))
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 2
    assert checkpoint["zoo"]["class_path"] == "zoo.papers.droppos.module.DropPos"
    results = {row["name"]: row for row in json.loads((run / "results.json").read_text())}
    assert results["position top-1"]["baseline"] == pytest.approx(1 / 16)
    assert 0 < results["linear probe accuracy"]["value"] <= 1
    from PIL import Image

    assert min(Image.open(run / "figures" / "positions.png").size) > 300


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_parses(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", name, "--print-config"])
    assert stop.value.code in (0, None)
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"].startswith("zoo.")
    assert config["recipe"]["title"]


def test_print_config_shows_overrides(capsys):
    with pytest.raises(SystemExit):
        main(["run", "droppos/quickstart", "--print-config", "--model.lr", "0.5"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["lr"] == 0.5


def test_dry_run_reports_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["run", "droppos/quickstart", "--dry-run", *TINY])
    printed = capsys.readouterr().out
    assert "parameters" in printed
    assert "process memory" in printed
    assert "2 epochs" in printed
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys):
    assert "Did you mean 'droppos/quickstart'" in fails(capsys, "run", "droppos/quikstart")
    assert "no recipe file" in fails(capsys, "run", "nothing.yaml")
    assert "Did you mean 'embed_dim'" in fails(capsys, "run", "droppos/quickstart", "--model.embd_dim", "3")
    assert "Did you mean 'max_epochs'" in fails(capsys, "run", "droppos/quickstart", "--trainer.max_epoch", "3")
    assert "Did you mean 'model'" in fails(capsys, "run", "droppos/quickstart", "--modl.lr", "3")
    assert "no data folder" in fails(
        capsys, "run", "droppos/quickstart", "--data.root", str(tmp_path / "no"), "--run-dir", str(tmp_path / "r")
    )
    assert "embed_dim" in fails(capsys, "run", "droppos/quickstart", "--model.embed_dim", "many")
    (tmp_path / "empty").mkdir()
    assert "no class subfolders" in fails(
        capsys, "run", "droppos/quickstart", "--data.root", str(tmp_path / "empty"), "--run-dir", str(tmp_path / "r")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "Did you mean 'model'"),
        ({"trainer": {"max_epoch": 3}}, "Did you mean 'max_epochs'"),
        ({"model": {"class_path": "zoo.papers.droppos.DropPos", "init_args": {"dept": 2}}}, "Did you mean 'depth'"),
        ({"model": {"class_path": "zoo.papers.droppos.DropPoss"}}, "Cannot import"),
        ({"recipe": {"titel": "x"}}, "Did you mean 'title'"),
    ],
)
def test_wrong_keys_in_a_recipe_are_named(tmp_path, capsys, change, message):
    recipe = {"model": {"class_path": "zoo.papers.droppos.DropPos"}, **change}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe))
    error = fails(capsys, "run", str(path))
    assert message in error
    assert str(path) in error


def test_checkpoint_of_another_architecture(tmp_path, capsys):
    run = tmp_path / "run"
    main(["run", "droppos/quickstart", "--run-dir", str(run), *TINY])
    error = fails(
        capsys, "run", "droppos/quickstart", "--run-dir", str(tmp_path / "other"), *TINY, "--model.embed_dim", "48",
        "--ckpt_path", str(run / "checkpoints" / "last.ckpt"),
    )  # fmt: skip
    assert "The weights of this checkpoint do not fit DropPos: mask_pos_token has shape (1, 1, 24), the model" in error


def test_full_disk_says_so_and_keeps_the_checkpoint(tmp_path, capsys, monkeypatch):
    import errno

    from lightning.pytorch.plugins.io import TorchCheckpointIO

    run = tmp_path / "run"
    saves, real = [], TorchCheckpointIO.save_checkpoint

    def save(self, checkpoint, path, *args, **kwargs):
        saves.append(path)
        if len(saves) > 1:
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, checkpoint, path, *args, **kwargs)

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", save)
    assert "disk is full" in fails(capsys, "run", "droppos/quickstart", "--run-dir", str(run), *TINY)
    kept = list((run / "checkpoints").iterdir())
    assert sorted(path.name for path in kept) == ["epoch0000.ckpt", "last.ckpt"]
    assert all("state_dict" in torch.load(path, weights_only=True) for path in kept)


def test_foreign_commands_are_explained_or_handed_over(capsys, monkeypatch):
    assert "lightning run RECIPE" in fails(capsys, "login")
    main([])
    assert "Usage: lightning run" in capsys.readouterr().out

    import importlib.metadata

    class Entry:
        dist = type("Dist", (), {"name": "lightning_sdk"})

        @staticmethod
        def load():
            return lambda: 7

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [Entry])
    with pytest.raises(SystemExit) as stop:
        main(["login"])
    assert stop.value.code == 7


def test_two_processes_on_cpu_with_accumulation(tmp_path):
    command = [
        sys.executable, "-m", "zoo.cli.run", "run", "droppos/quickstart", "--run-dir", str(tmp_path / "run"), *TINY,
        "--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp",
        "--trainer.accumulate_grad_batches", "2", "--data.batch_size", "32",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("What it learned") == 1
    assert (tmp_path / "run" / "results.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_skipped_images_are_counted_at_the_end(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    for split in ("train", "val"):
        (tmp_path / "data" / split / "c").mkdir(parents=True)
        for index in range(4):
            values = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "data" / split / "c" / f"{index}.jpg")
    broken = tmp_path / "data" / "train" / "c" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    arguments = ["--data.root", str(tmp_path / "data"), "--data.batch_size", "4", "--trainer.callbacks", "null"]
    assert str(broken) in fails(
        capsys, "run", "droppos/quickstart", "--run-dir", str(tmp_path / "a"), *TINY, *arguments
    )
    main(["run", "droppos/quickstart", "--run-dir", str(tmp_path / "b"), *TINY, *arguments,
          "--data.on_bad_image", "skip"])  # fmt: skip
    assert "passed over 2 times" in capsys.readouterr().out
