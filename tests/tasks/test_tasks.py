"""Fine-tuning, linear probe and k-NN on any backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything

import zoo
from datamodules.image_classification import ImageClassificationDataModule
from datamodules.images import few_label_subset
from zoo.errors import ZooError
from zoo.papers.droppos import DropPos
from zoo.tasks import KNN, ImageClassification, LinearProbe
from zoo.tasks.probes import knn_accuracy, linear_probe_accuracy

NETWORK = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 4}


def trainer(tmp_path, **kwargs) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, **{"max_epochs": 1, "enable_checkpointing": False, **kwargs},
    )  # fmt: skip


def digits(**kwargs) -> ImageClassificationDataModule:
    defaults = dict(image_size=16, batch_size=64, train_augment="none", eval_crop_pct=1.0, num_workers=0)
    return ImageClassificationDataModule("digits", **{**defaults, **kwargs})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> str:
    """A (barely trained) DropPos checkpoint."""
    from datamodules.droppos import DropPosDataModule

    folder = tmp_path_factory.mktemp("pretrained")
    model = DropPos(
        image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4, decoder_embed_dim=16, decoder_depth=1,
        decoder_num_heads=2, mask_ratio=0.25, lr=1e-3,
    )  # fmt: skip
    run = trainer(folder, limit_train_batches=2)
    run.fit(model, DropPosDataModule("digits", image_size=16, batch_size=32, num_workers=0))
    run.save_checkpoint(folder / "last.ckpt")
    return str(folder / "last.ckpt")


def test_a_classifier_learns_digits(tmp_path):
    seed_everything(0)
    model = ImageClassification(
        network=NETWORK, mixup=0, cutmix=0, drop_path=0, lr=2e-3, layer_decay=1, warmup_epochs=1
    )
    run = trainer(tmp_path, max_epochs=6)
    run.fit(model, digits())
    assert run.callback_metrics["val/acc1"] > 0.5
    assert run.callback_metrics["val/acc5"] > run.callback_metrics["val/acc1"]


def test_start_takes_the_encoder_and_a_fresh_head(pretrained):
    start = zoo.load(pretrained).backbone.state_dict()
    for pool, norm in (("avg", False), ("token", True)):
        model = ImageClassification(backbone=pretrained, num_classes=10, pool=pool)
        state = model.backbone.state_dict()
        assert ("norm.weight" in state) == norm
        assert ("fc_norm.weight" in state) != norm
        for key in state:
            if not key.startswith(("head.", "fc_norm.")):
                assert torch.equal(state[key], start[key]), key
        assert 0 < state["head.weight"].std() < 3e-5
        assert not model.backbone.pos_embed.requires_grad


def test_positions_follow_another_image_size(pretrained):
    model = ImageClassification(backbone=pretrained, num_classes=10, image_size=32)
    assert model.backbone.pos_embed.shape == (1, 65, 48)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 48)


def test_checkpoint_loads_without_its_start(tmp_path, pretrained):
    model = ImageClassification(backbone=pretrained, mixup=0.8, cutmix=1.0, warmup_epochs=0)
    run = trainer(tmp_path, max_steps=3)
    run.fit(model, digits(batch_size=31))  # an odd batch: mixing must cope
    path = tmp_path / "tuned.ckpt"
    run.save_checkpoint(path)
    again = zoo.load(path)
    assert again.hparams.backbone is None
    assert again.num_classes == 10
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again.classify(images), model.eval().classify(images))
    probabilities = again.predict_step(images, 0)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_layer_decay_reaches_the_optimizer(tmp_path, pretrained):
    model = ImageClassification(backbone=pretrained, layer_decay=0.5, lr=1e-2, warmup_epochs=0, min_lr=0.0)
    trainer(tmp_path, max_steps=1).fit(model, digits())
    rates = {group["lr_scale"]: group["initial_lr"] for group in model.optimizers().param_groups}
    assert set(rates) == {1.0, 0.5, 0.25, 0.125}
    before = [group["lr"] / group["lr_scale"] for group in model.optimizers().param_groups]
    assert max(before) == pytest.approx(min(before))


def test_linear_probe_moves_only_its_head(tmp_path, pretrained):
    probe = LinearProbe(pretrained, lr=20.0, warmup_epochs=0)
    frozen = {key: value.clone() for key, value in probe.frozen.state_dict().items()}
    run = trainer(tmp_path, max_epochs=3)
    run.fit(probe, digits(train_augment="none"))
    assert all(torch.equal(value, frozen[key]) for key, value in probe.frozen.state_dict().items())
    assert run.callback_metrics["val/acc1"] > 0.3
    run.save_checkpoint(tmp_path / "probe.ckpt")
    again = zoo.load(tmp_path / "probe.ckpt")
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(again.classify(images), probe.eval().classify(images))


def test_linear_probe_takes_the_lars_step_of_mae(tmp_path, pretrained):
    probe = LinearProbe(pretrained, num_classes=10, lr=0.5, warmup_epochs=0)
    probe.trainer = trainer(tmp_path, max_steps=10)
    linear = probe.head[1]
    from timm.optim import Lars

    optimizer = Lars([{"params": [linear.weight], "always_adapt": True}], lr=0.5, momentum=0.9, weight_decay=0.0)
    weight = linear.weight.detach().clone()
    gradient = torch.randn_like(weight)
    linear.weight.grad = gradient.clone()
    optimizer.step()
    expected = weight - 0.5 * 0.001 * weight.norm() / gradient.norm() * gradient
    torch.testing.assert_close(linear.weight.detach(), expected)


def test_knn_scores_the_held_out_images(tmp_path, pretrained):
    task = KNN(pretrained, k=[5, 10])
    (result,) = trainer(tmp_path).test(task, digits())
    assert set(result) == {"test/knn5_acc", "test/knn10_acc"}
    assert all(0.3 < value < 1 for value in result.values())


def test_probes_on_separable_features():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 4
    features = (np.eye(8)[labels] * 4 + generator.normal(size=(200, 8))).astype(np.float32)
    train, test = (features[:100], labels[:100]), (features[100:], labels[100:])
    assert knn_accuracy(train, test) > 0.9
    assert linear_probe_accuracy(train, test) > 0.9
    shuffled = (train[0], generator.permutation(train[1]))
    assert linear_probe_accuracy(shuffled, test) < 0.5


def test_few_labels_are_stratified_and_nested():
    labels = np.repeat(np.arange(5), 40)
    small, large = few_label_subset(labels, 0.05), few_label_subset(labels, 0.25)
    assert np.bincount(labels[small]).tolist() == [2] * 5
    assert np.bincount(labels[large]).tolist() == [10] * 5
    assert set(small) <= set(large)
    assert np.bincount(labels[few_label_subset(labels, 0.001)]).tolist() == [1] * 5
    assert set(few_label_subset(labels, 0.05, seed=1)) != set(small)
    data = digits(label_fraction=0.1, batch_size=16)
    data.setup()
    assert len(data.train_dataloader().dataset) == len(few_label_subset(data.train_data.labels, 0.1))


def test_official_augmentation_is_timms():
    data = digits(train_augment="finetune")
    names = [type(step).__name__ for step in data.augment.transforms]
    assert "RandAugment" in names
    assert "RandomErasing" in names
    data.setup()
    images, _ = next(iter(data.train_dataloader()))
    assert images.dtype == torch.float32
    assert images.shape[1:] == (3, 16, 16)


def test_mistakes_are_explained(tmp_path, pretrained):
    with pytest.raises(ZooError, match=r"either model\.backbone"):
        ImageClassification()
    with pytest.raises(ZooError, match="does not know width"):
        ImageClassification(network={**NETWORK, "width": 3})
    with pytest.raises(ZooError, match="The data has 10 classes, the model 3"):
        trainer(tmp_path).fit(ImageClassification(network=NETWORK, num_classes=3), digits())
    with pytest.raises(ZooError, match="no model"):
        LinearProbe("droppos-nothing")
