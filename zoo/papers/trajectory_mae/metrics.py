"""Argoverse's forecasting metrics, by its own definitions.

minADE is the average error of the trajectory with the smallest *final* error, not the smallest average error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.driving.scenes import FUTURE, STEP

MISS_THRESHOLD = 2.0  # metres
_LOW_PROBABILITY = 0.05


def forecast_errors(
    forecast: Tensor, truth: Tensor, probability: Tensor | None = None, k: int = 6, threshold: float = MISS_THRESHOLD
) -> dict[str, Tensor]:
    """Per scene (B,): minADE, minFDE and MR of the first k trajectories.

    With `probability` (B, K) the k most probable ones are taken, their probabilities made to sum to 1, and the p- and
    brier- variants added.

    Args:
        forecast: (B, K, T, 2), truth: (B, T, 2), metres.
    """
    forecast, truth = forecast.double(), truth.double()
    if probability is not None:
        order = probability.double().argsort(dim=1, descending=True, stable=True)[:, :k]
        forecast = forecast.gather(1, order[..., None, None].expand(-1, -1, *forecast.shape[2:]))
        probability = probability.double().gather(1, order)
        probability = probability / probability.sum(1, keepdim=True)
    forecast = forecast[:, :k]
    distance = (forecast - truth.unsqueeze(1)).norm(dim=-1)
    fde, best = distance[..., -1].min(dim=1)
    ade = distance.mean(-1).gather(1, best.unsqueeze(1)).squeeze(1)
    missed = (fde > threshold).double()
    out = {"minADE": ade, "minFDE": fde, "MR": missed}
    if probability is not None:
        p = probability.gather(1, best.unsqueeze(1)).squeeze(1)
        surprise = -p.clamp(min=_LOW_PROBABILITY).log()
        out["p-minADE"], out["p-minFDE"] = ade + surprise, fde + surprise
        out["p-MR"] = torch.where(missed > 0, torch.ones_like(p), 1 - p)
        out["brier-minADE"], out["brier-minFDE"] = ade + (1 - p) ** 2, fde + (1 - p) ** 2
    return out


def constant_velocity(batch: dict[str, Tensor], steps: int = 5) -> Tensor:
    """(B, 1, 30, 2) in the agent frame: driving on at the mean velocity of the last `steps` of 0.1 s.

    Args:
        batch: a forecasting batch; its `agents` (B, A, 19, 10) have the agent first.
    """
    last = batch["agents"][:, 0, -steps:]
    velocity = (last[:, -1, 2:4] - last[:, 0, :2]) / (steps * STEP)
    times = STEP * torch.arange(1, FUTURE + 1, device=velocity.device, dtype=velocity.dtype)
    return (velocity[:, None] * times[None, :, None]).unsqueeze(1)
