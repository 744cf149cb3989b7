"""The depth renderer of CLIP2Point: point clouds to depth maps that CLIP can look at (arXiv 2210.01055).

A point is a disc of fixed radius, the nearest one wins a pixel, and nothing is filled in between: what looks dense
comes from the radius alone. Every point touches a window of a few pixels, so the work grows with points and views and
never with pixels x points.

Shape letters: B clouds, V views, N points, S picture side in pixels, R = B * V maps.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.nn.cameras import UPRIGHT, VIEWS, ViewSet, camera_rotation

RADIUS = 0.02
"""Of a point's disc, in units of half the picture: 2.24 pixels at 224."""
BRIGHTEST = 200 / 255
"""Upper end of the grey values of points; pixels that no point hits are 1 (white)."""

T = TypeVar("T")
_NOTHING = torch.iinfo(torch.int64).max
_CPU_POINTS = 1 << 15  # points splatted together: their working set stays in a core's cache
_GPU_POINTS = 1 << 23  # likewise, for bounded memory: about 100 bytes a point and 8 a pixel


class Raster(NamedTuple):
    """What pixels show.

    Attributes:
        index: (R, S, S) int32, which point; -1 where there is none.
        depth: (R, S, S) float32, its distance along the view; -1 where there is none.
    """

    index: Tensor
    depth: Tensor


def view_points(
    points: Tensor, elev: Tensor, azim: Tensor, dist: Tensor | None = None, upright: bool = False
) -> Tensor:
    """Points as the cameras see them: (B, V, N, 3), x and y in picture units (+x left, +y up, [-1, 1]), z the depth.

    Args:
        points: (B, N, 3), inside the unit sphere.
        elev, azim: camera angles in degrees, (V,) or (B, V).
        dist: camera distance, (V,) or (B, V); None is 1. The cloud shrinks by the same factor, so below 1 points can
            come to lie behind the camera.
        upright: first turn z-up shapes (ModelNet) into the y-up frame (`zoo.nn.cameras.UPRIGHT`).
    """
    if upright:
        points = points @ points.new_tensor(UPRIGHT)
    rotation = camera_rotation(elev, azim).to(points)  # (V, 3, 3) or (B, V, 3, 3)
    seen = points.unsqueeze(1) @ rotation
    forward = points.new_tensor([0.0, 0.0, 1.0])
    if dist is None:
        return seen + forward
    dist = dist.to(points)[..., None, None]
    return seen / dist + dist * forward


@torch.no_grad()
def rasterize(seen: Tensor, image_size: int, radius: float = RADIUS) -> Raster:
    """Splats (R, N, 3) of `view_points` into R pictures of `image_size` pixels a side.

    A point hits a pixel whose centre lies strictly within `radius`; of several the smallest depth wins, of equal ones
    the lower index. Points behind the camera or not finite hit nothing. Column 0 is at x = +1, row 0 at y = +1.
    The same on every device and with any number of threads.
    """
    if seen.ndim != 3 or seen.shape[-1] != 3:
        raise ValueError(f"rasterize takes (R, N, 3), not {tuple(seen.shape)}")
    rasters = _in_parts(seen, lambda part: _rasterize(part, image_size, radius))
    return Raster(*(torch.cat(field) for field in zip(*rasters, strict=True)))


def _in_parts(seen: Tensor, work: Callable[[Tensor], T]) -> list[T]:
    """`work` on parts of the maps (R, N, 3), small enough for a core's cache, or for bounded memory on a GPU."""
    on_cpu = seen.device.type == "cpu"
    parts = seen.float().split(max(1, (_CPU_POINTS if on_cpu else _GPU_POINTS) // max(1, seen.shape[1])))
    threads = min(torch.get_num_threads(), len(parts)) if on_cpu else 1
    if threads == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:  # torch's own threads do not help with tensors as small as a part's
        return list(pool.map(work, parts))


@torch.no_grad()  # of each thread by itself
def _rasterize(seen: Tensor, size: int, radius: float) -> Raster:
    nearest = _nearest(seen, size, radius)
    index = torch.where(nearest == _NOTHING, -1, nearest & 0xFFFFFFFF).int()
    return Raster(index, _depth(nearest))


def _depth(nearest: Tensor) -> Tensor:
    depth = (nearest >> 32).int().view(torch.float32)
    return torch.where(nearest == _NOTHING, -1.0, depth)


def _nearest(seen: Tensor, size: int, radius: float) -> Tensor:
    """(R, N, 3) to (R, S, S) int64: bits of the depth, then the point's index; `_NOTHING` where there is none."""
    rows, count, _ = seen.shape
    x, y, z = seen.unbind(-1)
    visible = (z >= 0) & torch.isfinite(seen).all(-1)
    # What cannot be seen goes far outside the picture, with a depth that is a number.
    x, y, z = torch.where(visible, x, 9.0).clamp(-9, 9), torch.where(visible, y, 9.0).clamp(-9, 9), z.clamp(min=0)
    z = torch.where(visible, z, 0.0)

    # One integer orders by depth, then by index: the bits of a non-negative float grow with its value.
    key = z.contiguous().view(torch.int32).long() << 32 | torch.arange(count, device=seen.device)
    columns, rows_hit = _window(x, size, radius), _window(y, size, radius)
    # One cell more than the picture has: what misses goes there.
    nearest = torch.full((rows, size * size + 1), _NOTHING, dtype=torch.int64, device=seen.device)
    for line, dy2 in rows_hit:
        for column, dx2 in columns:
            pixel = torch.where(dx2 + dy2 < radius * radius, line * size + column, size * size)
            nearest.scatter_reduce_(1, pixel, key, "amin")
    return nearest[:, :-1].view(rows, size, size)


def _window(at: Tensor, size: int, radius: float) -> list[tuple[Tensor, Tensor]]:
    """Pixels along one axis that a disc centred at `at` (R, N) can reach, and their squared distances from it."""
    nearest = ((1 - at) * (size / 2) - 0.5).round().long()
    reach = int(radius * size / 2 + 0.5)
    window = []
    for step in range(-reach, reach + 1):
        cell = nearest + step
        squared = (at - (1 - (2 * cell + 1).float() / size)).square()
        window.append((cell, torch.where((cell >= 0) & (cell < size), squared, torch.inf)))
    return window


def normalize_depth(depth: Tensor) -> Tensor:
    """Depths (..., S, S), negative where empty, to grey values in [0, 1]: near is dark, empty is white.

    Per map, with M the largest depth and m the smallest *where empty pixels count as 1*: (z - m) / M * 200 / 255.
    Dividing by M and not by the range, and the 1, are the official renderer's; the weights know them. A depth of
    exactly 0 counts as empty, as there.
    """
    hit = depth > 0
    largest = depth.amax(dim=(-2, -1), keepdim=True)
    smallest = torch.where(hit, depth, 1.0).amin(dim=(-2, -1), keepdim=True)
    grey = (depth - smallest) / torch.where(largest > 0, largest, 1.0) * BRIGHTEST
    return torch.where(hit, grey, 1.0)


def clip_images(grey: Tensor) -> Tensor:
    """Grey maps (..., S, S) to what CLIP's image tower takes: (..., 3, S, S), normalised with its mean and std."""
    mean, std = (grey.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (grey.unsqueeze(-3) - mean) / std


class DepthRenderer(nn.Module):
    """Point clouds (B, N, 3) to depth maps (B, V, S, S) with values in [0, 1].

    ```python
    render = DepthRenderer(views=6)
    maps = render(points)  # (B, 6, 224, 224)
    images = clip_images(maps)  # (B, 6, 3, 224, 224), for CLIP
    maps = render(points, elev=torch.tensor([30.0]), azim=torch.tensor([45.0]))  # any view
    ```

    Args:
        views: 10 (pre-training, few-shot), 6 (zero-shot), or a `ViewSet` of your own.
        image_size: side of the maps in pixels.
        radius: of a point's disc, in units of half the picture.
        upright: the clouds are z-up (ModelNet) and are turned to y-up first.
        differentiable: let gradients flow from grey values to the points through their depths (not through which
            point a pixel shows, which has no gradient).
    """

    elev: Tensor
    azim: Tensor

    def __init__(
        self,
        views: int | ViewSet = 10,
        image_size: int = 224,
        radius: float = RADIUS,
        upright: bool = False,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(views, ViewSet):
            if views not in VIEWS:
                raise ZooError(f"There are view sets of {' and '.join(map(str, VIEWS))} views, not of {views}.")
            views = VIEWS[views]
        if image_size < 1 or radius <= 0:
            raise ZooError(f"A renderer needs a picture and discs of some size, not {image_size} and {radius}.")
        elev, azim = views.tensors()
        self.register_buffer("elev", elev, persistent=False)
        self.register_buffer("azim", azim, persistent=False)
        self.image_size, self.radius = image_size, radius
        self.upright, self.differentiable = upright, differentiable

    @property
    def num_views(self) -> int:
        return len(self.elev)

    def forward(
        self, points: Tensor, elev: Tensor | None = None, azim: Tensor | None = None, dist: Tensor | None = None
    ) -> Tensor:
        """(B, N, 3) in the unit sphere to (B, V, S, S). Other views than the module's: see `view_points`."""
        if points.ndim != 3 or points.shape[-1] != 3 or not points.shape[1]:
            raise ZooError(f"The renderer takes clouds (B, N, 3) of at least one point, not {tuple(points.shape)}.")
        if (elev is None) != (azim is None):
            raise ZooError("Give both elev and azim, or neither.")
        if elev is None or azim is None:
            elev, azim = self.elev, self.azim
        # float32 also under autocast: half precision would move points by pixels.
        exact = torch.autocast(points.device.type, enabled=False)
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()), exact:
            seen = view_points(points.float(), elev, azim, dist, self.upright)
            if not self.differentiable:
                return torch.cat(_in_parts(seen.flatten(0, 1), self._grey)).unflatten(0, seen.shape[:2])
            index = rasterize(seen.flatten(0, 1), self.image_size, self.radius).index.long()
            z = seen[..., 2].flatten(0, 1).gather(1, index.flatten(1).clamp(min=0)).view_as(index)
            return normalize_depth(torch.where(index >= 0, z, -1.0)).unflatten(0, seen.shape[:2])

    @torch.no_grad()
    def _grey(self, seen: Tensor) -> Tensor:
        return normalize_depth(_depth(_nearest(seen, self.image_size, self.radius)))
