"""Discrete-time survival: bins, logistic hazard (Gensheimer & Narasimhan 2019; Kvamme & Borgan 2021), concordance."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import ZooError
from zoo.extras import require


def kaplan_meier(time: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Survival curve: distinct times from 0 on, and the share that survives each of them."""
    distinct = np.unique(time)
    at_risk = (time[:, None] >= distinct).sum(0)
    died = ((time[:, None] == distinct) & (event[:, None] > 0)).sum(0)
    survival = np.cumprod(1 - died / at_risk)
    if distinct[0] > 0:
        distinct, survival = np.append(0.0, distinct), np.append(1.0, survival)
    return distinct, survival


def quantile_cuts(time: np.ndarray, event: np.ndarray, bins: int) -> np.ndarray:
    """Times (at most `bins`, ascending from 0 to the last) between which the Kaplan-Meier curve falls by equal amounts.

    Args:
        time: (n,) follow-up, any unit; event: (n,) 1 for a death, 0 for censored.
    """
    if bins < 2 or len(time) < 2:
        raise ZooError(f"Time bins need two cuts and two subjects or more, not {bins} and {len(time)}.")
    if not np.isfinite(time).all() or (np.asarray(time) <= 0).any():
        raise ZooError("Survival times are finite and above 0.")
    if not np.asarray(event).any():
        raise ZooError("No subject has an event: there is nothing to learn survival from.")
    distinct, survival = kaplan_meier(np.asarray(time, dtype=np.float64), np.asarray(event))
    levels = np.linspace(survival.min(), survival.max(), bins)
    cuts = np.unique(distinct[::-1][np.searchsorted(survival[::-1], levels)])
    cuts[0] = 0.0
    cuts[-1] = distinct[-1]
    return cuts


def discretise(time: np.ndarray, event: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bin of each subject and its event (float32): deaths go to the cut at or after them, others to the one before.

    Whoever outlives the last cut is censored there.
    """
    time, event = np.asarray(time, dtype=np.float64), np.asarray(event).astype(np.float32)
    event = np.where(time > cuts[-1], 0.0, event).astype(np.float32)
    time = np.minimum(time, cuts[-1])
    after, before = np.searchsorted(cuts, time, side="left"), np.searchsorted(cuts, time, side="right") - 1
    return np.where(event > 0, after, before), event


def logistic_hazard_nll(logits: Tensor, index: Tensor, event: Tensor) -> Tensor:
    """Negative log-likelihood, mean over subjects: logits (B, K) of the hazards, bin index (B,), event (B,) 0 or 1."""
    index = index.view(-1, 1)
    target = torch.zeros_like(logits).scatter(1, index, event.view(-1, 1).to(logits.dtype))
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return loss.cumsum(1).gather(1, index).mean()


def survival_curve(logits: Tensor) -> Tensor:
    """Probability of surviving each bin: (B, K) logits of the hazards to (B, K)."""
    return (1 - logits.sigmoid()).cumprod(1)


def risk_score(logits: Tensor) -> Tensor:
    """(B,): the sum of the logits, as the official evaluation ranks patients (not the sum of hazards)."""
    return logits.sum(1)


def concordance(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C-index (scikit-survival): 0.5 is chance, 1 a perfect order. NaN if no two subjects can be compared."""
    require("sksurv", extra="medical", why="the C-index is scikit-survival's")
    from sksurv.exceptions import NoComparablePairException
    from sksurv.metrics import concordance_index_censored

    if not np.isfinite(risk).all():
        raise ZooError("The predicted risks are not finite: training has diverged, lower model.lr.")
    try:
        return float(concordance_index_censored(np.asarray(event, dtype=bool), time, risk)[0])
    except (NoComparablePairException, ValueError):  # ValueError: everybody is censored
        return float("nan")


def log_rank(time: np.ndarray, event: np.ndarray, group: np.ndarray) -> float:
    """p-value of the log-rank test between groups (scikit-survival). NaN if there is one group only, or no event."""
    require("sksurv", extra="medical", why="the log-rank test is scikit-survival's")
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    if len(np.unique(group)) < 2 or not np.any(event):
        return float("nan")
    return float(compare_survival(Surv.from_arrays(np.asarray(event, dtype=bool), time), group)[1])
