"""VectorNet's encoder as this paper uses it, and its masked decoder.

Parameter names below the encoder are the official ones. Shape letters: B scenes, A road users, L lanes, P polylines
(A + L), V vectors of a polyline, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.driving.features import AGENT_SCALE, AGENT_VALUES, LANE_COLUMNS, LANE_SCALE, LANE_VALUES


def widen_agents(vectors: Tensor, width: int) -> Tensor:
    """(..., 10) into the first columns of (..., width), the released layout."""
    return F.pad(vectors, (0, width - vectors.shape[-1]))


def widen_lanes(vectors: Tensor, width: int) -> Tensor:
    """(..., 12) into the columns `LANE_COLUMNS` of (..., width), the released layout."""
    wide = vectors.new_zeros(*vectors.shape[:-1], width)
    wide[..., list(LANE_COLUMNS)] = vectors
    return wide


class MLP(nn.Module):
    """Linear, LayerNorm, ReLU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.layer_norm = nn.LayerNorm(out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer_norm(self.linear(x)))


class ResidualHead(nn.Module):
    """x + MLP(x), then a linear layer."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.mlp = MLP(width, width)
        self.fc = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + self.mlp(x))


class ConcatHead(nn.Module):
    """[x, MLP(x)], then a linear layer."""

    def __init__(self, width: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.mlp = MLP(in_features, width)
        self.fc = nn.Linear(width + in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([x, self.mlp(x)], dim=-1))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention; (B, Q, D), (B, K, D), mask (B, Q or 1, K) of bools, True where it may look."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    out = F.scaled_dot_product_attention(
        split(query), split(key), split(value), attn_mask=None if mask is None else mask.unsqueeze(1)
    )
    return out.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Attention of `x` to `context` (to itself if None), without any bias or output projection."""

    def __init__(self, width: int, head_width: int | None = None, heads: int = 1) -> None:
        super().__init__()
        inner = heads * (head_width or width // heads)
        self.heads = heads
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        return attend(self.query(x), self.key(context), self.value(context), self.heads, mask)


class GlobalGraph(nn.Module):
    """Two attentions of half the width side by side; computed as the two heads of one."""

    weights_read_directly = tuple(
        f"{part}.{name}" for part in ("global_graph", "global_graph2") for name in ("query", "key", "value")
    )

    def __init__(self, width: int) -> None:
        super().__init__()
        self.global_graph = Attention(width, width // 2)
        self.global_graph2 = Attention(width, width // 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        one, two = self.global_graph, self.global_graph2
        weights = [torch.cat([getattr(part, name).weight for part in (one, two)]) for name in ("query", "key", "value")]
        return attend(*(F.linear(x, weight) for weight in weights), heads=2, mask=mask)


class SubGraph(nn.Module):
    """Polylines (N, V, D) to one vector each (N, D): attention among a polyline's vectors, then the maximum."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layer_0 = MLP(width, width)
        self.layer_0_again = MLP(width, width)
        self.layers = nn.ModuleList(Attention(width, heads=2) for _ in range(depth))
        self.layers_2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def forward(self, x: Tensor, valid: Tensor, present: Tensor | None = None) -> Tensor:
        """`valid` (N, V): which vectors are real. `present`: these and the padding that the released code lets into the
        attention of other padding and into the maximum; by default there is none."""
        x = self.layer_0_again(self.layer_0(x))
        present = valid if present is None else present
        # A padded polyline attends to all its padding, so that no softmax is empty; it is zeroed below.
        row = torch.where(present.any(1, keepdim=True), present, torch.ones_like(present))
        mask = torch.where(valid.unsqueeze(2), valid.unsqueeze(1), row.unsqueeze(1))
        for layer, norm in zip(self.layers, self.layers_2, strict=True):
            x = norm(F.relu(layer(x, mask=mask)) + x)
        pooled = x.masked_fill(~row.unsqueeze(-1), -torch.inf).amax(dim=1)
        return pooled * present.any(1, keepdim=True)


class VectorNetEncoder(nn.Module):
    """Sub-graph, fusion of agent and lanes, global graph.

    Args:
        width: D; depth: attention layers of the sub-graph.
        official_padding: let padding in where the released code does: padded vectors join the sub-graph's maximum, and
            padded polylines (whose keys are zero) take a share of the global attention. Outputs then depend on what
            else is in the batch.
        normalise: divide each column of the vectors by the size it reaches (`AGENT_SCALE`, `LANE_SCALE`); the scales
            then stand in the state dict, so that weights of the other kind are refused. False, as released: raw metres
            and indices.
    """

    agent_scale: Tensor
    lane_scale: Tensor

    def __init__(
        self, width: int = 128, depth: int = 3, official_padding: bool = False, normalise: bool = False
    ) -> None:
        super().__init__()
        for name, scale, count in (("agent", AGENT_SCALE, AGENT_VALUES), ("lane", LANE_SCALE, LANE_VALUES)):
            values = torch.tensor(scale) if normalise else torch.ones(count)
            self.register_buffer(f"{name}_scale", values, persistent=normalise)
        self.width, self.official_padding = width, official_padding
        self.point_level_sub_graph = SubGraph(width, depth)
        self.global_graph = GlobalGraph(width)
        self.laneGCN_A2L = Attention(width)

    def encode_polylines(
        self, agents: Tensor, agent_length: Tensor, lanes: Tensor, lane_length: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each polyline on its own.

        Args:
            agents: (B, A, Va, 10), lanes: (B, L, Vl, 12); lengths (B, A) and (B, L): vectors of each, 0 for padding.

        Returns agent states (B, A, D), lane states (B, L, D), and lane states as encoded without the agents (the same
        but for `official_padding`).
        """
        agents = widen_agents(agents / self.agent_scale, self.width)
        lanes = widen_lanes(lanes / self.lane_scale, self.width)
        if not self.official_padding:
            return self._pool(agents, agent_length), (states := self._pool(lanes, lane_length)), states
        lane_only = self._pool(lanes, lane_length, lane_length.amax(1))
        steps = max(agents.shape[2], lanes.shape[2])
        together = torch.cat([F.pad(x, (0, 0, 0, steps - x.shape[2])) for x in (agents, lanes)], dim=1)
        lengths = torch.cat([agent_length, lane_length], dim=1)
        states = self._pool(together, lengths, lengths.amax(1))
        return *states.split([agents.shape[1], lanes.shape[1]], dim=1), lane_only

    def _pool(self, x: Tensor, lengths: Tensor, longest: Tensor | None = None) -> Tensor:
        steps = torch.arange(x.shape[2], device=x.device)
        valid = steps < lengths.unsqueeze(-1)
        present = None
        if longest is not None:
            present = ((steps < longest[:, None, None]) & (lengths > 0).unsqueeze(-1)).flatten(0, 1)
        return self.point_level_sub_graph(x.flatten(0, 1), valid.flatten(0, 1), present).unflatten(0, x.shape[:2])

    def fuse(self, agents: Tensor, has_agent: Tensor, lanes: Tensor, has_lane: Tensor) -> Tensor:
        """Lanes (B, L, D) plus their attention to all lanes and to the agent to forecast, where it is visible."""
        context = torch.cat([lanes, agents[:, :1]], dim=1)
        mask = torch.cat([has_lane, has_agent[:, :1]], dim=1)
        mask = mask | ~mask.any(1, keepdim=True)
        return (lanes + self.laneGCN_A2L(lanes, context, mask.unsqueeze(1))) * has_lane.unsqueeze(-1)

    def relate(self, states: Tensor, visible: Tensor) -> Tensor:
        """Global graph over (B, P, D) of which `visible` (B, P) are there."""
        mask = visible
        if self.official_padding:
            wanted = visible.sum(1).max() - visible.sum(1, keepdim=True)
            mask = visible | (~visible & ((~visible).cumsum(1) <= wanted))
        mask = mask | ~mask.any(1, keepdim=True)
        return self.global_graph(states * visible.unsqueeze(-1), mask.unsqueeze(1))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything visible, as for forecasting.

        Returns states before the global graph (B, P, D), after it, `visible` (B, P), and lane-only states (B, L, D).
        """
        has_agent, has_lane = batch["agent_length"] > 0, batch["lane_length"] > 0
        agents, lanes, lane_only = self.encode_polylines(
            batch["agents"], batch["agent_length"], batch["lanes"], batch["lane_length"]
        )
        lanes = self.fuse(agents, has_agent, lanes, has_lane)
        states, visible = torch.cat([agents, lanes], dim=1), torch.cat([has_agent, has_lane], dim=1)
        return states, self.relate(states, visible), visible, lane_only


class MaskedDecoder(nn.Module):
    """One layer over [masked vectors as queries, encoded visible polylines]; gives the queries' part, (B, Q, D).

    Holds its layers under the official names, each prefixed (`map_` or `traj_`) by `weights.py`.
    """

    def __init__(self, width: int, official_mask: bool) -> None:
        super().__init__()
        self.official_mask = official_mask
        self.emb = nn.Linear(width, width)
        self.self_att = GlobalGraph(width)
        self.self_att_ln = nn.LayerNorm(width)
        self.self_ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.self_ff_ln = nn.LayerNorm(width)
        self.ln = nn.LayerNorm(width)

    def forward(self, queries: Tensor, query_valid: Tensor, context: Tensor, context_valid: Tensor) -> Tensor:
        """Queries (B, Q, D) look at each other and at the context (B, P, D). With `official_mask` only at each other:
        the released mask, which leaves the encoder without a gradient."""
        count = queries.shape[1]
        x = self.emb(torch.cat([queries, context], dim=1))
        seen = torch.zeros_like(context_valid) if self.official_mask else context_valid
        mask = torch.cat([query_valid, seen], dim=1)
        mask = mask | ~mask.any(1, keepdim=True)  # a scene with nothing masked still needs a softmax
        x = x + self.self_att(self.self_att_ln(x), mask.unsqueeze(1))
        x = x[:, :count]
        x = x + self.self_ff(self.self_ff_ln(x))
        return self.ln(x)
