"""LoRA over a whole run: killed and resumed, on two processes, shared out, exported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from support_contract import checkpoint_difference
from support_processes import assert_close, launch, logs, weights_of

import zoo
from zoo.cli.app import main as zoo_main
from zoo.cli.run import main
from zoo.tasks import ImageClassification

pytest.importorskip("peft")
VIT = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2)


def recipe_of(folder: Path, **trainer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "recipe": {"title": "small", "subcommand": "fit"},
        "seed_everything": 3,
        "trainer": {
            "accelerator": "cpu", "precision": "64-true", "max_epochs": 2, "limit_train_batches": 4,
            "limit_val_batches": 0, "enable_model_summary": False, "enable_progress_bar": False,
            "callbacks": [{"class_path": "zoo.callbacks.resumable.ResumableCheckpoint",
                           "init_args": {"every_n_steps": 1}}], **trainer,
        },
        "model": {
            "class_path": "zoo.tasks.ImageClassification",
            "init_args": {"network": VIT, "lr": 0.01, "warmup_epochs": 0.5, "mixup": 0.0, "cutmix": 0.0,
                          "drop_path": 0.1, "tuning": {"mode": "lora", "rank": 2, "dropout": 0.1}},
        },
        "data": {
            "class_path": "datamodules.image_classification.ImageClassificationDataModule",
            "init_args": {"root": "digits", "image_size": 16, "batch_size": 8, "num_workers": 0},
        },
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def dying(arguments: list[str]) -> None:
    """Killed in the sixth step, in the middle of the second epoch."""
    step = ImageClassification.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 5:
            os.kill(os.getpid(), 9)
        return step(self, batch, batch_idx)

    ImageClassification.training_step = training_step
    main(arguments)


def saved(folder: Path):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    arguments = ["run", str(recipe_of(folder)), "--run-dir", str(folder / "run")]
    assert launch(main, 1, folder / "log", arguments) == [0], logs(folder / "log")
    return folder / "run"


def test_killed_and_resumed_it_ends_with_the_same_adapters(whole, tmp_path):
    arguments = ["run", str(recipe_of(tmp_path)), "--run-dir", str(tmp_path / "run")]
    assert launch(dying, 1, tmp_path / "log0", arguments) == [-9]
    before = saved(tmp_path / "run")
    assert 0 < before["global_step"] < 8
    assert any(".lora_B." in key and value.any() for key, value in before["state_dict"].items())
    assert launch(main, 1, tmp_path / "log1", [*arguments, "--resume"]) == [0], logs(tmp_path / "log1")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert not checkpoint_difference(saved(whole)[part], saved(tmp_path / "run")[part], part)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_are_one_that_accumulates(strategy, tmp_path):
    recipe = recipe_of(tmp_path, max_epochs=1)
    config = yaml.safe_load(recipe.read_text())
    config["model"]["init_args"] |= {"drop_path": 0.0, "tuning": {"mode": "lora", "rank": 2}}
    recipe.write_text(yaml.safe_dump(config))
    one = ["run", str(recipe), "--run-dir", str(tmp_path / "one"), "--trainer.limit_train_batches", "8",
           "--trainer.accumulate_grad_batches", "2"]  # fmt: skip
    assert launch(main, 1, tmp_path / "log1", one) == [0], logs(tmp_path / "log1")
    two = ["run", str(recipe), "--run-dir", str(tmp_path / "two"), "--trainer.devices", "2", "--trainer.strategy",
           strategy]  # fmt: skip
    assert launch(main, 2, tmp_path / "log2", two) == [0, 0], logs(tmp_path / "log2")
    assert_close(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"))
    frozen = [key for key in weights_of(tmp_path / "one") if key.endswith("base_layer.weight")]
    assert frozen
    model = zoo.load(tmp_path / "two")
    assert not any("lora" in key for key in model.state_dict())


@pytest.mark.parametrize("kind", ["onnx", "torch", "weights"])
def test_what_is_exported_has_the_updates_merged(whole, kind, tmp_path):
    model = zoo.load(whole)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.predict_step(images, 0)
    if kind == "weights":
        zoo_main(["export", str(whole), "--name", "tuned", "-o", str(tmp_path / "out")])
        manifest = next((tmp_path / "out").glob("*.yaml"))
        found = zoo.load(manifest).predict_step(images, 0)
    elif kind == "torch":
        zoo_main(["export", str(whole), "--format", "torch", "-o", str(tmp_path / "m.pt2")])
        found = torch.export.load(tmp_path / "m.pt2").module()(images)
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        zoo_main(["export", str(whole), "--format", "onnx", "-o", str(tmp_path / "m.onnx")])
        session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        assert json.loads((tmp_path / "m.onnx.json").read_text())["classes"] == [str(n) for n in range(10)]
    torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=1e-4)
