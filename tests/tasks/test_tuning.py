"""How much of a network is trained: what moves, what stays, and that the result loads as a plain network."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import zoo
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.tasks.start import weights_of_classes
from zoo.tasks.tuning import Tuning, apply_tuning, blocks_of, merge_lora

SMALL = [
    "droppos/finetune_classification", "--data.root", "digits", "--data.image_size", "16", "--data.batch_size", "64",
    "--data.num_workers", "0", "--model.backbone", "droppos-vit-digits", "--trainer.max_epochs", "1",
    "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false", "--model.warmup_epochs", "0",
]  # fmt: skip


def run(folder, *more: str):
    main(["run", *SMALL, "--run-dir", str(folder), *more])
    return zoo.load(folder)


@pytest.fixture(scope="module")
def start():
    return zoo.load("droppos-vit-digits").backbone.state_dict()


def moved(model, start) -> set[str]:
    """Parameters of the encoder that differ from the start."""
    own = model.backbone.state_dict()
    return {key for key in own if key in start and not torch.equal(own[key], start[key])}


def test_frozen_trains_the_head_alone(tmp_path, start):
    assert moved(run(tmp_path, "--model.tuning.mode", "frozen"), start) == set()


def test_partial_trains_the_last_blocks(tmp_path, start):
    model = run(tmp_path, "--model.tuning.mode", "partial", "--model.tuning.blocks", "1")
    last = len(model.backbone.blocks) - 1
    names = moved(model, start)
    assert names
    assert all(name.startswith(f"blocks.{last}.") for name in names)


def test_lora_run_loads_as_a_plain_network_and_resumes(tmp_path, start):
    pytest.importorskip("peft")
    lora = ["--model.tuning", '{"mode": "lora", "rank": 2}']
    model = run(tmp_path / "whole", *lora, "--trainer.max_epochs", "2")
    assert not any("lora" in key for key in model.state_dict())
    names = moved(model, start)
    assert names
    assert all(name.endswith("weight") for name in names), "biases and norms stay"
    saved = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    assert any(".lora_B." in key for key in saved["state_dict"])
    assert zoo.load(tmp_path / "whole").load_weights(model.state_dict()) is None, "merged weights load as they are"


def test_merged_updates_equal_the_adapters():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(16, 5))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(16, 5))
    apply_tuning(network, Tuning("lora", rank=2, alpha=8.0))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    plain.load_state_dict(merge_lora(network.state_dict(), 8.0))
    images = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(plain(images), network(images))


def test_blocks_are_found_from_input_to_output():
    resnet = timm.create_model("resnet18", num_classes=3)
    assert [name for name, _ in blocks_of(resnet)][-2:] == ["layer4.0", "layer4.1"]
    asleep = apply_tuning(resnet, Tuning("partial", blocks=2))
    trained = {name.split(".")[0] for name, p in resnet.named_parameters() if p.requires_grad}
    assert trained == {"layer4", "fc"}
    assert resnet.bn1 in asleep
    assert resnet.layer4 not in asleep
    with pytest.raises(ZooError, match="has 8 blocks"):
        apply_tuning(timm.create_model("resnet18"), Tuning("partial", blocks=9))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mode": "frosen"}, "frozen"),
        ({"block": 2}, "blocks"),
        ({"mode": "partial", "blocks": 0}, "at least 1"),
        ({"mode": "lora", "rank": "many"}, "numbers"),
    ],
)
def test_wrong_settings_are_one_line(given, words):
    with pytest.raises(ZooError, match=words):
        Tuning.of(given)


def test_weights_of_classes(monkeypatch):
    class Data:
        def class_counts(self):
            return [30, 10]

    class Task:
        class trainer:
            datamodule = Data()

    weights = weights_of_classes(Task(), "balanced", 2)
    torch.testing.assert_close(weights, torch.tensor([40 / 60, 2.0]))
    assert weights_of_classes(Task(), None, 2) is None
    for wrong in ([1.0], ["a", "b"], [-1.0, 1.0]):
        with pytest.raises(ZooError, match="class_weights"):
            weights_of_classes(Task(), wrong, 2)


def text_task(tuning):
    from zoo.tasks import TextClassification

    model = TextClassification("electra-docs", num_classes=2, tuning=tuning)
    return model, lambda: model.classify(model.encoder.preprocess("a text"))


def volume_task(tuning):
    pytest.importorskip("monai")
    from zoo.tasks import VolumeClassification

    small = dict(image_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, mlp_dim=24, decoder_embed_dim=24,
                 decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=24)  # fmt: skip
    start = {"class_path": "zoo.papers.bm_mae.BMMAE", "init_args": small}
    model = VolumeClassification(start, modalities=["t1"], tuning=tuning)
    return model, lambda: model({"t1": torch.randn(1, 1, 16, 16, 16)})


def face_task(tuning):
    from zoo.papers.face_representation import FaceTask

    model = FaceTask("attributes", network="resnet10t", outputs=2, image_size=32, tuning=tuning)
    return model, lambda: model(torch.randn(2, 3, 32, 32))


def forecast_task(tuning):
    from zoo.papers.trajectory_mae import TrajectoryForecaster

    model = TrajectoryForecaster(width=20, depth=2, tuning=tuning)
    history = torch.linspace(0, 19, 20).double().numpy()[:, None] * [0.5, 1.0]
    lane = torch.linspace(-20, 40, 30).double().numpy()[:, None] * [0.5, 1.0]
    batch = model.preprocess({"history": history, "map": [lane]})
    return model, lambda: model(batch)


def unet_task(tuning):
    pytest.importorskip("segmentation_models_pytorch")
    from zoo.tasks import ImageSegmentation

    model = ImageSegmentation(network="resnet18", image_size=32, tuning=tuning)
    return model, lambda: model(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("make", [text_task, volume_task, face_task, forecast_task, unet_task])
@pytest.mark.parametrize("mode", ["frozen", "partial", "lora"])
def test_every_task_takes_every_mode(make, mode):
    if mode == "lora":
        pytest.importorskip("peft")
    model, forward = make({"mode": mode, "blocks": 1, "rank": 2})
    everything = sum(p.requires_grad for p in model.backbone.parameters())
    model.configure_model()
    model.train()
    trained = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert len(trained) < everything or mode == "lora"
    if mode == "frozen":
        assert not trained
        assert not any(part.training for part in model.backbone.modules())
        return
    out = forward()
    out.float().pow(2).sum().backward()
    missing = [name for name, p in trained.items() if p.grad is None and "pooler" not in name]
    assert trained
    assert not missing, f"trained, but out of reach: {missing[:3]}"
