"""From a distribution over goals to six end points: those that minimise the expected distance to the nearest of them.

The released code climbs that hill with random steps, 8 restarts of 0.1 s a scene. The objective is a weighted k-median,
so here it is solved as one: farthest-first starts, then Lloyd's assignment and Weiszfeld's update, all scenes and
starts at once. Deterministic.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_PROBABILITY = 0.001  # goals below are dropped, as in the released code


def expected_distance(points: Tensor, goals: Tensor, probability: Tensor) -> Tensor:
    """(...,) expected minFDE of end points (..., K, 2) when the goal is drawn from goals (..., G, 2)."""
    return (torch.cdist(points, goals).amin(-2) * probability).sum(-1)


def spread(goals: Tensor, probability: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Each goal stands for its 1 m cell: `cells` x `cells` points in it share its probability. (B, G * cells^2, 2)."""
    offset = (torch.arange(cells, device=goals.device, dtype=goals.dtype) + 0.5) / cells - 0.5
    grid = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), dim=-1).reshape(-1, 2)
    points = (goals.unsqueeze(2) + grid).flatten(1, 2)
    return points, (probability / cells**2).repeat_interleave(cells**2, dim=1)


@torch.no_grad()
def select_end_points(
    goals: Tensor, log_probability: Tensor, modes: int = 6, iterations: int = 20, cells: int = 2
) -> tuple[Tensor, Tensor]:
    """End points (B, K, 2), and the probability (B, K) of the goals nearest to each, which sums to 1.

    Ordered as the released code orders them: first the one that would be best alone.

    Args:
        goals: (B, G, 2). log_probability: (B, G), -inf for padding.
    """
    probability = log_probability.float().exp()
    likely = probability >= LEAST_PROBABILITY
    likely |= ~likely.any(1, keepdim=True)
    count = int(likely.sum(1).max())
    order = probability.masked_fill(~likely, 0).topk(count, dim=1)
    goals = goals.float().gather(1, order.indices.unsqueeze(-1).expand(-1, -1, 2))
    weight = order.values / order.values.sum(1, keepdim=True)
    goals = torch.where((weight > 0).unsqueeze(-1), goals, goals[:, :1])
    points, mass = spread(goals, weight, cells)
    best = torch.full((len(goals),), torch.inf, device=goals.device)
    chosen = goals.new_zeros(len(goals), modes, 2)
    for power in (0.5, 1.0, 2.0):  # how much distance counts against probability in the farthest-first start
        found = _lloyd(_start(goals, weight, modes, power), points, mass, iterations)
        value = expected_distance(found, points, mass)
        better = value < best
        best = torch.where(better, value, best)
        chosen = torch.where(better[:, None, None], found, chosen)
    alone = (torch.cdist(chosen, points) * mass.unsqueeze(1)).sum(-1)
    chosen = chosen.gather(1, alone.argsort(dim=1, stable=True).unsqueeze(-1).expand(-1, -1, 2))
    nearest = torch.cdist(chosen, goals).argmin(1)
    share = torch.zeros_like(chosen[..., 0]).scatter_add(1, nearest, weight)
    return chosen, share


def _start(goals: Tensor, weight: Tensor, modes: int, power: float) -> Tensor:
    """Farthest-first: the likeliest goal, then again and again the one with most probability x distance^power."""
    picked = [goals.gather(1, weight.argmax(1)[:, None, None].expand(-1, 1, 2))]
    for _ in range(modes - 1):
        gap = torch.cdist(torch.cat(picked, dim=1), goals).amin(1)
        index = (weight * gap**power).argmax(1)
        picked.append(goals.gather(1, index[:, None, None].expand(-1, 1, 2)))
    return torch.cat(picked, dim=1)


def _lloyd(centres: Tensor, points: Tensor, mass: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        gap, owner = torch.cdist(centres, points).min(1)
        pull = mass / gap.clamp(min=0.05)  # Weiszfeld's weights; a point in the centre's cell does not hold it for ever
        shape = centres.shape[:2]
        total = pull.new_zeros(shape).scatter_add(1, owner, pull)
        moved = torch.stack(
            [pull.new_zeros(shape).scatter_add(1, owner, pull * points[..., axis]) for axis in (0, 1)], dim=-1
        )
        centres = torch.where((total > 0).unsqueeze(-1), moved / total.clamp(min=1e-12).unsqueeze(-1), centres)
    return centres
