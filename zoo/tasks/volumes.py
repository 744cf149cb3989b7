"""What the tasks on 3-D MRI share: the start from a backbone, the sequences, the optimiser, gathered predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.optim import adamw, capped_cosine
from zoo.tasks.start import describe_model, start_model
from zoo.tasks.tuning import TunedTask


class VolumeTask(TunedTask):
    """Base of the tasks. A backbone says with `make_classifier` and `make_segmenter` what it becomes.

    Args (of the subclasses):
        backbone: a zoo name, a manifest, a checkpoint or a run folder (or what `describe_model` gives).
        modalities: the sequences to work on, any of those that the backbone knows.
        from_scratch: the same network with random weights: the baseline.
        freeze: train the head alone (of the segmenter, its last convolution).
        tuning: what of the encoder is trained (`zoo.tasks.tuning.Tuning`).
        lr, weight_decay, warmup_epochs, cosine_epochs: AdamW and BM-MAE's schedule (`zoo.optim.capped_cosine`).
    """

    network: nn.Module
    head: str
    """Name of the network's part that `freeze` leaves trainable."""

    def _start(self, make: str, outputs: int) -> None:
        """Builds `self.network`, with the encoder's weights copied from the backbone."""
        h = self.hparams
        model = start_model(h.backbone, pretrained=not h.from_scratch)
        if not hasattr(model, make):
            raise ZooError(f"{type(model).__name__} is no backbone for MRI volumes: it has no {make}.")
        self.description = describe_model(model)
        self.image_size = int(model.hparams["image_size"])
        self.network = getattr(model, make)(list(h.modalities), outputs, h.dropout)
        self.modalities: list[str] = list(self.network.encoder.modalities)
        if h.freeze:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name.startswith(self.head))

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        return self.network.encoder

    def volumes(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The task's sequences of a batch. Raises `ZooError` for one that the batch lacks."""
        for name in self.modalities:
            if name not in batch:
                raise ZooError(f"The data gives no {name}: leave data.modalities out, it follows model.modalities.")
        return {name: batch[name] for name in self.modalities}

    def preprocess(self, raw: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """A subject's folder or {sequence: NIfTI path} to {sequence: (1, 1, S, S, S)}."""
        from zoo.nn.mri import load_subject

        volumes, _ = load_subject(raw, self.image_size, modalities=tuple(self.modalities))
        missing = [name for name in self.modalities if name not in volumes]
        if missing:
            raise ZooError(f"{raw}: there is no {', '.join(missing)}, which this model needs.")
        return {name: volume.as_tensor().unsqueeze(0) for name, volume in volumes.items()}

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = adamw(self, trained, lr=h.lr, betas=(0.9, 0.999), weight_decay=h.weight_decay)
        schedule = capped_cosine(self, optimizer, warmup_epochs=h.warmup_epochs, cosine_epochs=h.cosine_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # What it became, not where it started: the checkpoint must load without the backbone's weights at hand.
        hparams = dict(checkpoint.get("hyper_parameters") or self.hparams)
        checkpoint["hyper_parameters"] = hparams | {"backbone": self.description, "from_scratch": True}


class RowsTask(VolumeTask):
    """Keeps one row a held-out subject of the last evaluation in `predictions`, for tables, pictures, comparisons."""

    def __init__(self) -> None:
        super().__init__()
        self.predictions: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []

    def on_validation_epoch_start(self) -> None:
        self._rows = []

    def on_test_epoch_start(self) -> None:
        self._rows = []

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self.predictions = gather_rows(self._rows)
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self.predictions = gather_rows(self._rows)
        self._report("test")

    def _evaluate(self, batch: Mapping[str, Any], stage: str) -> None:
        raise NotImplementedError

    def _report(self, stage: str) -> None:
        raise NotImplementedError


def gather_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all ranks sorted by subject, each once: samplers repeat subjects so that all ranks get as many."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return [row for _, row in sorted({row["subject"]: row for row in rows}.items())]


def check_modalities(modalities: Sequence[str]) -> None:
    """Raises `ZooError` for an empty list, or for one text where a list is meant."""
    if isinstance(modalities, str) or not modalities:
        raise ZooError(f"modalities is a list such as [t1, flair], not {modalities!r}.")
