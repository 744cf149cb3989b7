"""The renderer on tensors beside the numba one; on the CPU here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.fractals.rendering import STAMP_CELLS, Points, chaos_game, count_points, draw_choices, render
from datamodules.fractals.systems import SeededSystems
from datamodules.fractals.torch_renderer import TorchRenderer
from zoo.errors import ZooError

SYSTEMS = [SeededSystems(6, seed=11)(index) for index in range(6)]


def test_as_many_lit_pixels_and_the_same_distribution():
    renderer = TorchRenderer(steps=100_000, chains=256)
    points = renderer.points(SYSTEMS, torch.Generator().manual_seed(0))
    assert points.shape == (6, 2, 100_000)
    ratios = []
    for index, system in enumerate(SYSTEMS):
        runs = [chaos_game(system, draw_choices(system, 100_000, np.random.default_rng(seed))) for seed in (0, 1)]
        region = runs[0].bounds
        exact = [count_points(run, 64, region)[1:-1, 1:-1] for run in runs]
        ours = renderer.counts(points[index : index + 1], 64, torch.from_numpy(region)[None].float())[0].numpy()
        ours = ours[1:-1, 1:-1]
        shares = [grid / grid.sum() for grid in (*exact, ours)]
        between, apart = (np.abs(shares[0] - shares[k]).sum() for k in (1, 2))
        assert apart <= 1.2 * between
        ratios.append((ours > 0).sum() / np.mean([(grid > 0).sum() for grid in exact]))
    np.testing.assert_allclose(ratios, 1, atol=0.02)
    assert abs(np.mean(ratios) - 1) < 0.01


def test_counts_and_stamps_are_those_of_the_cpu_renderer():
    renderer = TorchRenderer(steps=3000, chains=64)
    points = renderer.points(SYSTEMS[:2], torch.Generator().manual_seed(1))
    stamps = torch.zeros(2, 3, 3)
    cells = STAMP_CELLS[[0, 1, 5, 6]]
    stamps[:, cells[:, 0], cells[:, 1]] = 1
    rendered = renderer.render(SYSTEMS[:2], 48, stamps, generator=torch.Generator().manual_seed(1))
    for index in range(2):
        xy = points[index].numpy()
        same = Points(xy, np.array([*xy.min(axis=1), *xy.max(axis=1)], np.float64))
        grid = renderer.counts(points[index : index + 1], 48)[0].numpy()
        assert np.abs(grid - count_points(same, 48)).sum() <= 6
        expected, _ = render(same, 48, stamp=cells)
        assert np.abs(rendered[index].numpy() - expected).mean() < 2e-3


def test_what_blows_up_is_blank():
    wild = np.array([[[3.0, 0, 1], [0, 3.0, 1]], [[2.0, 1, 0], [0, 2.0, 1]]])
    image = TorchRenderer(steps=4000, chains=8).render([wild], 16)
    assert torch.isfinite(image).all()


def test_wrong_arguments():
    with pytest.raises(ZooError, match="at least one point"):
        TorchRenderer(steps=0)
    with pytest.raises(ZooError, match="at least one pixel"):
        TorchRenderer(steps=8).counts(torch.zeros(1, 2, 8), 0)
