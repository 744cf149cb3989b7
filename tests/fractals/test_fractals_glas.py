"""Gland segmentation: the data's pairs and squares, the U-Net's start, loss and score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image, ImageDraw

import zoo
from datamodules.glas import GlaSDataModule, find_pairs
from zoo.callbacks.figures import Figures
from zoo.errors import ZooError
from zoo.nn.segmentation import soft_dice_loss
from zoo.papers.fractals import FractalPretraining
from zoo.tasks import ImageSegmentation
from zoo.tasks.image_segmentation import corners


def write(folder, name, size=(90, 70), gland=True):
    rng = np.random.default_rng(len(name))
    mask = Image.new("L", size)
    if gland:
        ImageDraw.Draw(mask).ellipse((10, 10, size[0] - 20, size[1] - 20), fill=3)  # the third gland
    picture = rng.integers(0, 90, (size[1], size[0], 3)) + (np.asarray(mask) > 0)[..., None] * 120
    Image.fromarray(picture.astype(np.uint8)).save(folder / f"{name}.bmp")
    mask.save(folder / f"{name}_anno.bmp")


@pytest.fixture
def glands(tmp_path):
    folder = tmp_path / "glas"
    folder.mkdir()
    for name in ("train_1", "train_2", "train_10", "train_3", "testA_1", "testB_1"):
        write(folder, name, (100, 66) if name == "testB_1" else (90, 70))
    return folder


def data(folder, **changes) -> GlaSDataModule:
    return GlaSDataModule(str(folder), **{"image_size": 64, "batch_size": 2, "num_workers": 0, **changes})


def test_pairs_are_paired_by_their_stems(glands):
    pairs = find_pairs(glands, "test")
    assert [(a.name, b.name) for a, b in pairs] == [
        ("testA_1.bmp", "testA_1_anno.bmp"),
        ("testB_1.bmp", "testB_1_anno.bmp"),
    ]
    assert len(find_pairs(glands, "train")) == 4


def test_squares_of_picture_and_mask_are_the_same(glands):
    module = data(glands)
    module.setup()
    for images, masks in module.train_dataloader():
        assert images.shape == (2, 3, 64, 64)
        assert masks.shape == (2, 1, 64, 64)
        assert set(masks.unique().tolist()) == {0, 1}
        bright = images.float().mean(dim=1, keepdim=True) > 105
        assert (bright == masks.bool()).float().mean() > 0.95  # turned and cropped together


def test_held_out_pictures_are_whole(glands):
    module = data(glands)
    module.setup()
    images, masks = next(iter(module.val_dataloader()))
    assert images.shape == (2, 3, 70, 100)
    assert masks[1, 0, 66:].sum() == 0
    small = data(glands, image_size=96)
    small.setup()
    assert next(iter(small.val_dataloader()))[0].shape == (2, 3, 96, 100)


def test_dice_and_corners():
    p, t = torch.tensor([0.5, 0.25, 0, 1]).reshape(1, 1, 2, 2), torch.tensor([1.0, 0, 0, 1]).reshape(1, 1, 2, 2)
    assert soft_dice_loss(p, t).item() == pytest.approx(1 - 2 * 1.5 / 3.75, abs=1e-6)
    images = torch.arange(12.0).reshape(1, 1, 3, 4)
    found = corners(images, 2)[:, 0, 0, 0].tolist()
    assert found == [0, 4, 2, 6]  # top left, bottom left, top right, bottom right
    with pytest.raises(ZooError, match="no corners of 5"):
        corners(images, 5)


def test_starts_from_fractals_and_trains(tmp_path, glands):
    source = FractalPretraining(num_classes=4, network="resnet18", image_size=32)
    trainer = Trainer(logger=False, accelerator="cpu", barebones=True)
    trainer.strategy.connect(source)
    trainer.save_checkpoint(tmp_path / "fractal.ckpt")
    task = ImageSegmentation(backbone=str(tmp_path / "fractal.ckpt"), image_size=64, lr=0.05, mixup=0.0)
    own = source.backbone.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in task.backbone.state_dict().items())
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=14, check_val_every_n_epoch=14, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
        callbacks=[Figures()],
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(task, data(glands))
    assert trainer.callback_metrics["val/iou"] > 0.5  # bright ellipses are easily found
    assert list(tmp_path.rglob("figures/segmentation.png"))
    trainer.save_checkpoint(tmp_path / "unet.ckpt")
    (tmp_path / "fractal.ckpt").unlink()
    loaded = zoo.load(tmp_path / "unet.ckpt")
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images), task.eval()(images))
    assert loaded.predict_step(torch.rand(1, 3, 50, 70), 0).shape == (1, 1, 50, 70)


def test_score_counts_what_can_be_scored():
    task = ImageSegmentation(network="resnet18", image_size=32)
    task.log = lambda *a, **k: None
    masks = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    masks[..., :16] = 1
    task.forward = lambda images: torch.where(torch.arange(32) < 8, 1.0, -1.0).expand(4, 1, 32, 32)
    task._evaluate((torch.rand(1, 3, 32, 32), masks), "val")
    assert task.iou["val"].compute() == pytest.approx(0.5)
    task.forward = lambda images: torch.full((4, 1, 32, 32), -1.0)
    task._evaluate((torch.rand(1, 3, 32, 32), torch.zeros_like(masks)), "val")
    assert task.iou["val"].compute() == pytest.approx(0.5)  # nothing there, nothing found


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda folder: ImageSegmentation(), "Give either"),
        (lambda folder: ImageSegmentation(network="resnet7"), "no ResNet 'resnet7'"),
        (lambda folder: ImageSegmentation(backbone="electra-docs"), "timm's ResNets and ViTs"),
        (lambda folder: ImageSegmentation(network="resnet18", num_classes=300), "1 to 254"),
        (lambda folder: ImageSegmentation(network="resnet18", optimizer="adam"), "sgd or adamw"),
        (lambda folder: data(folder, image_size=100), "multiple of 32"),
        (lambda folder: find_pairs(folder / "none", "train"), "There is no data folder"),
        (lambda folder: find_pairs(folder, "val"), r"no pictures val\*"),
    ],
)
def test_errors(glands, build, message):
    with pytest.raises(ZooError, match=message):
        build(glands)


def test_an_annotation_that_is_missing_or_of_another_size(glands):
    (glands / "train_1_anno.bmp").unlink()
    with pytest.raises(ZooError, match="no annotation train_1_anno"):
        find_pairs(glands, "train")
    Image.new("L", (20, 20)).save(glands / "train_1_anno.bmp")
    module = data(glands)
    module.setup()
    with pytest.raises(ZooError, match=r"has \(20, 20\) pixels"):
        module.train_data[0]
    (glands / "train_2.bmp").write_bytes(b"no image")
    with pytest.raises(ZooError, match="Cannot read the image"):
        module.train_data[2]
