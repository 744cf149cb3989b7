"""What a representation is worth when labels are few: fine-tuning and a linear probe on a handful of images."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.module import ZooModule
from zoo.optim import norm_bias_groups, one_cycle

Labelled = tuple[Tensor, Tensor]
"""Images (n, C, H, W) as the model takes them, and labels (n,)."""


def labels_per_class(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` images of every class, drawn by `seed`; fewer where a class has fewer."""
    if count < 1:
        raise ZooError(f"There is at least one label a class, not {count}.")
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels.numpy() == label))[:count] for label in labels.unique().numpy()]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def finetune_accuracy(
    model: ZooModule,
    train: Labelled,
    test: Labelled,
    *,
    steps: int = 100,
    batch_size: int = 16,
    lr: float = 0.015,
    head_lr: float = 0.15,
    weight_decay: float = 5e-5,
    seed: int = 0,
) -> float:
    """Accuracy (0 to 1) on `test` after fine-tuning a copy of `model` with a fresh classifier.

    SGD with momentum 0.9 under a one-cycle schedule with 10 % warm-up, no augmentation. `model` itself stays as it is,
    and so do the global random generators.
    """
    images, labels = train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = copy.deepcopy(model).train()
        with torch.no_grad():
            dim = model.eval()(images[:2]).shape[1]
        head = nn.Linear(dim, int(max(labels.max(), test[1].max())) + 1).to(images.device)
        groups = norm_bias_groups(network, lr, weight_decay)
        groups.append({"params": head.parameters(), "lr": head_lr, "weight_decay": weight_decay})
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        schedule = one_cycle(optimizer, steps + 1, warmup=0.1)
        order = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(order) < min(batch_size, len(labels)):
                order = torch.randperm(len(labels))
            now, order = order[:batch_size], order[batch_size:]
            loss = F.cross_entropy(head(network(images[now])).float(), labels[now])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        guesses = [head(network(part)).argmax(dim=1) for part in test[0].split(256)]
    return float((torch.cat(guesses) == test[1]).float().mean())
