"""DenseTNT's goal decoder: score lanes, then sparse goals, then a dense grid around the best; complete trajectories.

Shape letters: B scenes, L lanes, P polylines, G goals, K modes, T future steps, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.papers.trajectory_mae.masking import gather_first
from zoo.papers.trajectory_mae.network import MLP, Attention, ConcatHead

TOP_GOALS = 150  # sparse goals around which the dense grid is laid
LANE_MASS = 0.95  # probability that the lanes kept for goal scoring add up to
_REACH, _OFFSET, _SIDE = 2, 512, 1024  # metres of grid around a goal; cells are numbered from -512 to 511


class PointSubGraph(nn.Module):
    """Encodes goals (B, G, 2) with half of the agent's state mixed into each layer but the first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([MLP(2, width // 2), MLP(width, width // 2), MLP(width, width)])

    def forward(self, points: Tensor, agent: Tensor) -> Tensor:
        half = agent[:, : agent.shape[1] // 2].unsqueeze(1).expand(-1, points.shape[1], -1)
        x = self.layers[0](points)
        for layer in self.layers[1:]:
            x = layer(torch.cat([x, half], dim=-1))
        return x


def masked_log_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """(B, N) scores to log-probabilities in float32 over the valid ones; -inf elsewhere."""
    return scores.float().masked_fill(~valid, -torch.inf).log_softmax(dim=-1)


class GoalDecoder(nn.Module):
    """Scores and trajectories from encoded scenes; parameters under the official names.

    Args:
        scale: metres that its networks count as 1; 1 as released.
    """

    def __init__(self, width: int, future: int, scale: float = 1.0) -> None:
        super().__init__()
        self.future, self.scale = future, scale
        self.goals_2D_mlps = nn.Sequential(MLP(2, width), MLP(width, width), MLP(width, width))
        # Only the completion reads these features, and cuts their gradient: they stay as they were drawn.
        self.goals_2D_mlps.requires_grad_(False)
        self.goals_2D_cross_attention = Attention(width)
        self.goals_2D_point_sub_graph = PointSubGraph(width)
        self.stage_one_cross_attention = Attention(width)
        self.stage_one_decoder = ConcatHead(width, 3 * width, 1)
        self.stage_one_goals_2D_decoder = ConcatHead(width, 4 * width, 1)
        self.complete_traj_cross_attention = Attention(width)
        self.complete_traj_decoder = ConcatHead(width, 3 * width, 2 * future)

    def score_lanes(self, agent: Tensor, lanes: Tensor, has_lane: Tensor, states: Tensor, visible: Tensor) -> Tensor:
        """(B, L) log-probabilities of where the agent will end; `lanes` (B, L, D) encoded without the agents."""
        near = self.stage_one_cross_attention(lanes, states, visible.unsqueeze(1))
        scores = self.stage_one_decoder(torch.cat([agent.unsqueeze(1).expand_as(lanes), lanes, near], dim=-1))
        return masked_log_softmax(scores.squeeze(-1), has_lane)

    def score_goals(
        self, goals: Tensor, valid: Tensor, agent: Tensor, states: Tensor, visible: Tensor, lanes: Tensor, kept: Tensor
    ) -> Tensor:
        """(B, G) log-probabilities of goals (B, G, 2); `lanes` (B, L', D) and `kept` (B, L'): the likely lanes."""
        hidden = self.goals_2D_point_sub_graph(goals / self.scale, agent)
        scene = self.goals_2D_cross_attention(hidden, states, visible.unsqueeze(1))
        on_lanes = self.goals_2D_cross_attention(hidden, lanes, kept.unsqueeze(1))
        features = torch.cat([agent.unsqueeze(1).expand_as(hidden), hidden, scene, on_lanes], dim=-1)
        return masked_log_softmax(self.stage_one_goals_2D_decoder(features).squeeze(-1), valid)

    def complete(self, goals: Tensor, agent: Tensor, states: Tensor, visible: Tensor) -> Tensor:
        """(B, K, T, 2) trajectories to goals (B, K, 2). Gradients end in the completion's own layers."""
        feature = self.goals_2D_mlps(goals / self.scale).detach()
        context = self.complete_traj_cross_attention(feature, states.detach(), visible.unsqueeze(1))
        agent = agent.detach().unsqueeze(1).expand_as(feature)
        steps = self.complete_traj_decoder(torch.cat([agent, feature, context], dim=-1)) * self.scale
        return steps.unflatten(-1, (self.future, 2))


def likely_lanes(log_probability: Tensor, mass: float = LANE_MASS) -> Tensor:
    """(B, L) which lanes are kept: the most likely ones, up to and with the one that passes `mass`."""
    probability, order = log_probability.exp().sort(dim=1, descending=True, stable=True)
    before = probability.cumsum(1) - probability
    return torch.zeros_like(before, dtype=torch.bool).scatter(1, order, (before <= mass) & (probability > 0))


def dense_goals(goals: Tensor, valid: Tensor, scores: Tensor, top: int = TOP_GOALS) -> tuple[Tensor, Tensor]:
    """The integer grid within 2 m of the best sparse goals (each cell once), followed by all sparse goals.

    Args:
        goals: (B, G, 2) metres, agent frame. valid: (B, G). scores: (B, G).

    Returns goals (B, G', 2) and which of them are real (B, G').
    """
    count = min(top, goals.shape[1])
    best = scores.masked_fill(~valid, -torch.inf).topk(count, dim=1).indices
    picked = valid.gather(1, best)
    cells = goals.gather(1, best.unsqueeze(-1).expand(-1, -1, 2)).round().long()
    reach = torch.arange(-_REACH, _REACH + 1, device=goals.device)
    around = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), dim=-1).reshape(-1, 2)
    cells = (cells.unsqueeze(2) + around + _OFFSET).clamp(0, _SIDE - 1)
    scene = torch.arange(len(goals), device=goals.device)[:, None, None]
    keys = (scene * _SIDE + cells[..., 0]) * _SIDE + cells[..., 1]
    keys = keys[picked].flatten().unique()  # sorted, so scene by scene
    owner = keys // _SIDE**2
    points = torch.stack([keys // _SIDE % _SIDE, keys % _SIDE], dim=-1).to(goals.dtype) - _OFFSET
    counts = torch.bincount(owner, minlength=len(goals))
    place = torch.arange(len(keys), device=goals.device) - (counts.cumsum(0) - counts)[owner]
    width = max(int(counts.max()), 1)
    grid = goals.new_zeros(len(goals), width, 2)
    grid[owner, place] = points
    real = torch.arange(width, device=goals.device) < counts.unsqueeze(1)
    return torch.cat([grid, goals], dim=1), torch.cat([real, valid], dim=1)


def keep_lanes(lanes: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The kept lanes moved to the front: states (B, L', D) and which of them are real (B, L')."""
    return gather_first(lanes, kept), gather_first(kept, kept)


def nearest_goal(goals: Tensor, valid: Tensor, point: Tensor) -> Tensor:
    """(B,) index of the real goal closest to `point` (B, 2)."""
    return (goals - point.unsqueeze(1)).norm(dim=-1).masked_fill(~valid, torch.inf).argmin(1)


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) Huber loss of trajectories (B, T, 2), mean over steps and coordinates."""
    return F.smooth_l1_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2))
