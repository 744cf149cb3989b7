"""The fast renderer beside the exact one, and what both refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.fractals import colour as colours
from datamodules.fractals.pictures import LayoutRule, Material, SingleInstance
from datamodules.fractals.rendering import (
    STAMP_CELLS,
    Points,
    Renderer,
    chaos_game,
    count_points,
    draw_choices,
    draw_stamp,
    fast_chaos_game,
    render,
)
from datamodules.fractals.systems import SeededSystems
from datamodules.fractals.torch_renderer import Systems, TorchRenderer, pack_systems
from zoo.errors import ZooError

SYSTEMS = SeededSystems(40, seed=5)
STEPS = 200_000


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Total variation between two grids of counts."""
    return 0.5 * float(np.abs(a / a.sum() - b / b.sum()).sum())


@pytest.mark.parametrize("index", range(8))
def test_fast_points_have_the_same_distribution(index):
    system = SYSTEMS(index)
    runs = [chaos_game(system, draw_choices(system, STEPS, np.random.default_rng(seed))) for seed in (0, 1, 2)]
    fast = fast_chaos_game(system, STEPS, seed=9)
    region = runs[0].bounds
    grids = [count_points(points, 112, region)[1:-1, 1:-1] for points in (*runs, fast)]
    between = np.mean([distance(grids[0], grids[1]), distance(grids[0], grids[2]), distance(grids[1], grids[2])])
    assert distance(grids[0], grids[3]) <= 1.2 * between
    occupied = [(grid > 0).sum() for grid in grids]
    assert abs(occupied[3] / np.mean(occupied[:3]) - 1) < 0.02
    # Histogram of counts: as many cells that are hit rarely and often.
    levels = np.quantile(grids[0][grids[0] > 0], [0.25, 0.5, 0.75, 0.95])
    shares = [[(grid[grid > 0] > level).mean() for level in levels] for grid in grids]
    np.testing.assert_allclose(shares[3], shares[0], atol=0.03)


def test_fast_points_reach_as_far():
    """Tips are rare points, so single boxes differ; over many systems neither renderer's are larger."""
    ratios = []
    for index in range(40):
        system = SYSTEMS(index)
        exact = chaos_game(system, draw_choices(system, 40_000, np.random.default_rng(index))).bounds
        fast = fast_chaos_game(system, 40_000, seed=index).bounds
        ratios.append(np.log((fast[2:] - fast[:2]) / (exact[2:] - exact[:2])))
    assert abs(np.mean(ratios)) < 0.01


def test_a_start_that_is_seldom_visited_shows():
    """The fixed point of a nearly flat map lies far out: the official chain starts there, and the box reaches to it."""
    system = np.array([[[1e-4, 0, 5], [0, 1e-4, 5]], [[0.5, 0, 0], [0, 0.5, 0.5]], [[0.6, 0.2, 0], [-0.2, 0.6, 0]]])
    exact = chaos_game(system, draw_choices(system, 40_000, np.random.default_rng(0)))
    fast = fast_chaos_game(system, 40_000, seed=0)
    assert fast.bounds[2] > 2  # the others stay below 1
    np.testing.assert_allclose(fast.bounds[2:], exact.bounds[2:], rtol=0.5)
    assert np.quantile(fast.xy[0], 0.9999) < 2  # and it shows once, not eight times
    packed = Systems(*(torch.from_numpy(part) for part in pack_systems([system], [0])))
    tensors = TorchRenderer(steps=40_000, chains=64).points(packed)[0]
    assert tensors[0].max() > 2
    assert np.quantile(tensors[0].numpy(), 0.9999) < 2


def test_chains_share_nothing():
    xy = fast_chaos_game(SYSTEMS(0), 80_000, seed=1).xy
    chains = [xy[0, lane::8] for lane in range(8)]
    correlation = np.corrcoef(chains) - np.eye(8)
    assert np.abs(correlation).max() < 0.06
    again, other = (fast_chaos_game(SYSTEMS(0), 80_000, seed=seed).xy for seed in (1, 2))
    assert np.array_equal(xy, again)
    assert not np.array_equal(xy, other)


def test_fast_counts_equal_exact_ones_on_the_same_points():
    points = fast_chaos_game(SYSTEMS(1), 40_000, seed=3)
    for region in (None, points.bounds * [0.4, 0.4, 0.6, 0.7]):
        double = Points(np.ascontiguousarray(points.xy.T, np.float64), points.bounds)
        fast, exact = (count_points(p, 224, region) for p in (points, double))
        assert np.abs(fast - exact).sum() <= 0.002 * exact.sum()  # float32 on a cell's edge
        assert fast.sum() == pytest.approx(exact.sum(), abs=20)


def test_stamping_the_grid_is_stamping_the_points():
    system = SYSTEMS(2)
    points = chaos_game(system, draw_choices(system, 5000, np.random.default_rng(0)))
    x0, y0, x1, y1 = points.bounds
    region = np.array([x0 + 0.3 * (x1 - x0), y0 + 0.2 * (y1 - y0), x1, y1 - 0.4 * (y1 - y0)])
    size, stamp = 40, STAMP_CELLS[[0, 3, 7, 8]]
    expected = np.zeros((size, size))
    scale = (size - 1) / (region[2:] - region[:2])
    for x, y in points.xy:
        row, column = int((x - region[0]) * scale[0]), int((y - region[1]) * scale[1])
        for down, right in stamp - 1:
            if 0 <= row + down < size and 0 <= column + right < size:
                expected[row + down, column + right] += 1
    image, lit = render(points, size, region, stamp)
    np.testing.assert_allclose(image, expected / expected.max(), atol=1e-7)
    assert lit == (expected > 0).sum()


def test_fast_background_resembles_the_exact_one():
    fields = {mode: [] for mode in ("fast", "exact")}
    for mode, values in fields.items():
        for seed in range(40):
            values.append(colours.draw_background(50, np.random.default_rng(seed), mode).astype(float))
    fast, exact = (np.stack(values) for values in fields.values())
    assert abs(fast.mean() - exact.mean()) < 8
    # Neighbouring pixels differ as much; the crop's far side is as rough as the near one.
    rough = [np.abs(np.diff(values[:, part], axis=1)).mean() for values in (fast, exact)
             for part in (slice(0, 25), slice(25, 50))]  # fmt: skip
    np.testing.assert_allclose(rough, np.mean(rough), rtol=0.12)


def test_stamps_are_empty_only_if_allowed():
    stamps = [draw_stamp(np.random.default_rng(seed), allow_empty=True) for seed in range(3000)]
    empty = [seed for seed, stamp in enumerate(stamps) if not len(stamp)]
    assert 1 <= len(empty) <= 20
    assert len(draw_stamp(np.random.default_rng(empty[0])))
    assert abs(np.mean([len(stamp) for stamp in stamps]) - 4.5) < 0.1


def test_paint_is_pasting_within_a_level():
    rng = np.random.default_rng(0)
    image = np.where(rng.random((40, 40)) > 0.5, rng.random((40, 40)), 0).astype(np.float32)
    canvas = colours.draw_background(40, rng)
    colour = colours.draw_object_colour(rng)
    pasted = colours.paste(colours.colour_object(image, colour), canvas.copy())
    painted = colours.paint(image, colour, canvas.copy())
    assert np.abs(pasted.astype(int) - painted).max() <= 1


def test_systems_that_blow_up_are_drawn_again_and_end_in_an_error():
    wild = np.array([[[3.0, 0, 1], [0, 3.0, 1]], [[2.0, 1, 0], [0, 2.0, 1]]])
    for mode in ("fast", "exact"):
        maker = Material(32, 16, Renderer(2000, mode))
        with pytest.raises(ZooError, match="empty or ran off to infinity 10 times"):
            maker(wild, np.random.default_rng(0))
        assert maker.redrawn == 10
        with pytest.raises(ZooError, match="ran off"):
            SingleInstance(32, Renderer(2000, mode), jitter="none")(wild, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Renderer(mode="slow"), "'fast' or 'exact'"),
        (lambda: Renderer(steps=0), "at least 8 points"),
        (lambda: fast_chaos_game(SYSTEMS(0), 12, 0), "multiple of 8"),
        (lambda: count_points(fast_chaos_game(SYSTEMS(0), 8, 0), 0), "at least one pixel"),
        (lambda: LayoutRule(0), "at least one pixel"),
        (lambda: LayoutRule(4), "smaller than a pixel"),
        (lambda: LayoutRule(64, objects=(3, 2)), "least, most"),
        (lambda: LayoutRule(64, reach=0.6), "reach is 0 to 0.5"),
        (lambda: SingleInstance(0, Renderer()), "at least one pixel"),
        (lambda: colours.diamond_square(3, 0.5, np.zeros(5)), "takes 81 random numbers"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ZooError, match=message):
        call()


def test_compiling_is_said_once(capsys, monkeypatch, tmp_path):
    from datamodules.fractals import rendering

    class Kernel:
        class _cache:
            cache_path = str(tmp_path)

        signatures: tuple = ()

    monkeypatch.setattr(rendering.kernels, "fast_follow", Kernel)
    rendering.say_if_compiling()
    assert "Compiling" in capsys.readouterr().err
    (tmp_path / "kernels.fast_follow-1.py311.nbi").touch()
    rendering.say_if_compiling()
    assert capsys.readouterr().err == ""
