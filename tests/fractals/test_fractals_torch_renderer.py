"""The renderer on tensors beside the numba one, and its Triton kernels; on the CPU here."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.fractals.rendering import (
    STAMP_CELLS,
    Points,
    chaos_game,
    count_points,
    draw_choices,
    fast_chaos_game,
    render,
)
from datamodules.fractals.systems import SeededSystems
from datamodules.fractals.torch_renderer import Systems, TorchRenderer, pack_systems, random_numbers
from datamodules.fractals.torch_renderer import count_points as count_tensors
from zoo.errors import ZooError

SYSTEMS = [SeededSystems(6, seed=11)(index) for index in range(6)]


def pack(systems: list[np.ndarray], seeds: list[int], most: int | None = None) -> Systems:
    return Systems(*(torch.from_numpy(part) for part in pack_systems(systems, seeds, most)))


def test_as_many_lit_pixels_and_the_same_distribution():
    """Within the box of a third run: a run's own box holds all of it, and less of any other."""
    drawn = SeededSystems(30, seed=3)
    systems = [drawn(index) for index in range(30)]
    points = TorchRenderer(steps=100_000).points(pack(systems, [index * 10**15 for index in range(30)]))
    assert points.shape == (30, 2, 100_000)
    ratios, apart, between = [], [], []
    for index, system in enumerate(systems):
        rngs = (np.random.default_rng([index, k]) for k in range(3))
        box, *exact = (chaos_game(system, draw_choices(system, 100_000, rng)) for rng in rngs)
        region = torch.from_numpy(box.bounds)[None].float()
        grids = [count_points(run, 64, box.bounds)[1:-1, 1:-1] for run in exact]
        grids.append(count_tensors(points[index : index + 1], 64, region)[0, 1:-1, 1:-1].numpy())
        shares = [grid / grid.sum() for grid in grids]
        between.append(np.abs(shares[0] - shares[1]).sum())
        apart.append(np.abs(shares[0] - shares[2]).sum())
        ratios.append((grids[2] > 0).sum() / (grids[1] > 0).sum())
    assert (np.array(apart) <= 1.5 * np.array(between)).all()  # of few cells, two exact runs are up to 1.3 times as far
    assert np.mean(apart) < 1.05 * np.mean(between)
    assert abs(np.mean(ratios) - 1) < 0.01  # single ones are up to 5 % off, exact ones too


def test_counts_and_stamps_are_those_of_the_cpu_renderer():
    renderer, packed = TorchRenderer(steps=3000, chains=64), pack(SYSTEMS[:2], [1, 2])
    points = renderer.points(packed)
    stamps = torch.zeros(2, 3, 3)
    cells = STAMP_CELLS[[0, 1, 5, 6]]
    stamps[:, cells[:, 0], cells[:, 1]] = 1
    rendered, finite, lit = renderer.render(packed, 48, stamps.view(2, 9))
    assert finite.all()
    assert lit.all()
    for index in range(2):
        xy = points[index].numpy()
        same = Points(xy, np.array([*xy.min(axis=1), *xy.max(axis=1)], np.float64))
        grid = renderer.counts(packed, 48)[0][index].numpy()
        assert np.abs(grid - count_points(same, 48)).sum() <= 6
        expected, _ = render(same, 48, stamp=cells)
        assert np.abs(rendered[index].numpy() - expected).mean() < 2e-3


def test_what_blows_up_is_blank_and_said():
    wild = np.array([[[3.0, 0, 1], [0, 3.0, 1]], [[2.0, 1, 0], [0, 2.0, 1]]])
    image, finite, _ = TorchRenderer(steps=4000, chains=8).render(pack([wild, SYSTEMS[0]], [0, 0]), 16)
    assert torch.isfinite(image).all()
    assert finite.tolist() == [False, True]


def test_wrong_arguments():
    with pytest.raises(ZooError, match="at least one point"):
        TorchRenderer(steps=0)
    with pytest.raises(ZooError, match="at least one pixel"):
        TorchRenderer(steps=8).counts(pack(SYSTEMS[:1], [0]), 0)


def test_fast_points_and_tensors_share_their_start():
    system = SeededSystems(3)(1)
    cpu = fast_chaos_game(system, 8, 0).xy[:, 0]
    device = TorchRenderer(8).points(pack([system], [0]))
    maps = system.astype(np.float32)
    x, y = pack([system], [0]).starts[0].numpy()
    reached = {tuple(np.round(m[:, 0] * x + m[:, 1] * y + m[:, 2], 5)) for m in maps}
    for first in (cpu, device[0, :, 0].numpy()):
        assert any(np.allclose(first, point, atol=1e-4) for point in reached)


def test_random_numbers_are_uniform_and_their_own():
    numbers = random_numbers(torch.tensor([0, 1, 2**62 + 1]), 50_000).double() / 2**32
    assert ((numbers >= 0) & (numbers < 1)).all()
    for row in numbers:
        counts = torch.histc(row, 50, 0, 1)
        assert ((counts - 1000) ** 2 / 1000).sum() < 100  # chi square of 49 degrees: 85 has one in a thousand
    assert torch.unique(numbers[:2]).numel() > 99_995  # neighbouring seeds do not share theirs
    others = [numbers[0, 1:], numbers[1, :-1], numbers[2, :-1], numbers[0, 256:]]
    for other in others:
        assert abs(np.corrcoef(numbers[0, : len(other)], other)[0, 1]) < 0.02


def test_a_fractal_is_the_same_alone_and_among_others():
    drawn = SeededSystems(40, seed=5)
    systems, seeds = [drawn(index) for index in range(9)], [index * 10**17 for index in range(9)]
    renderer = TorchRenderer(3000)
    together = renderer.render(pack(systems, seeds), 40)[0]
    for index in (0, 4, 8):
        alone = renderer.render(pack(systems[index : index + 1], seeds[index : index + 1], most=7), 40)[0]
        assert torch.equal(alone[0], together[index])
    other = renderer.render(pack(systems, [seed + 1 for seed in seeds]), 40)[0]
    assert not torch.equal(other, together)


INTERPRETED = """
import torch
from datamodules.fractals import torch_renderer, triton_chaos
from datamodules.fractals.systems import SeededSystems
from datamodules.fractals.torch_renderer import Systems, TorchRenderer, _cells, count_points, moved_region, pack_systems
triton_chaos.BURN_IN = torch_renderer.BURN_IN = 3  # the interpreter takes its time
drawn = SeededSystems(9, seed=1)
packed = pack_systems([drawn(k) for k in range(2)], [5, 2**62 + 7])
systems = Systems(*(torch.from_numpy(part) for part in packed))
renderer = TorchRenderer(430, 150)  # a multiple neither of the chains nor of what one program plays
points = renderer.points(systems)
expected = torch.cat([points.amin(dim=2), points.amax(dim=2)], dim=1)
game = renderer.steps, renderer.turns, renderer.chains
found, finite = triton_chaos.bounds(systems, *game)
torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
assert finite.all()
shift, sides = torch.tensor([[0, 0], [0.2, -0.1]]), torch.tensor([[1, 1], [0.4, 1.7]])
region = moved_region(expected, shift, sides)
counts = triton_chaos.count(systems, *_cells(region, 30), 30, *game)
assert torch.equal(counts, count_points(points, 30, region))
assert counts[0].sum() == 430
wild = systems._replace(maps=systems.maps * 1e15)
assert not triton_chaos.bounds(wild, *game)[1].any()
"""


def test_the_triton_kernel_plays_the_same_game():
    """In Triton's interpreter, which has to be chosen before Triton is imported."""
    pytest.importorskip("triton")
    run = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(run, env={"TRITON_INTERPRET": "1", **_environment()}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_triton_kernel_compiles_for_a_gpu(tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from datamodules.fractals import triton_chaos

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    arrays = dict(maps="*fp32", thresholds="*i64", starts="*fp32", seeds="*i64")
    sizes = dict(MOST=4, TURNS=391, BURN=128, LANES=256, STEPS=100_000, WIDTH=triton_chaos.BLOCK)
    for kernel, more in (
        (triton_chaos._bounds, dict(out="*fp32")),
        (triton_chaos._count, dict(corners="*fp32", scales="*fp32", grid="*i32", size="i32", EDGE="constexpr")),
    ):
        values = sizes | ({"EDGE": 1} if "EDGE" in more else {})
        source = ASTSource(kernel, arrays | more | dict.fromkeys(sizes, "constexpr"), values)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"]
        adds = any(word in compiled.asm["ptx"] for word in ("red.global", "atom.global", "red.relaxed", "atom.relaxed"))
        assert adds == ("grid" in more)


def test_where_triton_fails_tensors_play_and_it_is_said_once(recwarn):
    class Broken:
        def bounds(self, *_: Any) -> None:
            raise RuntimeError("no ptxas\nfor this GPU")

    class OnAGPU(TorchRenderer):
        def _kernels(self, device: torch.device) -> Any:
            return Broken() if self.use_triton else None

    systems, renderer = pack([SeededSystems(2)(0)], [3]), OnAGPU(2000)
    found = [renderer.render(systems, 20)[0] for _ in range(2)]
    assert [str(warning.message) for warning in recwarn] == [
        "Triton cannot play the chaos game here (no ptxas): tensors do, slowly."
    ]
    for image in found:
        assert torch.equal(image, TorchRenderer(2000).render(systems, 20)[0])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
