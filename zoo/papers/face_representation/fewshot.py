"""Few labels, five tasks: heads fitted on frozen features, or everything fine-tuned, the same way for every encoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.papers.face_representation.tasks import Encoder, TaskHead, score

Samples = Mapping[str, Any]
"""A task's data: `train` and `test` (map-style datasets of dicts, see `tasks`), `outputs`, `options`, maybe `pairs`."""
_BATCH = 128


def fit_and_score(
    encoder: Encoder, task: str, data: Samples, chosen: Sequence[int], *, mode: str = "frozen", seed: int = 0,
    steps: int = 200, batch_size: int = 32, lr: float = 1e-2, cache: dict[Any, Any] | None = None,
    normalize: Any = None, image_size: int = 64,
) -> tuple[dict[str, float], np.ndarray]:  # fmt: skip
    """Trains a head on the `chosen` training samples and scores it on the test set.

    Args:
        mode: "frozen" (only the head) or "finetune" (a copy of the encoder too, at a tenth of the rate).
        steps, batch_size, lr: of AdamW under half a cosine; few samples come round more often. The rate is for heads
            with up to 256 inputs; wider ones take a rate as much smaller, since each weight moves by about the rate.
        cache: keeps frozen features between calls with the same encoder.
        normalize: uint8 (B, 3, S, S) to what the encoder takes.

    Returns the numbers and the predictions for the test set.
    """
    if mode not in ("frozen", "finetune"):
        raise ZooError(f"mode is 'frozen' or 'finetune', not {mode!r}.")
    device = next(encoder.parameters()).device
    train, test = data["train"], data["test"]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = TaskHead(task, encoder.widths(image_size), data["outputs"], data.get("options")).to(device)
    targets = torch.stack([torch.as_tensor(train[int(i)]["target"]) for i in chosen])
    if task == "recognition":  # classes that the few samples have
        targets = torch.unique(targets, return_inverse=True)[1]
    head.start_from(targets.float().mean(dim=0).to(device))
    kind = "maps" if task == "landmarks" else head.grid
    lr = lr * min(1.0, 256 / head.width)
    if mode == "frozen":
        cache = {} if cache is None else cache
        known = _features(encoder, train, head, chosen, normalize, device)
        if ("test", task, kind) not in cache:
            cache["test", task, kind] = _features(encoder, test, head, range(len(test)), normalize, device)
        unseen = cache["test", task, kind]
        params = [{"params": list(head.parameters()), "lr": lr}]
    else:
        encoder = copy.deepcopy(encoder).train()
        pictures = torch.stack([train[int(i)]["image"] for i in chosen])
        body = {"params": list(encoder.parameters()), "lr": lr / 10}
        params = [{"params": list(head.parameters()), "lr": lr}, body]
    optimizer = torch.optim.AdamW(params, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    head.train()
    size = max(2, min(batch_size, len(targets)))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(targets), generator=generator)])
        rows, order = order[:size], order[size:]
        if mode == "frozen":
            given = [level[rows] for level in known]
        else:
            given = head.look(encoder, normalize(pictures[rows].to(device)))
        loss = head.loss(head(given), targets[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    head.eval()
    encoder.eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(test), _BATCH):
            rows = torch.arange(start, min(start + _BATCH, len(test)))
            if mode == "frozen":
                given = [level[rows] for level in unseen]
            else:
                images = torch.stack([test[int(i)]["image"] for i in rows]).to(device)
                given = head.look(encoder, normalize(images))
            parts.append(head.predict(head(given)).cpu())
    prediction = torch.cat(parts).numpy()
    truth = np.stack([np.asarray(test[i]["target"]) for i in range(len(test))])
    scale = np.array([float(test[i]["scale"]) for i in range(len(test))]) if "scale" in test[0] else None
    return score(task, prediction, truth, scale, data.get("pairs")), prediction


@torch.no_grad()
def _features(
    encoder: Encoder, dataset: Any, head: TaskHead, chosen: Sequence[int], normalize: Any, device: torch.device
) -> list[Tensor]:
    """What the head looks at in the chosen samples, batch by batch."""
    encoder.eval()
    parts: list[list[Tensor]] = []
    for start in range(0, len(chosen), _BATCH):
        images = torch.stack([dataset[int(i)]["image"] for i in chosen[start : start + _BATCH]])
        parts.append(head.look(encoder, normalize(images.to(device))))
    return [torch.cat(level).float().contiguous() for level in zip(*parts, strict=True)]
