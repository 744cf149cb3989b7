"""The paper's views of real images while fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from datamodules.fractals import FractalTransferDataModule
from zoo.errors import ZooError


@pytest.mark.parametrize("protocol", ["fine_grained", "cifar100"])
def test_views(protocol):
    data = FractalTransferDataModule("digits", protocol, image_size=32, batch_size=8, num_workers=0)
    data.setup()
    images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert images.shape == (8, 3, 32, 32)
    assert images.min() >= -1 - 1e-5
    assert images.max() <= 1 + 1e-5
    assert labels.max() < 10
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    side = 37 if protocol == "fine_grained" else 32
    expected = tv.center_crop(tv.resize(photo, [side, side]), [32, 32])
    assert torch.equal(data.view(photo), tv.pil_to_tensor(expected))
    assert not torch.equal(data.augment(photo), data.augment(photo))


def test_wrong_protocol():
    with pytest.raises(ZooError, match="'fine_grained' or 'cifar100'"):
        FractalTransferDataModule("digits", "cub")
