"""Fine-tuning a text encoder to tag words: named entities, chunks, parts of speech."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.module import full_precision
from zoo.nn.entities import entity_scores, has_entities
from zoo.optim_text import Schedule
from zoo.tasks.outcomes import FunctionOutcome
from zoo.tasks.text_task import Batch, TextTask

IGNORED = -100  # `tags` of pieces that do not begin a word


class TokenClassification(TextTask):
    """An encoder of the zoo with a linear layer on the first piece of each word, as ELECTRA's code tags.

    Batches hold `input_ids`, `attention_mask`, `token_type_ids`, `tags` (B, L), the latter -100 where no word begins,
    and `index` (B,). The data module has `tags` (the names) and `joined(rows) -> (gold, found)` (sentences of names).

    Args:
        backbone, pretrained, truncate_layers: as in `TextClassification`.
        tags: their names; None takes them from the data. segment: the segment id of the data, taken from there too.
        loss_reduction: "mean" over words, or "sum" over the batch before clipping, as ELECTRA's released code has it.
        dropout: before the linear layer; the released code has none.
        lr, ...: as in `TextClassification`.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any],
        pretrained: bool = True,
        truncate_layers: int | None = None,
        tags: list[str] | None = None,
        segment: int | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        dropout: float = 0.0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        warmup: float = 0.1,
        schedule: Schedule = "electra",
        layer_decay: float = 0.8,
        official_layer_decay: bool = False,
        clip_grad: float | None = 1.0,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        max_positions: int | None = None,
        tuning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.official_layer_decay, self.tags = official_layer_decay, tags
        self._start_head = self.start_from(backbone, pretrained, truncate_layers, tokenizer)
        self.without_pooler()
        if tags is not None:
            self._build(tags)
        self._rows: list[tuple[int, np.ndarray]] = []

    def _build(self, tags: list[str]) -> None:
        if len(set(tags)) < 2:
            raise ZooError(f"There must be at least two tags to tell apart, not {tags}.")
        self.tags = list(tags)
        linear = nn.Linear(self.encoder.backbone.config.hidden_size, len(tags))
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.Dropout(self.hparams.dropout), linear)
        if self._start_head is not None and self._start_head["1.bias"].shape[0] == len(tags):
            self.head.load_state_dict(self._start_head)
        self._start_head = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        theirs = getattr(getattr(self.trainer, "datamodule", None), "tags", None)
        if self.tags is None:
            if not theirs:
                raise ZooError("The data does not say which tags there are: give model.tags their names.")
            self._build(list(theirs))
        elif theirs and list(theirs) != list(self.tags):
            raise ZooError(
                f"The model knows the tags {', '.join(self.tags[:8])}, the data {', '.join(theirs[:8])}: "
                "give data.tags those of the model."
            )

    def forward(self, batch: Batch) -> Tensor:
        """To (B, D): the encoder's representation of the text."""
        return self.encoder(batch)

    def classify(self, batch: Batch) -> Tensor:
        """To logits (B, L, tags), in float32."""
        tokens = self.encoder.forward_tokens(batch)
        with full_precision(tokens.device.type):
            return self.head(tokens.float())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Words alone: most places are padding or inner pieces.
        words = batch["tags"] != IGNORED
        tokens = self.encoder.forward_tokens(batch)[words]
        with full_precision(tokens.device.type):
            losses = F.cross_entropy(self.head(tokens.float()), batch["tags"][words], reduction="none")
        self.log("train/loss", losses.mean().detach(), batch_size=len(words))
        return self.reduce(losses)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[tuple[int, np.ndarray]]:
        """(index, numbers of the tags of its words) of every row."""
        best, words = self.classify(batch).argmax(-1), batch["tags"] != IGNORED
        return [(int(i), row[keep].cpu().numpy()) for i, row, keep in zip(batch["index"], best, words, strict=True)]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._rows += self.predict_step(batch, batch_idx)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def on_test_epoch_end(self) -> None:
        self._score("test")

    def _score(self, stage: str) -> None:
        rows, self._rows = self.gathered(self._rows), []
        if self.trainer.sanity_checking:
            return
        gold, found = self.trainer.datamodule.joined(rows)  # type: ignore[attr-defined]
        for name, value in self.evaluate(gold, found).items():
            value = torch.tensor(value, dtype=torch.float32)
            self.log(f"{stage}/{name}", value, prog_bar=name in ("f1", "acc"))

    def evaluate(self, gold: list[list[str]], found: list[list[str]]) -> dict[str, float]:
        """`acc` over words; for entities also `precision`, `recall` and `f1`. Sentences of tag names."""
        pairs = [pair for both in zip(gold, found, strict=True) for pair in zip(*both, strict=True)]
        scores = {"acc": sum(a == b for a, b in pairs) / max(1, len(pairs))}
        return scores | entity_scores(gold, found) if has_entities(self.tags or []) else scores

    def outcome_rows(self, batch: Batch) -> list[tuple[int, np.ndarray]]:
        """What a report keeps of a batch: the tags of each item."""
        return self.predict_step(batch, 0)

    def outcome(self, rows: list[list[tuple[int, np.ndarray]]], data: Any) -> FunctionOutcome:
        """What was found in all held-out sentences."""
        gold, found = data.joined([row for part in rows for row in part])

        def score(index: np.ndarray) -> dict[str, float]:
            return self.evaluate([gold[i] for i in index], [found[i] for i in index])

        columns = {"true": [" ".join(tags) for tags in gold], "found": [" ".join(tags) for tags in found]}
        headline = "f1" if has_entities(self.tags or []) else "acc"
        return FunctionOutcome(len(gold), headline, function=score, columns=columns)

    def became(self) -> dict[str, Any]:
        data = getattr(self._trainer, "datamodule", None)
        segment = data.hparams.get("segment") if data is not None else self.hparams.segment
        return {"tags": self.tags, "segment": segment}
