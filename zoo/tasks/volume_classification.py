"""Classification and survival from MRI volumes on any MRI backbone of the zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from zoo.errors import ZooError
from zoo.nn.survival import concordance, logistic_hazard_nll, risk_score, survival_curve
from zoo.tasks.outcomes import ClassOutcome, FunctionOutcome
from zoo.tasks.start import weights_of_classes
from zoo.tasks.volumes import RowsTask, check_modalities


class _Logits(RowsTask):
    """What the tasks with one row of logits a subject share."""

    head = "output_layer"

    def forward(self, volumes: Mapping[str, Tensor]) -> Tensor:
        """{sequence: (B, 1, S, S, S)} to logits (B, outputs)."""
        return self.network(volumes)

    def _needs(self, batch: Mapping[str, Any], *keys: str) -> None:
        for key in keys:
            if key not in batch:
                raise ZooError(f"The data gives no {key}: use a table of subjects (datamodules.brain_table).")


class VolumeClassification(_Logits):
    """A yes-or-no question about a subject: subtype, IDH, MGMT, TERT. Logit of class 1 against class 0.

    Args:
        backbone, modalities, from_scratch, freeze, tuning, lr, weight_decay, warmup_epochs, cosine_epochs: see
            `VolumeTask`.
        dropout: of the encoder.
        class_weights: of class 0 and class 1 in the loss: a list, "balanced", or None.
        classes: names of the two classes, taken from the data.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any],
        modalities: Sequence[str] = ("t1", "t1ce", "t2", "flair"),
        from_scratch: bool = False,
        freeze: bool = False,
        dropout: float = 0.1,
        lr: float = 1e-4,
        weight_decay: float = 0.05,
        warmup_epochs: float = 5.0,
        cosine_epochs: float | None = 20.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        classes: list[str] | None = None,
        tuning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_modalities(modalities)
        self._start("make_classifier", 1)
        self.class_weight: Tensor | None = None
        self.auroc, self.average_precision = BinaryAUROC(), BinaryAveragePrecision()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        weights = weights_of_classes(self, self.hparams.class_weights, 2)
        self.class_weight = None if weights is None else weights.to(self.device)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self._loss(self(self.volumes(batch)), batch, self.class_weight)
        self.log("train/loss", loss.detach(), batch_size=len(batch["label"]))
        return loss

    def _loss(self, logits: Tensor, batch: Mapping[str, Any], weights: Tensor | None = None) -> Tensor:
        self._needs(batch, "label")
        each = None if weights is None else weights[batch["label"]]
        return F.binary_cross_entropy_with_logits(logits[:, 0].float(), batch["label"].float(), each)

    def class_names(self) -> list[str]:
        """Names of class 0 and class 1: the data's, else those of the checkpoint."""
        data = getattr(self._trainer, "datamodule", None)
        return list(getattr(data, "classes", None) or self.hparams.classes or ["0", "1"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] = checkpoint["hyper_parameters"] | {"classes": self.class_names()}

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """(B,) probability of class 1."""
        return self(self.volumes(batch))[:, 0].sigmoid()

    def _evaluate(self, batch: Mapping[str, Any], stage: str) -> None:
        logits = self(self.volumes(batch))
        self.log(f"{stage}/loss", self._loss(logits, batch), sync_dist=True, batch_size=len(logits))
        scores = logits[:, 0].float().sigmoid()
        self._rows += [
            {"subject": subject, "label": int(label), "score": float(score)}
            for subject, label, score in zip(batch["subject"], batch["label"], scores, strict=True)
        ]

    def outcome_rows(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What a report keeps of a batch: labels and probabilities."""
        self._needs(batch, "label")
        score = self.predict_step(batch, 0).float()
        return batch["label"], torch.stack([1 - score, score], dim=1)

    def outcome(self, rows: list[tuple[Tensor, Tensor]], data: Any) -> ClassOutcome:
        """What was found in all held-out subjects."""
        found = ClassOutcome.of(rows, self.class_names())
        found.headline = "AUROC"
        return found

    def _report(self, stage: str) -> None:
        scores = torch.tensor([row["score"] for row in self.predictions])
        labels = torch.tensor([row["label"] for row in self.predictions])
        if len(labels.unique()) < 2:  # as in the two batches of the sanity check: neither score is defined
            return
        for name, metric in (("auroc", self.auroc), ("ap", self.average_precision)):
            self.log(f"{stage}/{name}", metric.to("cpu")(scores, labels), prog_bar=True, sync_dist=False)
            metric.reset()


class VolumeSurvival(_Logits):
    """Discrete-time survival with logistic hazard; a subject's risk is the sum of the logits over the bins.

    Args:
        backbone, modalities, from_scratch, freeze, tuning, lr, weight_decay, warmup_epochs, cosine_epochs: see
            `VolumeTask`.
        bins: time bins; the data cuts the times into as many.
        dropout: of the encoder.
        cuts: times of the bins, taken from the data.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any],
        modalities: Sequence[str] = ("t1", "t1ce", "t2", "flair"),
        bins: int = 10,
        from_scratch: bool = False,
        freeze: bool = False,
        dropout: float = 0.1,
        lr: float = 1e-4,
        weight_decay: float = 0.1,
        warmup_epochs: float = 5.0,
        cosine_epochs: float | None = 20.0,
        cuts: list[float] | None = None,
        tuning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_modalities(modalities)
        if bins < 2:
            raise ZooError(f"There are two time bins or more, not {bins}.")
        self._start("make_classifier", bins)

    def times(self) -> list[float] | None:
        """Time at each bin's end: the data's, else those of the checkpoint."""
        found = getattr(getattr(self._trainer, "datamodule", None), "cuts", None)
        return self.hparams.cuts if found is None else [float(cut) for cut in found]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] = checkpoint["hyper_parameters"] | {"cuts": self.times()}

    def setup(self, stage: str) -> None:
        cuts = self.times()
        if cuts is not None and len(cuts) != self.hparams.bins:
            raise ZooError(
                f"The data has {len(cuts)} time bins, the model {self.hparams.bins}: set model.bins to that."
            )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        self._needs(batch, "time_index", "event", "time")
        logits = self(self.volumes(batch)).float()
        loss = logistic_hazard_nll(logits, batch["time_index"], batch["event"])
        self.log("train/loss", loss.detach(), batch_size=len(logits))
        return loss

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """(B, bins) probability of surviving each bin, whose ends are `times()`."""
        return survival_curve(self(self.volumes(batch)).float())

    def _evaluate(self, batch: Mapping[str, Any], stage: str) -> None:
        self._needs(batch, "time_index", "event", "time")
        logits = self(self.volumes(batch)).float()
        loss = logistic_hazard_nll(logits, batch["time_index"], batch["event"])
        self.log(f"{stage}/loss", loss, sync_dist=True, batch_size=len(logits))
        columns = zip(batch["subject"], batch["time"], batch["event_seen"], risk_score(logits), strict=True)
        self._rows += [
            {"subject": subject, "time": float(time), "event": int(event), "risk": float(risk)}
            for subject, time, event, risk in columns
        ]

    def _report(self, stage: str) -> None:
        score = concordance(*self._columns())
        if not np.isnan(score):
            self.log(f"{stage}/c_index", score, prog_bar=True, sync_dist=False)

    def outcome_rows(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """What a report keeps of a batch: times, events, risks."""
        risk = risk_score(self(self.volumes(batch)).float())
        return torch.as_tensor(batch["time"]), torch.as_tensor(batch["event_seen"]), risk

    def outcome(self, rows: list[tuple[Tensor, Tensor, Tensor]], data: Any) -> FunctionOutcome:
        """What was found in all held-out subjects."""
        time, event, risk = (torch.cat([row[i].cpu() for row in rows]).numpy() for i in range(3))
        columns = {"time": time.tolist(), "event": event.tolist(), "risk": risk.tolist()}
        score = lambda index: {"C-index": concordance(time[index], event[index], risk[index])}  # noqa: E731
        return FunctionOutcome(len(time), "C-index", function=score, columns=columns)

    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(np.array([row[key] for row in self.predictions]) for key in ("time", "event", "risk"))  # type: ignore[return-value]

    def figures(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Kaplan-Meier curves of the last evaluation's subjects, split at the median risk, for the Figures callback."""
        from zoo.tasks.volume_figures import draw_survival

        return {"survival": draw_survival(*self._columns())}
