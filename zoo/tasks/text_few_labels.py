"""What a text encoder is worth for classification: fine-tuned with few labels, in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.nn.text_module import TextModule
from zoo.optim_text import BertAdam, schedule_factor, text_groups
from zoo.tasks.start import describe_model
from zoo.tasks.text_classification import TextClassification

LabelledBatch = tuple[dict[str, Tensor], Tensor]
"""Token ids and masks, each (n, L), and labels (n,)."""


def finetune_text_accuracy(
    model: TextModule,
    train: LabelledBatch,
    test: LabelledBatch,
    *,
    pretrained: bool = True,
    steps: int = 100,
    batch_size: int = 16,
    lr: float = 1e-3,
    layer_decay: float = 1.0,
    seed: int = 0,
) -> float:
    """Accuracy (0 to 1) on `test` of `zoo.tasks.TextClassification` after `steps` steps on `train`.

    The task starts from a copy of `model`, or with `pretrained=False` from the same network with fresh weights. `model`
    itself stays as it is, and so do the global random generators.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task = TextClassification(
            describe_model(model), num_classes=int(max(train[1].max(), test[1].max())) + 1, dropout=0.1
        )
        if pretrained:
            task.encoder.load_state_dict(model.state_dict(), strict=False)  # the task has dropped the other networks
        task.to(model.device).train()
        groups = text_groups(
            task, lr=lr, weight_decay=0.01, layer_decay=layer_decay, num_layers=len(task.backbone.encoder.layer)
        )
        optimizer, rates = BertAdam(groups, lr=lr), [group["lr"] for group in groups]
        order = torch.empty(0, dtype=torch.long)
        for step in range(steps):
            if len(order) < min(batch_size, len(train[1])):
                order = torch.randperm(len(train[1]))
            now, order = order[:batch_size], order[batch_size:]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule_factor(step, steps, 0.1 * steps)
            loss = task.losses(task.classify(_rows(train[0], now)), train[1][now]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
    task.eval()
    with torch.no_grad():
        parts = torch.arange(len(test[1])).split(128)
        guesses = torch.cat([task.classify(_rows(test[0], part)).argmax(-1) for part in parts])
    return float((guesses == test[1]).float().mean())


def _rows(batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Some rows of a batch, without the columns that are padding in all of them."""
    longest = int(batch["attention_mask"][index].sum(1).max())
    return {key: value[index, :longest] for key, value in batch.items()}
