"""Pictures made on the training device: the CPU's but for the points of the chaos game, whatever comes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from datamodules.fractals import FractalsDataModule
from datamodules.fractals import torch_pictures as tensors
from datamodules.fractals.colour import draw_background, draw_move, move, num_levels
from datamodules.fractals.datasets import PictureBatches
from datamodules.fractals.device_pictures import DevicePictures
from datamodules.fractals.draws import DrawnPictures
from datamodules.fractals.rendering import (
    STAMP_CELLS,
    Points,
    kernels,
)
from datamodules.fractals.rendering import render as render_one
from datamodules.fractals.systems import SeededSystems
from datamodules.fractals.torch_renderer import Systems
from zoo.errors import ZooError

SMALL = dict(image_size=48, batch_size=4, num_classes=6, per_class=8, points=4000, window=8, streams=2, val_images=6,
             seed=3, num_workers=0)  # fmt: skip
TASKS = ["multi_instance", "multi_class", "views"]


def make(task: str = "multi_instance", renderer: str = "device", **changes: Any) -> FractalsDataModule:
    data = FractalsDataModule(task, renderer=renderer, **{**SMALL, **changes})  # type: ignore[arg-type]
    data.setup()
    return data


def batches(data: FractalsDataModule, loader: Any = None) -> list:
    return [data.on_after_batch_transfer(batch, 0) for batch in loader or data.train_dataloader()]


# ---------------------------------------------------------------------- colours and composition


@pytest.mark.parametrize("size", [1, 2, 33, 48, 64, 100])
def test_fields_are_those_of_the_cpu(size):
    levels, seeds, decays = num_levels(size), [0, 2**63 - 1, 12345], [0.4, 0.55, 0.8]
    amplitudes = torch.from_numpy(tensors.amplitudes_of(levels, decays))
    fields = tensors.fast_fields(levels, size, amplitudes, torch.from_numpy(tensors.nibbles_of(seeds)))
    for field, seed, decay in zip(fields, seeds, decays, strict=True):
        expected = kernels.fast_diamond_square(levels, decay, np.uint64(seed), size)
        np.testing.assert_allclose(field, expected, rtol=0, atol=2e-6)


def test_resizing_and_blurring_are_opencvs_to_the_bit():
    from datamodules.fractals.colour import blur, resize

    rng = np.random.default_rng(0)
    sides = [1, 2, 19, 40, 41, 77, 90]
    images = rng.integers(0, 256, (len(sides), 40, 40, 3), dtype=np.uint8)
    images[rng.random(images.shape[:3]) < 0.5] = 0
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    resized = tensors.resize(batch, torch.tensor(sides), 90)
    for image, side, found in zip(images, sides, resized, strict=True):
        np.testing.assert_array_equal(found[:, :side, :side].permute(1, 2, 0), resize(image, side))
    sigmas = [None, 0.5, 0.71, 1.0, 1.4, 2.0, None]
    blurred = tensors.blur(batch, torch.from_numpy(tensors.blur_weights(sigmas)))
    for image, sigma, found in zip(images, sigmas, blurred, strict=True):
        np.testing.assert_array_equal(found.permute(1, 2, 0), image if sigma is None else blur(image, sigma))


def test_moved_pictures_are_opencvs():
    rng = np.random.default_rng(0)
    images = np.stack([draw_background(50, rng) for _ in range(6)])
    drawn = [draw_move(rng, 50, 50) for _ in images]
    inverse = torch.from_numpy(tensors.inverse_moves([one.matrix for one in drawn]))
    mirror = torch.tensor([one.mirror for one in drawn])
    found = tensors.move(torch.from_numpy(images).permute(0, 3, 1, 2), inverse, mirror).permute(0, 2, 3, 1)
    expected = np.stack([move(image, one) for image, one in zip(images, drawn, strict=True)])
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.mean() < 0.2
    assert (difference > 4).mean() < 0.002


class OnTheCPU:
    """Plays the chaos game as the CPU's loaders do, from the same draws."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def render(self, systems: Systems, size: int, stamps: Any, show: Any = None) -> Any:
        games = []
        for row in range(len(systems.maps)):
            maps, seed = systems.maps[row].numpy(), systems.seeds[row].item()
            xy = np.empty((2, self.steps), np.float32)
            thresholds = systems.thresholds[row].numpy().astype(np.uint64)
            kernels.fast_follow(maps, thresholds, *systems.starts[row].numpy(), np.uint64(seed), xy)
            games.append(Points(xy, np.concatenate([xy.min(axis=1), xy.max(axis=1)]).astype(np.float64)))
        box = torch.from_numpy(np.stack([points.bounds for points in games]))
        regions = (show(box) if show else box).numpy()
        cells = [STAMP_CELLS[stamp.numpy().astype(bool)] for stamp in stamps]
        made = [render_one(p, size, region, stamp) for p, region, stamp in zip(games, regions, cells, strict=True)]
        shares, lit = zip(*made, strict=True)
        return torch.from_numpy(np.stack(shares)), torch.ones(len(lit), dtype=torch.bool), torch.tensor(lit) > 0


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("multi_instance", {}),
        ("multi_instance", dict(objects=(0, 3), fractal_size=40, period=1, streams=1)),
        ("multi_instance", dict(batch_size=3, period=5, stamps=False, image_size=50)),
        ("multi_class", {}),
        ("multi_class", dict(period=1, jitter="svd", image_size=50)),
        ("multi_class", dict(color=False, background=False, blur_p=1.0, period=3)),
        ("views", {}),
        ("views", dict(period=1, size_range=(0.5, 0.5), blur_p=0.0, mean=(0.5,) * 3, std=(0.2,) * 3)),
    ],
)
def test_from_the_same_fractals_come_the_cpus_pictures(task, changes):
    """All but the chaos game: draws, rings, colours, backgrounds, composition, labels, to a level or two."""
    cpu, device = make(task, "cpu", **changes), make(task, **changes)
    for pictures in device._device.values():
        pictures.renderer = OnTheCPU(SMALL["points"])
    for loaders in ("train_dataloader", "val_dataloader"):
        expected, found = (batches(data, getattr(data, loaders)()) for data in (cpu, device))
        assert len(expected) == len(found) > 1
        for theirs, ours in zip(expected, found, strict=True):
            assert [(x.shape, x.dtype) for x in ours] == [(x.shape, x.dtype) for x in theirs]
            if task != "views":
                assert torch.equal(ours[1], theirs[1])
            for a, b in zip(ours if task == "views" else ours[:1], theirs, strict=False):
                scale = 255 * torch.tensor(device.std)[:, None, None]
                levels = ((a - b) * scale).abs().round()
                # A byte of hue, where rounding differs, is up to nine levels of a channel.
                assert levels.max() <= 12
                assert (levels > 3).float().mean() < 0.006
                assert levels.mean() < 0.4


def test_systems_of_a_file_with_any_number_of_maps(tmp_path):
    from datamodules.fractals.files import write_systems

    systems = [SeededSystems(9, seed=1, n=(n, n + 1))(n) for n in (2, 3, 4, 5, 6, 7)]
    write_systems(tmp_path / "systems.npz", systems)
    cpu, device = (
        make("multi_class", renderer, systems=str(tmp_path / "systems.npz")) for renderer in ("cpu", "device")
    )
    for pictures in device._device.values():
        assert pictures.drawn.most == 7
        pictures.renderer = OnTheCPU(SMALL["points"])
    for theirs, ours in zip(batches(cpu)[:3], batches(device)[:3], strict=True):
        assert torch.equal(theirs[1], ours[1])
        assert (theirs[0] - ours[0]).abs().mean() < 0.4 / 255


# ---------------------------------------------------------------------- what comes when


@pytest.mark.parametrize("task", TASKS)
def test_the_same_batches_from_any_number_of_workers_and_from_any_point_on(task):
    alone = batches(make(task))
    assert len(alone) == 12
    for other in (make(task), make(task, num_workers=2)):
        assert_same(alone, batches(other))
    late = make(task)
    loader = late.train_dataloader()
    loader.batch_sampler.go_to(0, 7)
    assert_same(alone[7:], batches(late, loader))
    assert not torch.equal(alone[0][0], batches(make(task, seed=4))[0][0])


def assert_same(expected: list, found: list) -> None:
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_is_the_same_in_any_batch(task):
    """Alone and among all others, on a ring that is new or has seen other pictures."""
    data = make(task)
    drawn = DrawnPictures(data.train_data)
    keys = [(0, k) for k in range(32)] + [(1, 3), (0, 5), (0, 4)]

    def show(pictures: DevicePictures, some: list) -> torch.Tensor:
        made = pictures(drawn.collate([drawn[key] for key in some]))
        return torch.stack(made.chunk(2)) if task == "views" else made[None]

    together = show(DevicePictures(drawn), keys)
    kept = DevicePictures(drawn)
    for place in (33, 3, 20, 32, 0):
        for pictures in (DevicePictures(drawn), kept):
            assert torch.equal(show(pictures, [keys[place]])[:, 0], together[:, place])


@pytest.mark.parametrize("task", TASKS)
def test_two_devices_see_what_one_sees(task):
    whole = batches(make(task))
    for rank in range(2):
        data = make(task)
        order = PictureBatches(len(data.train_data), 4, rank, 2)
        drawn = DrawnPictures(data.train_data)
        part = [drawn.collate([drawn[key] for key in keys]) for keys in order]
        assert_same(whole[rank::2], batches(data, part))


def test_fractals_come_with_the_pictures_and_are_rendered_once():
    data = make(streams=1)
    pictures, drawn = data._device["train"], []
    entry = pictures.drawn.entry
    pictures.drawn.entry = lambda *pair: drawn.append(pair) or entry(*pair)  # type: ignore[method-assign]
    batches(data)
    assert len(set(drawn)) == len(drawn)
    by_the_way = [pair for pair in drawn if pair[1] >= 0]
    assert sorted(by_the_way) == [(0, k) for k in range(24)]  # with the picture of each, by the loader
    size = next(iter(pictures.ring.kept.values())).shape[0]
    for epoch in range(3):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch + 1)
        batches(data, loader)
    assert next(iter(pictures.ring.kept.values())).shape[0] == size <= 3 * SMALL["window"]


def test_validation_leaves_nothing_that_training_cannot_use():
    """Rings are filled under inference mode as well, and read outside of it."""
    data = make()
    with torch.inference_mode():
        first = batches(data, data.val_dataloader())
    assert_same(first, batches(data, data.val_dataloader()))
    image = batches(data)[0][0].requires_grad_()
    (image * 2).sum().backward()
    assert image.grad is not None


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_does_not_touch_it(task):
    expected = batches(make(task))[:3]
    data = make(task)
    drawn = list(data.train_dataloader())[:3]
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)  # as 16-true precision does
        with torch.autocast("cpu", torch.bfloat16):
            pictures = [data._device["train"](batch) for batch in drawn]
    finally:
        torch.set_default_dtype(before)
    for found, batch in zip(pictures, expected, strict=True):
        whole = torch.cat(batch) if task == "views" else batch[0]
        assert torch.equal(found, (whole * 255).round().to(torch.uint8))


def test_blank_pictures_are_drawn_again_as_on_the_cpu():
    """Deep zooms often miss the fractal."""
    found = {}
    for renderer in ("cpu", "device"):
        data = make("multi_class", renderer, period=1, per_class=20, background=False, blur_p=0.0)
        data.train_data.picture.scale = (0.05, 0.2)
        shown = torch.cat([batch[0] for batch in batches(data)])
        assert (shown.amax(dim=(1, 2, 3)) > 0).all()
        found[renderer] = data.num_redrawn
    assert found["cpu"] >= 10
    assert abs(found["device"] - found["cpu"]) <= 0.5 * found["cpu"]


def test_systems_that_blow_up_end_in_an_error():
    data = make()
    wild = np.array([[[3.0, 0, 1], [0, 3.0, 1]], [[2.0, 1, 0], [0, 2.0, 1]]])
    data.train_data.systems = lambda index: wild
    with pytest.raises(ZooError, match="empty or ran off to infinity 10 times"):
        batches(data)
    assert data.num_redrawn >= 10


def test_real_images_and_raw_samples_are_as_ever():
    data = make(probe_root="digits")
    images, labels = next(iter(data.labelled_dataloaders()[1]))
    normalised, same = data.on_after_batch_transfer((images, labels), 0)
    assert normalised.dtype == torch.float32
    assert same is labels
    assert data.raw_sample().size == (48, 48)


def test_lit_cells_on_average():
    """Pictures of single fractals on black, whole: as many pixels are lit as on the CPU, within one in a hundred."""
    lit = []
    for renderer in ("cpu", "device"):
        data = make("multi_class", renderer, num_classes=60, per_class=4, points=20_000, batch_size=40,
                    period=1, background=False, color=False, blur_p=0.0, jitter="none")  # fmt: skip
        lit.append(np.mean([(images > 0).any(dim=1).float().mean() for images, _ in batches(data)]))
    assert lit[1] == pytest.approx(lit[0], rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(renderer="gpu"), "'cpu' or 'device'"),
        (dict(mode="exact"), "mode exact needs renderer cpu"),
        (dict(root="somewhere"), "rendered already"),
        (dict(points=0), "at least 8 points"),
        (dict(objects=(1, 127)), "up to 126 objects"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ZooError, match=message):
        FractalsDataModule(**{"task": "multi_instance", "renderer": "device", **SMALL, **changes})
