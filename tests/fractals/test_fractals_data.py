"""Pictures by index: the same from any number of workers, resumable, balanced, without growing memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.fractals import FractalsDataModule
from datamodules.fractals import colour as colours
from datamodules.fractals.datasets import PictureBatches, Plan, permute
from zoo.errors import ZooError

SMALL = dict(
    image_size=32, batch_size=4, num_classes=6, per_class=8, points=400, window=8, streams=2, val_images=6, seed=3
)


def make(task: str = "multi_instance", **changes) -> FractalsDataModule:
    data = FractalsDataModule(task, **{**SMALL, "num_workers": 0, **changes})
    data.setup()
    return data


def batches(data: FractalsDataModule) -> list:
    return list(data.train_dataloader())


@pytest.mark.parametrize("task", ["multi_instance", "multi_class", "views"])
def test_same_batches_from_any_number_of_workers(task):
    alone, again = batches(make(task)), batches(make(task))
    assert len(alone) == 12
    for others in (again, batches(make(task, num_workers=2)), batches(make(task, num_workers=3, streams=2))):
        for a, b in zip(alone, others, strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
    different = batches(make(task, seed=4))
    assert not torch.equal(alone[0][0], different[0][0])


def test_pictures_do_not_depend_on_what_was_shown_before():
    one, other = make().train_data, make().train_data
    for key in [(0, k) for k in range(48)]:
        one[key]
    for key in ((0, 47), (2, 13), (1, 0)):
        for a, b in zip(one[key], other[key], strict=True):
            assert torch.equal(a, b)


def test_every_picture_is_another_one():
    data = make().train_data
    seen = {data[(epoch, index)][0].numpy().tobytes() for epoch in range(2) for index in range(len(data))}
    assert len(seen) == 2 * len(data)
    validation = make().val_data[0][0].numpy().tobytes()
    assert validation not in seen


def test_samplers_share_the_epoch_among_devices():
    whole = list(PictureBatches(48, 4))
    parts = [list(PictureBatches(48, 4, rank, 3)) for rank in range(3)]
    assert [parts[k % 3][k // 3] for k in range(12)] == whole
    order = PictureBatches(48, 4)
    order.set_epoch(2)
    assert next(iter(order)) == [(2, index) for index in range(4)]
    order.go_to(1, 5)
    assert list(order) == [[(1, index) for index in range(4 * k, 4 * k + 4)] for k in range(5, 12)]
    with pytest.raises(ZooError, match="less than one batch"):
        PictureBatches(48, 32, 0, 2)


def test_permute_is_a_permutation():
    for size in (1, 2, 7, 64, 1000):
        assert sorted(permute(index, size, key=5) for index in range(size)) == list(range(size))
    a, b = ([permute(index, 1000, key) for index in range(1000)] for key in (1, 2))
    assert abs(np.corrcoef(a, range(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_every_class_comes_as_often():
    plan = Plan(num_classes=10, images=100, batch_size=4, streams=2)
    counts = np.bincount([plan.class_of(stream, k) for k in range(50) for stream in range(2)], minlength=10)
    assert counts.tolist() == [10] * 10
    data = make("multi_class", period=1, streams=1)
    labels = torch.cat([labels for _, labels in batches(data)])
    assert torch.bincount(labels).tolist() == [8] * 6


def test_labels_are_those_of_the_fractals_shown():
    images, labels = next(iter(make(objects=(0, 3), batch_size=16).train_dataloader()))
    assert images.shape == (16, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.shape == (16, 3)
    assert ((labels >= -1) & (labels < 6)).all()
    assert (labels == -1).any(dim=1).equal((labels == -1).all(dim=1))
    assert (labels == -1).any()


def test_memory_does_not_grow():
    dataset = make().train_data
    for epoch in range(8):
        for index in range(len(dataset)):
            dataset[(epoch, index)]
    assert len(dataset._rings) == 2
    assert max(len(ring.kept) for ring in dataset._rings.values()) <= 2 * 8


def test_a_million_classes_cost_nothing():
    data = make(num_classes=1_000_000, per_class=1)
    _, labels = data.train_data[(0, 999_999)]
    assert labels.max() > 1000


def test_moving_a_picture_is_torchvisions_affine():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    class Fixed:
        def uniform(self, low, high, size=None):
            return low * 0.5 + high * 0.5 + (high - low) * 0.2 if size is None else np.array([0.05, -0.07])

        def random(self):
            return 0.9

    image = colours.draw_background(64, np.random.default_rng(0))
    moved = colours.move(image, colours.draw_move(Fixed(), 64, 64))
    expected = tv.affine(
        torch.from_numpy(image).permute(2, 0, 1).float(), angle=4.0, translate=[3, -4], scale=0.875, shear=[0.0],
        interpolation=InterpolationMode.BILINEAR,
    )  # fmt: skip
    difference = (torch.from_numpy(moved).permute(2, 0, 1).float() - expected).abs()[:, 12:-12, 12:-12]
    assert difference.mean() < 3  # OpenCV places samples on a grid of 1/32 pixel


def test_grey_on_black_upright_and_in_the_middle():
    plain = dict(color=False, background=False, flips=False, reach=0.0, size_range=(0.5, 0.5), blur_p=0.0)
    data = make(objects=(1, 1), **plain)
    pictures = torch.stack([data.train_data[(0, index)][0] for index in range(8)])
    assert torch.equal(pictures[:, 0], pictures[:, 1])
    assert torch.equal(pictures[:, 0], pictures[:, 2])
    quarter = pictures.shape[-1] // 4
    assert not pictures[..., :quarter].any()
    assert not pictures[..., :quarter, :].any()
    assert pictures[..., quarter:-quarter, quarter:-quarter].flatten(1).amax(dim=1).min() > 100
    rule = data.train_data.rule
    assert all(placed.flips == (False,) * 3 for placed in rule.draw(np.random.default_rng(0), 8).objects)


def test_real_images_for_probes():
    train, held_out = make(probe_root="digits").labelled_dataloaders()
    images, _ = next(iter(held_out))
    assert images.shape[1:] == (3, 32, 32)
    assert len(train.dataset) + len(held_out.dataset) == 1797
    with pytest.raises(ZooError, match="probe_root"):
        make().labelled_dataloaders()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task="both"), "'multi_instance', 'multi_class' or 'views'"),
        (dict(image_size=0), "pixel"),
        (dict(num_classes=0), "at least one system"),
        (dict(batch_size=0), "batch_size is at least 1"),
        (dict(num_workers=-1), "num_workers is 0"),
        (dict(std=(0.2, 0.0, 0.2)), "std is above 0"),
        (dict(per_class=0), "per_class is at least 1"),
        (dict(val_images=0), "val_images is at least 1"),
        (dict(window=0), "window is at least 1"),
        (dict(period=0), "period is at least 1"),
        (dict(jitter="sdv"), "jitter is one of"),
        (dict(mode="slow"), "'fast' or 'exact'"),
        (dict(systems="nowhere.npz"), "no file of fractal systems"),
        (dict(task="views", background=False), "cannot be left out of views"),
        (dict(task="multi_class", reach=0.1), "reach is for multi_instance"),
        (dict(size_range=(0.01, 0.5)), "smaller than a pixel"),
        (dict(blur_p=2.0), "probability"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ZooError, match=message):
        FractalsDataModule(**{"task": "multi_instance", **SMALL, "num_workers": 0, **changes})


def test_uneven_streams_are_said():
    data = make(streams=2, num_workers=3)
    with pytest.warns(UserWarning, match="multiple of 3"):
        data.train_dataloader()
