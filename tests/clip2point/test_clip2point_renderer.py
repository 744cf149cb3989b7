"""The depth renderer: what a pixel shows, views, gradients, limits."""

from __future__ import annotations

import pytest
import torch

from zoo.errors import ZooError
from zoo.nn.cameras import UPRIGHT, VIEWS, camera_direction, camera_rotation
from zoo.papers.clip2point import DepthRenderer, clip_images
from zoo.papers.clip2point import rendering as rendering_module
from zoo.papers.clip2point.rendering import normalize_depth, rasterize, view_points


def sphere(clouds: int, count: int, seed: int = 0) -> torch.Tensor:
    points = torch.randn(clouds, count, 3, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=-1, keepdim=True)


def naive(seen: torch.Tensor, size: int, radius: float) -> torch.Tensor:
    """Every pixel against every point, as the definition reads."""
    centre = 1 - (2 * torch.arange(size) + 1).float() / size
    out = torch.full((len(seen), size, size), -1)
    for row in range(size):
        for column in range(size):
            hit = (seen[..., 0] - centre[column]) ** 2 + (seen[..., 1] - centre[row]) ** 2 < radius * radius
            hit &= seen[..., 2] >= 0
            depth = torch.where(hit, seen[..., 2], torch.inf)
            out[:, row, column] = torch.where(hit.any(1), depth.argmin(1), -1)
    return out


@pytest.mark.parametrize(("size", "radius", "count"), [(32, 0.05, 200), (33, 0.11, 300), (16, 0.01, 50), (24, 0.5, 20)])
def test_raster_equals_the_definition(size: int, radius: float, count: int) -> None:
    seen = view_points(sphere(2, count), *VIEWS[6].tensors(), torch.full((6,), 0.93)).flatten(0, 1)
    raster = rasterize(seen, size, radius)
    assert (raster.index == naive(seen, size, radius)).float().mean() > 0.999
    hit = raster.index >= 0
    z = seen[..., 2].gather(1, raster.index.flatten(1).long().clamp(min=0)).view_as(raster.depth)
    assert torch.equal(raster.depth[hit], z[hit])
    assert (raster.depth[~hit] == -1).all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view_points(sphere(3, 100), *VIEWS[10].tensors()).flatten(0, 1)
    whole = rasterize(seen, 40)
    monkeypatch.setattr(rendering_module, "_CPU_POINTS", 250)
    parts = rasterize(seen, 40)
    assert torch.equal(whole.index, parts.index)
    assert torch.equal(whole.depth, parts.depth)


def test_nearest_wins_and_equal_depths_go_to_the_lower_index() -> None:
    points = torch.tensor([[[0.0, 0.0, 0.7], [0.0, 0.0, 0.5], [0.0, 0.0, 0.5]]])
    assert rasterize(points, 8, 0.3).index.unique().tolist() == [-1, 1]


def test_points_behind_the_camera_or_without_a_number_are_not_drawn() -> None:
    nan, inf = float("nan"), float("inf")
    points = torch.tensor([[[0.0, 0.0, -0.1], [nan, 0.0, 1.0], [0.0, inf, 1.0], [0.0, 0.0, nan], [1e30, 0.0, 1.0]]])
    assert (rasterize(points, 8, 0.5).index == -1).all()


def test_left_is_plus_x_and_up_is_plus_y() -> None:
    index = rasterize(torch.tensor([[[0.8, 0.8, 1.0], [-0.8, -0.8, 1.0]]]), 10, 0.15).index[0]
    assert index[1, 1] == 0
    assert index[8, 8] == 1


def test_singular_views_are_exact() -> None:
    above, below = [[1, 0, 0], [0, 0, -1], [0, 1, 0]], [[-1, 0, 0], [0, 0, 1], [0, 1, 0]]
    for elev, azim, wanted in ((90, 0, above), (270, 0, below), (-90, 180, below)):
        found = camera_rotation(torch.tensor([float(elev)]), torch.tensor([float(azim)]))[0]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float32), atol=1e-6, rtol=0)


@pytest.mark.parametrize("views", [6, 10])
def test_cameras_look_at_the_origin(views: int) -> None:
    elev, azim = VIEWS[views].tensors()
    rotation = camera_rotation(elev, azim)
    eye = torch.eye(3).expand(views, 3, 3)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), eye, atol=1e-6, rtol=0)
    assert (torch.det(rotation) > 0.99).all()
    # The camera itself lies at depth 0, on the axis.
    seen = camera_direction(elev, azim).float().unsqueeze(1) @ rotation
    torch.testing.assert_close(seen[:, 0], torch.tensor([0.0, 0.0, -1.0]).expand(views, 3), atol=1e-6, rtol=0)


def test_upright_turns_z_into_y() -> None:
    assert (torch.tensor([0.0, 0.0, 1.0]) @ torch.tensor(UPRIGHT)).tolist() == [0.0, 1.0, 0.0]
    assert torch.det(torch.tensor(UPRIGHT)).item() == pytest.approx(1.0)


def test_normalisation_counts_empty_pixels_as_one() -> None:
    depth = torch.full((1, 4, 4), -1.0)
    depth[0, 0, 0], depth[0, 1, 1] = 1.5, 2.0
    grey = normalize_depth(depth)
    assert grey[0, 0, 0].item() == pytest.approx((1.5 - 1) / 2 * 200 / 255)  # not 0: m is 1
    assert grey[0, 3, 3] == 1
    other = torch.stack([depth[0], depth[0] / 2])  # each map for itself
    assert torch.equal(normalize_depth(other)[0], grey[0])
    assert (normalize_depth(torch.full((1, 3, 3), -1.0)) == 1).all()


def test_white_is_clips_white() -> None:
    white = clip_images(torch.ones(2, 5, 5))
    assert white.shape == (2, 3, 5, 5)
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([1.930, 2.075, 2.146]), atol=1e-3, rtol=0)


def test_module_shapes_and_any_view() -> None:
    points = sphere(2, 64)
    assert DepthRenderer(10, 32, 0.05)(points).shape == (2, 10, 32, 32)
    render = DepthRenderer(6, 32, 0.05)
    assert render(points, torch.tensor([30.0]), torch.tensor([45.0])).shape == (2, 1, 32, 32)
    # Angles of each cloud's own, as pre-training draws them.
    elev, azim = torch.tensor([[0.0], [90.0]]), torch.tensor([[0.0], [0.0]])
    own = render(points, elev, azim, torch.ones(2, 1))
    assert torch.equal(own[1, 0], render(points, elev[1], azim[1])[1, 0])
    assert not list(render.state_dict())


def test_gradients_are_an_option() -> None:
    points = (sphere(1, 64) * 0.9).requires_grad_()
    assert not DepthRenderer(6, 32, 0.05)(points).requires_grad
    maps = DepthRenderer(6, 32, 0.05, differentiable=True)(points)
    assert torch.equal(maps, DepthRenderer(6, 32, 0.05)(points))
    maps.sum().backward()
    assert points.grad is not None
    assert points.grad.abs().sum() > 0
    assert points.grad.isfinite().all()


def test_wrong_input_is_one_line() -> None:
    for points in (torch.zeros(2, 3), torch.zeros(1, 0, 3), torch.zeros(1, 4, 2)):
        with pytest.raises(ZooError, match="clouds"):
            DepthRenderer(6, 16)(points)
    with pytest.raises(ZooError, match="6 views"):
        DepthRenderer(7)
    with pytest.raises(ZooError, match="both elev and azim"):
        DepthRenderer(6, 16)(torch.zeros(1, 4, 3), elev=torch.zeros(1))
