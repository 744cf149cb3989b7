"""The recipes: each is read and built as `lightning run` does, and the small ones run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import zoo
from datamodules.clip2point import PairDataModule
from zoo.cli.app import main as zoo_main
from zoo.cli.run import main
from zoo.papers.clip2point.caching import KeepImageFeatures

SMALL = ["--data.primitives_per_class", "[3,2]", "--data.batch_size", "8", "--data.num_points", "96"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(cache))


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart of two steps, with all its callbacks and the kept image features."""
    folder = tmp_path_factory.mktemp("run") / "q"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(cache))
        few = [
            "--trainer.max_epochs",
            "1",
            "--trainer.limit_train_batches",
            "2",
            "--trainer.check_val_every_n_epoch",
            "1",
        ]
        main(["run", "clip2point/quickstart", "--run-dir", str(folder), *SMALL, *few])
    return folder


@pytest.mark.parametrize("name", zoo.list_recipes("clip2point/*"))
def test_recipes_are_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", name, "--print-config"])
    assert not stop.value.code
    assert "class_path: zoo.papers.clip2point" in capsys.readouterr().out


def test_quickstart_reports_before_and_after(trained: Path) -> None:
    rows = {row["name"]: row for row in json.loads((trained / "results.json").read_text())}
    assert {"image -> depth top-1, of 24", "zero-shot accuracy", "1-shot accuracy (DPA)"} <= rows.keys()
    assert all(0 <= row["value"] <= 1 and 0 <= row["baseline"] <= 1 for row in rows.values())
    assert (trained / "figures" / "retrieval.png").stat().st_size > 10_000


def test_pretraining_starts_from_the_clip_and_leaves_the_image_tower(trained: Path) -> None:
    model, clip = zoo.load(trained), zoo.load("clip-shapes")
    for key, value in clip.backbone.state_dict().items():
        assert torch.equal(model.image_tower.state_dict()[key], value)
    assert not torch.equal(model.backbone.head.weight, clip.backbone.head.weight)


def test_zero_shot_few_shot_and_classify(
    trained: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = next(cache.glob("clip2point/primitives-3-2-*"))
    common = ["--model.backbone", str(trained), "--model.clip", "clip-shapes", "--model.upright", "false"]
    common += ["--data.root", str(shapes), "--data.class_list", "null", "--data.num_workers", "0"]
    common += ["--data.num_points", "96", "--trainer.accelerator", "cpu"]
    limits = ["--trainer.limit_test_batches", "1", "--data.batch_size", "8"]
    main(["run", "clip2point/zeroshot_modelnet40", "--run-dir", str(tmp_path / "z"), *common, *limits])
    assert "Zero-shot top-1" in capsys.readouterr().out

    limits = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    few = [*limits, "--data.shots", "1", "--data.batch_size", "8", "--model.views", "6"]
    main(["run", "clip2point/fewshot_modelnet40", "--run-dir", str(tmp_path / "f"), *common, *few])
    model = zoo.load(tmp_path / "f")
    assert model.hparams.class_names[0] == "bed"
    assert model.hparams.radius == 0.05  # the backbone's
    capsys.readouterr()

    file = str(next((shapes / "cup" / "test").glob("*.off")))
    zoo_main(["classify", str(tmp_path / "f"), file, "--json"])
    learned = json.loads(capsys.readouterr().out)[file]
    assert set(learned) == set(model.hparams.class_names)
    zoo_main(["classify", str(trained), file, "--labels", "cup, bed", "--top", "1"])
    assert len(capsys.readouterr().out.strip().splitlines()) == 2  # the header and one name


def test_kept_features_are_those_of_the_pictures(trained: Path) -> None:
    model = zoo.load(trained)
    data = PairDataModule(
        "primitives", image_size=64, num_points=96, batch_size=8, primitives_per_class=(3, 2), num_workers=0
    )
    data.setup()
    torch.manual_seed(1)
    picture, cloud, elev, azim, label = data.train_data[5]
    trainer = SimpleNamespace(datamodule=data, fast_dev_run=False, is_global_zero=False)
    KeepImageFeatures().on_fit_start(trainer, model)
    torch.manual_seed(1)
    features, *rest = data.train_data[5]
    torch.testing.assert_close(features, model.encode_images(picture[None])[0], atol=1e-5, rtol=1e-4)
    for found, expected in zip(rest, (cloud, elev, azim, label), strict=True):
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_missing_packages_name_the_extra(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.extras.find_spec", lambda name: None)
    (tmp_path / "a.off").write_text("OFF\n")
    with pytest.raises(zoo.ZooError, match=r"trimesh.*\[pointcloud\]"):
        zoo.load(trained).preprocess(tmp_path / "a.off")
    with pytest.raises(zoo.ZooError, match=r"open_clip.*\[pointcloud\]"):
        zoo.load("clip-vitb32", pretrained=False, depth=1)


def test_wrong_input_is_one_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cloud = tmp_path / "cloud.npy"
    np.save(cloud, np.full((2000, 3), np.nan))
    (tmp_path / "empty.off").write_text("OFF\n0 0 0\n")
    good = tmp_path / "good.npy"
    np.save(good, np.random.default_rng(0).random((2000, 3)))
    for arguments, message in (
        ([str(trained), str(cloud), "--labels", "a,b"], "cloud.npy has 2000 of 2000 points"),
        ([str(trained), str(tmp_path / "empty.off"), "--labels", "a,b"], "empty.off is empty"),
        ([str(trained), str(good), "--labels", "a"], "at least two labels"),
        ([str(trained), str(good)], "--labels"),
        (["clip-shapes", str(good), "--labels", "a,b"], "does not classify"),
        (["droppos-vit-digits", str(good), "--labels", "a,b"], "does not classify"),
    ):
        with pytest.raises(SystemExit) as stop:
            zoo_main(["classify", *arguments])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
