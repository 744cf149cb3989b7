"""The module, its loss and weights, fine-tuning of ResNets, and the few-label report."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lightning import Trainer

import zoo
from datamodules.fractals import FractalsDataModule
from datamodules.image_classification import ImageClassificationDataModule
from zoo.callbacks.figures import Figures
from zoo.callbacks.transfer_report import TransferReport
from zoo.errors import ZooError
from zoo.optim import norm_bias_groups, one_cycle
from zoo.papers.fractals import FractalPretraining, weights
from zoo.papers.fractals.losses import average_precision, multi_hot, multi_instance_loss
from zoo.tasks import ImageClassification, ResNetClassification
from zoo.tasks.few_labels import finetune_accuracy, labels_per_class

TINY = dict(num_classes=6, network="resnet10t", image_size=32, lr=0.02)
DATA = dict(image_size=32, batch_size=8, num_classes=6, per_class=8, points=400, window=8, streams=1, val_images=8,
            num_workers=0)  # fmt: skip


def quiet_trainer(tmp_path, **changes) -> Trainer:
    return Trainer(
        default_root_dir=tmp_path, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu", **{"max_epochs": 1, **changes},
    )  # fmt: skip


def test_loss_at_zero_logits_is_known():
    for present in (1, 2, 5):
        targets = torch.zeros(3, 20)
        targets[:, :present] = 1
        loss = multi_instance_loss(torch.zeros(3, 20), targets)
        assert loss.item() == pytest.approx(math.log(2) * (2 - present / 20), abs=1e-6)
    assert multi_instance_loss(torch.zeros(1, 20), torch.zeros(1, 20)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_labels_to_targets():
    targets = multi_hot(torch.tensor([[2, 2, 0], [-1, -1, -1], [3, 3, 3]]), 4)
    assert targets.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_average_precision():
    targets = torch.tensor([[1.0, 0, 1, 0]])
    assert average_precision(torch.tensor([[4.0, 1, 3, 2]]), targets).item() == pytest.approx(1)
    assert average_precision(torch.tensor([[4.0, 3, 2, 1]]), targets).item() == pytest.approx((1 + 2 / 3) / 2)


def test_resnet50_is_torchvisions():
    from torchvision.models import resnet50

    model, theirs = FractalPretraining().eval(), resnet50(num_classes=1000).eval()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    assert all(float(block.bn3.weight.detach().mean()) == 1 for block in model.backbone.layer1)
    model.load_weights(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.classify(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_official_names_there_and_back():
    model = FractalPretraining(**TINY)
    official = weights.to_official(model.state_dict())
    assert "model.fc.weight" in official
    other = FractalPretraining(**TINY)
    other.load_weights(official | {"train_accuracy.correct": torch.tensor(3)})
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    with pytest.raises(ZooError, match=r"backbone.fc.weight has shape \(6"):
        FractalPretraining(**{**TINY, "num_classes": 7}).load_weights(official)


@pytest.mark.parametrize(
    ("task", "renderer"), [("multi_instance", "cpu"), ("multi_class", "cpu"), ("multi_instance", "device")]
)
def test_training_runs_and_draws(task, renderer, tmp_path):
    model, data = FractalPretraining(task, **TINY), FractalsDataModule(task, renderer=renderer, **DATA)
    report = [TransferReport([1], [0], steps=8, lrs=[1e-9, 0.05], tuning_draws=1)] if renderer == "device" else []
    trainer = quiet_trainer(tmp_path, callbacks=[Figures(), *report])
    data.hparams.probe_root = "digits"
    trainer.fit(model, data)
    assert (tmp_path / "figures" / "predictions.png").stat().st_size > 10_000
    assert (tmp_path / "figures" / "classes.png").stat().st_size > 5_000
    if report:
        results = json.loads((tmp_path / "results_transfer.json").read_text())
        assert set(results) == {"pre-trained", "from scratch", "rates"}
        assert set(results["rates"]["from scratch"]) == {"1"}
        means = json.loads((tmp_path / "results.json").read_text())
        assert means[0]["name"] == "average precision on new fractal pictures"
        assert means[0]["value"] == pytest.approx(float(trainer.callback_metrics["val/average_precision"]), abs=1e-4)
        assert 0 < results["pre-trained"]["1"]["finetune"][0] < 1
    # One-cycle over six steps without warm-up: from lr down to lr / 25 / 1000.
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.02 / 10


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model = FractalPretraining(**TINY).train()
    data = FractalsDataModule(**{**DATA, "batch_size": 16, "fractal_size": 32, "size_range": (0.6, 0.9)})
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        loss, _ = model.compute_loss(model.classify(images / 255), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_norms_and_biases_do_not_decay():
    model = FractalPretraining(**TINY)
    groups = norm_bias_groups(model.backbone, 0.1, 1e-4)
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_wrong_sizes_and_classes_are_said(tmp_path):
    with pytest.raises(ZooError, match="too small"):
        FractalPretraining(image_size=16)
    with pytest.raises(ZooError, match="no ResNet 'resnet5'"):
        FractalPretraining(network="resnet5")
    with pytest.raises(ZooError, match="'multi_instance' or 'multi_class'"):
        FractalPretraining(task="both")
    with pytest.raises(ZooError, match=r"The data has 6 classes, the model 7"):
        quiet_trainer(tmp_path).fit(FractalPretraining(**{**TINY, "num_classes": 7}), FractalsDataModule(**DATA))
    with pytest.raises(ZooError, match=r"data\.task"):
        quiet_trainer(tmp_path).fit(FractalPretraining(**TINY), FractalsDataModule("multi_class", **DATA))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pretrained")
    trainer = quiet_trainer(folder, max_epochs=1, limit_train_batches=2)
    trainer.fit(FractalPretraining(**TINY), FractalsDataModule(**DATA))
    trainer.save_checkpoint(folder / "last.ckpt")
    return str(folder / "last.ckpt")


def test_fine_tuning_a_resnet(pretrained, tmp_path):
    task = ResNetClassification(backbone=pretrained)
    start = {key: value.clone() for key, value in task._start.items()}
    data = ImageClassificationDataModule(
        "digits", image_size=32, batch_size=32, train_augment="crop", num_workers=0, label_fraction=0.1,
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, data)
    groups = trainer.optimizers[0].param_groups
    assert groups[0]["max_lr"] == pytest.approx(0.15)
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (1e-4, 0.0)
    assert groups[2]["max_lr"] == pytest.approx(0.015)
    assert set(trainer.callback_metrics) >= {"val/acc1", "val/acc5"}
    moved = task.backbone.state_dict()["layer1.0.conv1.weight"] - start["layer1.0.conv1.weight"]
    assert 0 < moved.abs().max() < 0.5
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    loaded = zoo.load(tmp_path / "tuned.ckpt")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.classify(images), task.eval().classify(images))
    assert loaded(images).shape == (2, 512)


def test_half_wide_networks_train_by_adamw_and_load(tmp_path):
    model = FractalPretraining(**{**TINY, "network": "resnet18"}, width=0.5, optimizer="adamw", weight_decay=0.05)
    widths = [model.backbone.get_submodule(f"layer{k}")[0].conv1.out_channels for k in (1, 2, 3, 4)]
    assert widths == [32, 64, 128, 256]
    trainer = quiet_trainer(tmp_path, max_steps=2)
    trainer.fit(model, FractalsDataModule("multi_instance", **DATA))
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)  # the schedule leaves them alone
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(zoo.load(tmp_path / "half.ckpt")(images), model.eval()(images))
    task = ResNetClassification(backbone=str(tmp_path / "half.ckpt"), num_classes=3)
    assert task.width == 0.5
    torch.testing.assert_close(task.eval()(images), model(images))


def test_a_warm_up_of_one_step_starts_next_to_the_peak():
    """PyTorch's own schedule divides by the zero steps between."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = one_cycle(optimizer, 10, warmup=0.1)
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1, rel=0.05)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"), [({"width": 0}, "width is a factor"), ({"optimizer": "adam"}, "'sgd' or 'adamw'")]
)
def test_what_a_network_cannot_be(changes, message):
    with pytest.raises(ZooError, match=message):
        FractalPretraining(**TINY, **changes)


def test_resnet_and_vit_tasks_point_to_each_other(pretrained):
    with pytest.raises(ZooError, match="ResNetClassification"):
        ImageClassification(backbone=pretrained)
    with pytest.raises(ZooError, match="ResNets only"):
        ResNetClassification(backbone="droppos-vit-digits")
    with pytest.raises(ZooError, match="Give either"):
        ResNetClassification()


def test_preprocess_scales_to_the_unit_interval():
    from PIL import Image

    images = FractalPretraining(**TINY).preprocess(Image.new("RGB", (50, 40), (255, 0, 51)))
    assert images.shape == (1, 3, 32, 32)
    assert images[0, :, 5, 5].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_few_label_helpers():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    chosen = labels_per_class(labels, 2, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [2, 2, 1]
    assert torch.equal(chosen, labels_per_class(labels, 2, seed=0))
    torch.manual_seed(0)
    model = FractalPretraining(**TINY).eval()
    images = torch.cat([torch.full((8, 3, 32, 32), 0.1), torch.full((8, 3, 32, 32), 0.9)])
    images += 0.05 * torch.randn_like(images)
    data = (images, torch.tensor([0] * 8 + [1] * 8))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert finetune_accuracy(model, data, data, steps=100, batch_size=8, seed=0) > 0.9
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_rate_is_chosen_on_images_without_a_label():
    torch.manual_seed(0)
    model = FractalPretraining(**TINY).eval()
    images = torch.cat([torch.full((8, 3, 32, 32), 0.1), torch.full((8, 3, 32, 32), 0.9)])
    data = (images + 0.05 * torch.randn_like(images), torch.tensor([0] * 8 + [1] * 8))
    report = TransferReport([4], [0], steps=30, batch_size=8, lrs=[1e-9, 0.05, 1e9], tuning_draws=1)
    assert report._choose_rate(lambda seed: model, data, 4) == 0.05
    with pytest.raises(ZooError, match="8 labels a class leave no training images"):
        report._choose_rate(lambda seed: model, data, 8)
    with pytest.raises(ZooError, match="at least one entry"):
        TransferReport(lrs=[])


def test_parts_that_start_anew():
    model = FractalPretraining(**TINY).eval()
    network = TransferReport(anew=["layer4"])._transferred(model, 3)
    torch.manual_seed(3)
    fresh = FractalPretraining(**TINY)
    for key, value in network.state_dict().items():
        source = fresh if key.startswith("backbone.layer4.") else model
        assert torch.equal(value, source.state_dict()[key]), key
    assert TransferReport()._transferred(model, 3) is model
    with pytest.raises(ZooError, match="no part 'layer9'; it has conv1"):
        TransferReport(anew=["layer9"]).on_fit_start(None, model)
