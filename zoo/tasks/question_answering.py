"""Fine-tuning a text encoder to mark the answer to a question in a text (SQuAD 1.1 and 2.0)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.module import full_precision
from zoo.optim_text import Schedule
from zoo.tasks.outcomes import FunctionOutcome
from zoo.tasks.spans import Answers, SpanScores, read_answers, span_scores
from zoo.tasks.squad_scores import exact_match, scores_v1, scores_v2, token_f1
from zoo.tasks.text_heads import EndsHead, SpanHead, SpanOutput, span_loss
from zoo.tasks.text_task import Batch, TextTask


class QuestionAnswering(TextTask):
    """An encoder of the zoo with a head that finds the answer's span.

    Batches hold `input_ids`, `attention_mask`, `token_type_ids` (B, L), for training `start`, `end` and `impossible`
    (B,), for evaluation `window` (B,), the numbers of the windows. The data module gives the windows themselves with
    `windows(stage)` (`zoo.tasks.spans.Windows`).

    Args:
        backbone, pretrained, truncate_layers: as in `TextClassification`.
        head: "joint", ELECTRA's (the end given the start, answerability apart), or "ends", BERT's (two logits a token,
            [CLS] stands for no answer).
        beam: starts that are followed, and ends of each.
        answerable_weight: of the joint head's answerability loss.
        null_threshold: odds above it mean no answer; None is -2.75 for "joint" and 0 for "ends", the released codes'.
        n_best: answers that are kept of a question; max_answer_length: in tokens.
        no_answer: questions may have none (SQuAD 2.0); None takes it from the data.
        loss_reduction, lr, ...: as in `TextClassification`.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any],
        pretrained: bool = True,
        truncate_layers: int | None = None,
        head: Literal["joint", "ends"] = "joint",
        beam: int = 20,
        answerable_weight: float = 0.5,
        null_threshold: float | None = None,
        n_best: int = 20,
        max_answer_length: int = 30,
        no_answer: bool | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
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
        if beam < 1 or n_best < 1 or max_answer_length < 1:
            raise ZooError("beam, n_best and max_answer_length are at least 1.")
        self.official_layer_decay, self.no_answer = official_layer_decay, no_answer
        start = self.start_from(backbone, pretrained, truncate_layers, tokenizer)
        self.without_pooler()
        width = self.encoder.backbone.config.hidden_size
        self.head: SpanHead | EndsHead = SpanHead(width) if head == "joint" else EndsHead(width)
        if head == "joint" and not answerable_weight:
            self.head.answerable_hidden.requires_grad_(False)
            self.head.answerable.requires_grad_(False)
        if start is not None and set(start) == set(self.head.state_dict()):
            self.head.load_state_dict(start)
        self._scores: list[SpanScores] = []
        self.answers: Answers | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if self.no_answer is None:
            self.no_answer = bool(getattr(data, "no_answer", False))

    def forward(self, batch: Batch) -> Tensor:
        """To (B, D): the encoder's representation of the text."""
        return self.encoder(batch)

    def spans(self, batch: Batch) -> SpanOutput:
        """Scores of starts and ends; given `start` (B,) for training, else for prediction. In float32."""
        tokens, h = self.encoder.forward_tokens(batch), self.hparams
        mask, types = batch["attention_mask"], batch["token_type_ids"]
        with full_precision(tokens.device.type):
            return self.head(tokens.float(), mask, types, batch.get("start"), h.beam)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.spans(batch)
        weight = self.hparams.answerable_weight if self.hparams.head == "joint" else 0.0
        losses = span_loss(out, batch["start"], batch["end"], batch["impossible"], weight)
        self.log("train/loss", losses.mean().detach(), batch_size=len(losses))
        return self.reduce(losses)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._scores += self.predict_step(batch, batch_idx)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> list[SpanScores]:
        """What `zoo.tasks.spans.read_answers` makes answers of."""
        return span_scores(self.spans(batch), batch["window"].tolist(), self.hparams.n_best)

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def on_test_epoch_end(self) -> None:
        self._score("test")

    @property
    def null_threshold(self) -> float:
        chosen = self.hparams.null_threshold
        return (-2.75 if self.hparams.head == "joint" else 0.0) if chosen is None else chosen

    def read(self, windows: Any, scores: list[SpanScores]) -> Answers:
        """Answers of all questions of `windows`, from the scores of their windows."""
        h = self.hparams
        return read_answers(
            windows,
            scores,
            no_answer=bool(self.no_answer),
            relative_null=h.head == "ends",
            threshold=self.null_threshold,
            n_best=h.n_best,
            max_answer_length=h.max_answer_length,
        )

    def _score(self, stage: str) -> None:
        scores, self._scores = self.gathered(self._scores), []
        if self.trainer.sanity_checking:
            return
        windows = self.trainer.datamodule.windows(stage)  # type: ignore[attr-defined]
        self.answers = self.read(windows, scores)
        values = self.evaluate(windows, self.answers)
        for name, value in values.items():
            self.log(f"{stage}/{name}", torch.tensor(value, dtype=torch.float32), prog_bar=name in ("em", "f1"))

    def evaluate(self, windows: Any, answers: Answers) -> dict[str, float]:
        """The official `em` and `f1` in percent; for 2.0 also by kind of question and at the best threshold."""
        questions = [question for question in windows.questions if question.id in answers.best]
        if not self.no_answer:
            official = scores_v1(questions, answers.best)
            return {"em": official["exact_match"], "f1": official["f1"]}
        official = scores_v2(questions, answers.given, answers.null_odds, self.null_threshold)
        return {name.replace("exact", "em"): value for name, value in official.items() if "total" not in name}

    def outcome_rows(self, batch: Batch) -> list[SpanScores]:
        """What a report keeps of a batch: the scores of its windows."""
        return self.predict_step(batch, 0)

    def outcome(self, rows: list[list[SpanScores]], data: Any) -> FunctionOutcome:
        """What was answered to all held-out questions."""
        windows = data.windows("val")
        answers = self.read(windows, [score for part in rows for score in part])
        questions = [question for question in windows.questions if question.id in answers.best]
        texts = answers.given if self.no_answer else answers.best
        each = []
        for question in questions:
            golds = question.answers or [""]
            given = texts[question.id]
            each.append((max(exact_match(g, given) for g in golds), max(token_f1(g, given) for g in golds)))
        values = 100 * np.array(each, dtype=np.float64).reshape(-1, 2)

        def score(index: np.ndarray) -> dict[str, float]:
            return {"F1": float(values[index, 1].mean()), "exact match": float(values[index, 0].mean())}

        columns = {
            "question": [q.text for q in questions],
            "found": [texts[q.id] for q in questions],
            "true": [" | ".join(q.answers) for q in questions],
            "F1": values[:, 1].round(1).tolist(),
        }
        return FunctionOutcome(len(questions), "F1", function=score, columns=columns)

    def became(self) -> dict[str, Any]:
        return {"no_answer": self.no_answer}
