"""What is hidden in pre-training: the agent's trajectory or half of the lanes; the queries that stand in for it.

Shape letters: B scenes, A road users, L lanes, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.driving.features import AGENT_VALUES, LANE_VALUES
from zoo.papers.trajectory_mae.network import widen_agents, widen_lanes


@dataclass(frozen=True)
class Masks:
    """The draws of one step.

    Attributes:
        theta: (B,) rotation in radians. map_masked: (B,) True: lanes are masked, False: the trajectory is.
        lanes: (B, L) masked lanes; empty rows where the trajectory is masked.
    """

    theta: Tensor
    map_masked: Tensor
    lanes: Tensor


def draw_masks(
    lane_length: Tensor,
    map_probability: float,
    mask_ratio: float,
    *,
    theta_draw: Tensor | None = None,
    option_draw: Tensor | None = None,
    lane_noise: Tensor | None = None,
    rotate: bool = True,
) -> Masks:
    """Rotation, what is masked, and which lanes.

    Of n lanes the int(n * (1 - mask_ratio)) with the smallest noise stay. The agents are never among them, however many
    there are (the released code counts every polyline but the first as a lane).

    Args:
        lane_length: (B, L), 0 for padding. theta_draw, option_draw: (B,) uniform; lane_noise: (B, L) uniform.
    """
    size, device = lane_length.shape, lane_length.device
    theta_draw = torch.rand(size[0], device=device) if theta_draw is None else theta_draw
    option_draw = torch.rand(size[0], device=device) if option_draw is None else option_draw
    lane_noise = torch.rand(size, device=device) if lane_noise is None else lane_noise
    there = lane_length > 0
    # Without two lanes there is nothing to keep or nothing to hide: such a scene has its trajectory masked.
    map_masked = (option_draw < map_probability) & (there.sum(1) > 1)
    rank = lane_noise.masked_fill(~there, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
    keep = (there.sum(1) * (1 - mask_ratio)).long()
    lanes = (rank >= keep.unsqueeze(1)) & there & map_masked.unsqueeze(1)
    return Masks(theta_draw * (2 * math.pi if rotate else 0.0), map_masked, lanes)


def turn_agents(agents: Tensor, theta: Tensor) -> Tensor:
    """(B, A, V, 10) turned around the origin by theta (B,)."""
    turned = torch.stack([*_turn(agents[..., 0], agents[..., 1], theta), *_turn(agents[..., 2], agents[..., 3], theta)])
    return torch.cat([turned.movedim(0, -1), agents[..., 4:]], dim=-1)


def turn_lanes(lanes: Tensor, theta: Tensor) -> Tensor:
    """(B, L, V, 12) turned around the origin by theta (B,)."""
    x0, y0 = _turn(lanes[..., 1], lanes[..., 0], theta)
    x1, y1 = _turn(lanes[..., 9], lanes[..., 8], theta)
    x2, y2 = _turn(lanes[..., 11], lanes[..., 10], theta)
    return torch.cat([torch.stack([y0, x0], -1), lanes[..., 2:8], torch.stack([y1, x1, y2, x2], -1)], dim=-1)


def _turn(x: Tensor, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = theta.cos()[:, None, None], theta.sin()[:, None, None]
    return x * cos - y * sin, x * sin + y * cos


def gather_first(values: Tensor, chosen: Tensor) -> Tensor:
    """Moves the chosen rows (B, N) of (B, N, ...) to the front, in their order, and drops what no scene needs."""
    count = max(int(chosen.sum(1).max()), 1)
    order = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    index = order.reshape(*order.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


# ---------------------------------------------------------------------- queries


def sincos(positions: Tensor, width: int) -> Tensor:
    """(...,) numbers to (..., width): sines, then cosines, at frequencies 10000^(-j / (width / 2))."""
    omega = 10000.0 ** (-torch.arange(width // 2, device=positions.device, dtype=torch.float64) / (width // 2))
    angles = positions.double().unsqueeze(-1) * omega
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def trajectory_queries(trajectory: Tensor, length: Tensor, token: Tensor, width: int) -> Tensor:
    """(B, 49, 10) to queries (B, 49, D): the first vector as it is, the token for the others, plus their positions."""
    steps = trajectory.shape[1]
    hidden = torch.cat([trajectory[:, :1], token.expand(len(trajectory), steps - 1, AGENT_VALUES)], dim=1)
    return widen_agents(hidden, width) + sincos(torch.arange(steps, device=trajectory.device), width)


def lane_queries(lanes: Tensor, polyline: Tensor, token: Tensor, width: int) -> Tensor:
    """(B, M, 9, 12) masked lanes, `polyline` (B, M) their indices in the scene, to queries (B, M * 9, D)."""
    steps = lanes.shape[2]
    hidden = torch.cat([lanes[:, :, :1], token.expand(*lanes.shape[:2], steps - 1, LANE_VALUES)], dim=2)
    place = sincos(polyline, width // 2).unsqueeze(2).expand(-1, -1, steps, -1)
    order = sincos(torch.arange(steps, device=lanes.device), width // 2).expand(*lanes.shape[:2], -1, -1)
    return (widen_lanes(hidden, width) + torch.cat([place, order], dim=-1)).flatten(1, 2)
