"""The labelled images of fine-tuning, probes and k-NN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from datamodules.image_classification import ImageClassificationDataModule
from zoo.errors import ZooError


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (tmp_path / name).mkdir()
        for index in range(8):
            pixels = generator.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    return tmp_path


def data(folder, **kwargs) -> ImageClassificationDataModule:
    defaults = dict(image_size=16, batch_size=4, num_workers=0, val_fraction=0.25)
    module = ImageClassificationDataModule(str(folder), **{**defaults, **kwargs})
    module.setup()
    return module


def test_classes_are_known(folder):
    module = data(folder)
    assert module.classes == ["cat", "dog", "emu"]
    assert module.num_classes == 3


def test_loaders_hold_what_they_should(folder):
    module = data(folder, train_augment="none", batch_size=4)
    assert sum(len(labels) for _, labels in module.train_dataloader()) == 16  # of 18: the short last batch is dropped
    assert sorted(int(y) for _, labels in module.val_dataloader() for y in labels) == [0, 0, 1, 1, 2, 2]
    train, held_out = module.labelled_dataloaders()
    assert sum(len(labels) for _, labels in train) == 18
    assert sum(len(labels) for _, labels in held_out) == 6


def test_evaluation_view_is_resize_then_centre_crop(folder):
    module = data(folder, image_size=28)
    images, _ = next(iter(module.val_dataloader()))
    assert images.dtype == torch.uint8
    normalised, _ = module.on_after_batch_transfer((images, None), 0)
    official = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize(module.mean, module.std),
        ]
    )
    expected = torch.stack([official(module.val_data.image(index)) for index in range(4)])
    assert (normalised - expected).abs().mean() < 0.02
    assert (normalised - expected).abs().max() < 0.3


def test_finetune_augmentation_differs_each_time_and_probe_view_does_not(folder):
    augmented = data(folder, train_augment="finetune").train_data
    assert not torch.equal(augmented[0][0], augmented[0][0])
    plain = data(folder, train_augment="none").train_data
    assert torch.equal(plain[0][0], plain[0][0])


def test_few_labels_reach_training_and_probes_alike(folder):
    module = data(folder, label_fraction=0.34, batch_size=2, train_augment="none")
    train, held_out = module.labelled_dataloaders()
    labels = sorted(int(y) for _, batch in train for y in batch)
    assert labels == [0, 0, 1, 1, 2, 2]
    assert len(module.train_dataloader().dataset) == 6
    assert len(held_out.dataset) == 6  # held-out images stay complete


def test_mistakes_are_explained(folder):
    with pytest.raises(ZooError, match="train_augment is"):
        data(folder, train_augment="strong")
    with pytest.raises(ZooError, match="share of labels"):
        data(folder, label_fraction=1.5).train_dataloader()
    with pytest.raises(ZooError, match=r"lower data\.batch_size"):
        data(folder, batch_size=64).train_dataloader()
