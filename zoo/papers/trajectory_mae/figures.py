"""The pictures of this room: reconstructions of what was masked, and forecasts over the map."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from zoo.driving.plot import BOX, draw_agent, draw_lanes, draw_modes, tidy

Batch = dict[str, Tensor]


def draw_reconstructions(out: Any, batch: Batch, count: int = 6) -> Any:
    """Scenes with what was masked (green) and what the model makes of it (orange); an `MAEOutput` and its batch."""
    from matplotlib import pyplot as plt

    from zoo.papers.trajectory_mae.masking import turn_agents, turn_lanes

    lanes = turn_lanes(batch["lanes"], out.masks.theta).float().cpu().numpy()
    agents = turn_agents(batch["agents"], out.masks.theta).float().cpu().numpy()
    lengths, masked = batch["lane_length"].cpu().numpy(), out.masks.lanes.cpu().numpy()
    count = min(count, len(lanes))
    columns = min(3, count)
    figure, axes = plt.subplots(-(-count // columns), columns, figsize=(3.6 * columns, 4.1 * -(-count // columns)))
    for scene, axis in zip(range(count), np.ravel(axes), strict=False):
        draw_lanes(axis, [_line(v, n) for v, n, m in zip(lanes[scene], lengths[scene], masked[scene], strict=True)
                          if n and not m])  # fmt: skip
        if bool(out.masks.map_masked[scene]):
            for k in np.flatnonzero(out.lane_masked[scene].cpu().numpy()):
                n = int(out.lane_length[scene, k])
                true, made = (x[scene, k, :n].float().cpu().numpy() for x in (out.lane_target, out.lanes))
                axis.plot(*_line(true, n).T, color="tab:green", linewidth=1.6, zorder=3)
                axis.plot(made[:, 9], made[:, 8], color="tab:orange", linewidth=1.3, zorder=4)
            steps = agents[scene, 0]
            axis.plot(steps[:, 2], steps[:, 3], color="tab:blue", linewidth=1.8, zorder=5)
            title = "half of the lanes masked"
        else:
            steps = agents[scene, 0]
            axis.plot(steps[:, 2], steps[:, 3], color="tab:green", linewidth=2.2, zorder=3)
            for path in out.trajectory[scene].float().cpu().numpy():
                axis.plot(path[:, 2], path[:, 3], color="tab:orange", linewidth=1.0, zorder=4)
            title = "trajectory masked, six hypotheses"
        tidy(axis, title)
        axis.set(xlim=(-1.4 * BOX, 1.4 * BOX), ylim=(-1.4 * BOX, 1.4 * BOX))
    for axis in np.ravel(axes)[count:]:
        axis.set_visible(False)
    handles = [plt.Line2D([], [], color=c, label=t) for c, t in
               (("0.72", "visible lane"), ("tab:blue", "visible trajectory"), ("tab:green", "masked: true"),
                ("tab:orange", "masked: predicted"))]  # fmt: skip
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def draw_forecasts(batch: Batch, paths: Tensor, probabilities: Tensor, count: int = 6) -> Any:
    """Six modes with their probabilities over the lanes; a forecasting batch, (B, K, 30, 2) and (B, K)."""
    from matplotlib import pyplot as plt

    count = min(count, len(paths))
    columns = min(3, count)
    figure, axes = plt.subplots(-(-count // columns), columns, figsize=(3.8 * columns, 4.0 * -(-count // columns)))
    for scene, axis in zip(range(count), np.ravel(axes), strict=False):
        lanes, lengths = batch["lanes"][scene].cpu().numpy(), batch["lane_length"][scene].cpu().numpy()
        draw_lanes(axis, [_line(v, n) for v, n in zip(lanes, lengths, strict=True) if n])
        steps = batch["agents"][scene, 0].cpu().numpy()
        past = np.concatenate([steps[:1, :2], steps[:, 2:4]])
        truth = np.concatenate([past[-1:], batch["future"][scene].cpu().numpy()])
        draw_agent(axis, past, truth if bool(batch["has_future"][scene]) else None)
        draw_modes(axis, paths[scene].float().cpu().numpy(), probabilities[scene].float().cpu().numpy())
        tidy(axis)
        low, high = min(-15.0, truth[:, 1].min() - 8), max(35.0, truth[:, 1].max() + 8)
        half = (high - low) / 2
        axis.set(xlim=(-half, half), ylim=(low, high))
    np.ravel(axes)[0].legend(fontsize=7, loc="lower left")
    for axis in np.ravel(axes)[count:]:
        axis.set_visible(False)
    figure.tight_layout()
    return figure


def _line(vectors: np.ndarray, length: int) -> np.ndarray:
    """Points (length + 1, 2) of a lane's vectors (9, 12)."""
    return np.concatenate([vectors[:1, [11, 10]], vectors[:length, [9, 8]]])
