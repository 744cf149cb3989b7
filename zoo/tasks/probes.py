"""Probes of frozen features: k-NN, linear, and few-label subsets. Small and deterministic, on scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from zoo.errors import ZooError

Features = tuple[np.ndarray, np.ndarray]
"""Features (n, D) in float32 and labels (n,)."""


@contextmanager
def every_sample(data: Any) -> Iterator[None]:
    """Within it, the loaders of a data module are not dealt out over devices: one device probes with all samples."""
    data.sharded = False
    try:
        yield
    finally:
        data.sharded = True


@torch.no_grad()
def extract_features(
    features: Callable[[Tensor], Tensor], loader: Iterable[Sequence[Tensor]], device: torch.device | str = "cpu"
) -> Features:
    """Runs `features` over a loader of `(input, label)` batches: (n, D) float32 and (n,) labels.

    An input is a tensor or a dict of them.
    """
    values, labels = [], []
    for batch, label in loader:
        values.append(features(move_data_to_device(batch, torch.device(device))).float().cpu())
        labels.append(torch.as_tensor(label))
    if not values:
        raise ZooError("There is nothing to extract features from: the loader is empty.")
    return torch.cat(values).numpy(), torch.cat(labels).numpy()


def knn_accuracy(train: Features, test: Features, k: int = 20) -> float:
    """Accuracy (0 to 1) of k nearest neighbours by cosine, closer ones weighing more; k is cut to the training set."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(k, len(train[1])), weights="distance", metric="cosine")
    return float(neighbours.fit(*train).score(*test))


def linear_probe_accuracy(train: Features, test: Features, c: float = 1.0, max_iter: int = 1000) -> float:
    """Accuracy (0 to 1) of logistic regression on standardised features; `c` is the inverse L2 strength."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))
    return float(probe.fit(*train).score(*test))
