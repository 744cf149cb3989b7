"""Viewpoints around an object at the origin: the two view sets of CLIP2Point and the camera frames behind them.

Conventions are PyTorch3D's, which the published weights were trained with: row vectors, `X @ R + T`; the camera looks
along +z of its frame, +x points to the left of the picture and +y up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ViewSet:
    """Camera directions in degrees, all at distance 1: `elev` above the horizon, `azim` about the vertical axis y."""

    elev: tuple[float, ...]
    azim: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.elev)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """(V,) elevations and azimuths, float32."""
        return torch.tensor(self.elev, dtype=torch.float32), torch.tensor(self.azim, dtype=torch.float32)


VIEWS = {
    10: ViewSet((0, 90, 180, 270, 225, 225, 315, 315, 0, 0), (0, 0, 0, 0, -45, 45, -45, 45, -90, 90)),
    6: ViewSet((0, 0, 0, 0, 90, -90), (0, 90, 180, 270, 0, 180)),
}
"""Pre-training and few-shot use 10 views, zero-shot classification 6 (official `render/selector.py`)."""

UPRIGHT = ((0.0, 0.0, -1.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
"""`X @ UPRIGHT` turns aligned ModelNet shapes (z up) into ShapeNet's frame (y up): +90 degrees about x, -90 about y."""


def camera_direction(elev: Tensor, azim: Tensor) -> Tensor:
    """Unit vectors (..., 3) from the origin to cameras at `elev` and `azim` degrees (any equal shapes), float64."""
    e, a = torch.deg2rad(elev.double()), torch.deg2rad(azim.double())
    return torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], dim=-1)


def camera_rotation(elev: Tensor, azim: Tensor) -> Tensor:
    """World-to-camera rotations R (..., 3, 3) of cameras that look at the origin, y up; use as `X @ R`. float32.

    Straight above and below, "up" says nothing about the roll. There the official renderer follows the sign that
    float32 gives to cos(90 degrees): negative at +-90, positive at +-270. Both signs are written down here, so that the
    result depends on no rounding.
    """
    e, a = elev.double(), azim.double()
    pole = (e.abs() % 180 - 90).abs() < 1e-4
    beyond = (e.abs() % 360) > 180
    cosine = torch.deg2rad(e).cos()
    # up x forward, normalised by hand: only the sign of cos(elevation) is left of its length.
    sign = torch.where(pole, torch.where(beyond, 1.0, -1.0), torch.where(cosine < 0, -1.0, 1.0))
    radians = torch.deg2rad(a)
    left = torch.stack([-radians.cos(), torch.zeros_like(a), radians.sin()], dim=-1) * sign.unsqueeze(-1)
    forward = -camera_direction(e, a)
    up = torch.linalg.cross(forward, left, dim=-1)
    return torch.stack([left, up, forward], dim=-1).float()


def perspective_scale(fov_degrees: float) -> float:
    """Factor from x / z to normalised picture coordinates in [-1, 1] for a vertical field of view."""
    return 1.0 / math.tan(math.radians(fov_degrees) / 2)
