"""Segmentation of brain tumours into overlapping regions (TC, WT, ET) on any MRI backbone of the zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extras import require
from zoo.nn.mri import REGIONS
from zoo.tasks.outcomes import SampleOutcome
from zoo.tasks.volumes import RowsTask, check_modalities


class VolumeSegmentation(RowsTask):
    """Fine-tunes a segmentation network: Dice and cross-entropy on three overlapping channels.

    Args:
        backbone, modalities, from_scratch, freeze, tuning, lr, weight_decay, warmup_epochs, cosine_epochs: see
            `VolumeTask`.
        dropout: of the encoder.
        inference: "sliding" goes over whole volumes in overlapping windows; "crop" takes volumes of the training size,
            as the official evaluation does with the central crop.
        overlap: share of a window that its neighbour covers, for "sliding".
        hd95: when to compute the 95 % Hausdorff distance: "last" epoch only, "always" or "never". It is slow.
    """

    head = "out"

    def __init__(
        self,
        backbone: str | dict[str, Any],
        modalities: Sequence[str] = ("t1", "t1ce", "t2", "flair"),
        from_scratch: bool = False,
        freeze: bool = False,
        dropout: float = 0.0,
        inference: Literal["sliding", "crop"] = "sliding",
        overlap: float = 0.5,
        hd95: Literal["last", "always", "never"] = "last",
        lr: float = 5e-4,
        weight_decay: float = 0.05,
        warmup_epochs: float = 10.0,
        cosine_epochs: float | None = None,
        tuning: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require("monai", extra="medical", why="segmentation uses MONAI's loss and metrics")
        from monai.losses import DiceCELoss
        from monai.metrics import DiceMetric, HausdorffDistanceMetric

        self.save_hyperparameters()
        check_modalities(modalities)
        if inference not in ("sliding", "crop") or hd95 not in ("last", "always", "never"):
            raise ZooError("inference is sliding or crop, hd95 is last, always or never.")
        if not 0 <= overlap < 1:
            raise ZooError(f"overlap is a share from 0 to below 1, not {overlap}.")
        self._start("make_segmenter", len(REGIONS))
        self.criterion = DiceCELoss(sigmoid=True)
        self.dice = DiceMetric(include_background=True, reduction="none")
        self.hausdorff = HausdorffDistanceMetric(include_background=True, reduction="none", percentile=95)

    def forward(self, volumes: Mapping[str, Tensor]) -> Tensor:
        """{sequence: (B, 1, H, W, D)} to logits (B, 3, H, W, D) of TC, WT, ET; whole volumes in windows."""
        first = next(iter(volumes.values()))
        if self.hparams.inference == "crop" or tuple(first.shape[2:]) == (self.image_size,) * 3:
            return self.network(volumes)
        from monai.inferers import sliding_window_inference

        short = min(first.shape[2:])
        if short < self.image_size:
            raise ZooError(f"A volume has an axis of {short} voxels, fewer than the window of {self.image_size}.")
        names = list(volumes)
        stacked = torch.cat([volumes[name] for name in names], dim=1)

        def window(part: Tensor) -> Tensor:
            return self.network({name: part[:, i : i + 1] for i, name in enumerate(names)})

        return sliding_window_inference(
            stacked, (self.image_size,) * 3, sw_batch_size=1, predictor=window, overlap=self.hparams.overlap
        )

    @torch.no_grad()
    def segment(self, raw: Any, pad: bool = False) -> tuple[Tensor, Any, Path]:
        """Labels of one subject (folder, `Subject` or {sequence: path}) in the space of its files.

        Returns labels (H, W, D) uint8 with core 1, oedema 2, enhancing tumour 4 (3 where the subject's names are those
        of BraTS 2023), the affine (4, 4), and the file that they overlay.
        """
        from zoo.nn.mri import load_subject, put_back
        from zoo.nn.subjects import one_subject

        subject = one_subject(raw)
        size = self.image_size if self.hparams.inference == "crop" or pad else None
        volumes, originals = load_subject(subject, size, pad, tuple(self.modalities))
        missing = [name for name in self.modalities if name not in volumes]
        if missing:
            raise ZooError(f"{subject.id}: {', '.join(missing)} is missing, which this model was made for.")
        batch = {name: volume.as_tensor().unsqueeze(0).to(self.device) for name, volume in volumes.items()}
        found = regions_to_labels(self(batch).sigmoid() > 0.5, 3 if subject.names == "brats-gli" else 4)[0].cpu()
        first = self.modalities[0]
        labels = put_back(found, originals[first], size, pad, nearest=True)
        return labels.as_tensor()[0].round().to(torch.uint8), originals[first].affine, subject.sequences[first]

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.criterion(self.network(self.volumes(batch)).float(), self._target(batch))
        self.log("train/loss", loss.detach(), batch_size=len(batch["seg"]))
        return loss

    def _evaluate(self, batch: Mapping[str, Any], stage: str) -> None:
        target = self._target(batch)
        logits = self(self.volumes(batch)).float()
        self.log(f"{stage}/loss", self.criterion(logits, target), sync_dist=True, batch_size=len(target))
        predicted = (logits.sigmoid() > 0.5).float()
        scores = {"dice": self.dice(y_pred=predicted, y=target)}
        if self._wants_hd95(stage):
            scores["hd95"] = self.hausdorff(y_pred=predicted, y=target)
        for case, subject in enumerate(batch["subject"]):
            values = {f"{name}_{region}": float(score[case, index]) for name, score in scores.items()
                      for index, region in enumerate(REGIONS)}  # fmt: skip
            self._rows.append({"subject": subject} | values)

    def _wants_hd95(self, stage: str) -> bool:
        wanted = self.hparams.hd95
        if stage == "test" or wanted != "last" or self.trainer.sanity_checking:
            return wanted != "never" and not self.trainer.sanity_checking
        last = self.trainer.max_epochs
        return bool(last and last > 0 and self.current_epoch + 1 >= last)

    def _report(self, stage: str) -> None:
        """Mean and standard deviation over cases; a case whose truth lacks a region does not count for it (NaN)."""
        for name, metric in (("dice", self.dice), ("hd95", self.hausdorff)):
            if metric.get_buffer() is None:
                continue
            values = metric.aggregate("none")
            metric.reset()
            values = torch.where(values.isinf(), torch.nan, values)
            for index, region in enumerate(REGIONS):
                case = values[:, index][~values[:, index].isnan()]
                mean = case.mean() if len(case) else torch.tensor(torch.nan)
                self.log(f"{stage}/{name}_{region}", mean, rank_zero_only=False, sync_dist=False)
                if len(case):
                    self.log(f"{stage}/{name}_{region}_std", case.std(correction=0), sync_dist=False)
            self.log(f"{stage}/{name}", values.nanmean(), prog_bar=name == "dice", sync_dist=False)

    def _target(self, batch: Mapping[str, Any]) -> Tensor:
        if "seg" not in batch:
            raise ZooError("The data gives no segmentation: set data.segmentation to true.")
        return batch["seg"]

    def outcome_rows(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Dice of each subject and region; NaN for a region that the truth lacks."""
        from monai.metrics import compute_dice

        found = (self(self.volumes(batch)).float().sigmoid() > 0.5).float()
        dice = compute_dice(found, self._target(batch), include_background=True)
        return {f"Dice {region}": dice[:, index] for index, region in enumerate(REGIONS)} | {"Dice": dice.nanmean(1)}

    def outcome(self, rows: list[dict[str, Any]], data: Any) -> SampleOutcome:
        """What was found in all held-out subjects."""
        return SampleOutcome.of(rows, "Dice")

    def figures(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A slice of the first subject, the truth and the prediction, for the Figures callback."""
        from zoo.tasks.volume_figures import draw_segmentation

        volumes = {name: volume[:1] for name, volume in self.volumes(batch).items()}
        return {"segmentation": draw_segmentation(volumes, batch["seg"][:1], self(volumes).sigmoid() > 0.5)}


def regions_to_labels(regions: Tensor, enhancing: int = 4) -> Tensor:
    """TC, WT, ET (..., 3, H, W, D) bool to labels (..., 1, H, W, D) uint8; ET over TC over WT."""
    core, whole, rim = (regions.select(-4, index).unsqueeze(-4) for index in range(3))
    labels = torch.zeros_like(core, dtype=torch.uint8)
    labels = labels.masked_fill(whole, 2).masked_fill(core, 1)
    return labels.masked_fill(rim, enhancing)
