"""Fine-tuning a face encoder, or any network of timm, for one of the five tasks."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.distributed as dist
from torch import Tensor

from zoo.errors import ZooError, did_you_mean
from zoo.nn.gather import world_size
from zoo.nn.images import preprocess_images
from zoo.optim import adamw, warmup_cosine
from zoo.papers.face_representation.encoder import MEAN, STD
from zoo.papers.face_representation.metrics import nme
from zoo.papers.face_representation.tasks import EVERY_TASK, HEADLINES, Encoder, TaskHead, score
from zoo.tasks.outcomes import ClassOutcome, FunctionOutcome, Outcome, SampleOutcome
from zoo.tasks.start import check_image_size, describe_model, start_model, weights_of_classes
from zoo.tasks.tuning import TunedTask


class FaceTask(TunedTask):
    """One task's head on a pre-trained backbone; both are trained, or the head alone.

    Give `backbone` (a model of the zoo, a checkpoint, a run folder) or `network` (a timm name). Batches are dicts of
    `image`, `target` and maybe `scale` (see `tasks`). A checkpoint of this module loads without what it started from.

    Args:
        task: recognition, landmarks, action_units, valence_arousal, reconstruction3d, or attributes (classes).
        backbone: what to start from. network: instead, a timm network; pretrained: with timm's own weights.
        outputs: of the head; None takes it from the data.
        head_options: arguments of the head, see `TaskHead`.
        mode: "finetune" trains everything, "frozen" the head alone (batch norm of the backbone keeps its statistics).
        image_size: side that `preprocess` gives; None takes the data's.
        lr: of the head. backbone_lr_factor: rate of the backbone relative to it.
        weight_decay, warmup_epochs: AdamW under a cosine.
        tuning: how much of the backbone "finetune" trains, such as {mode: partial, blocks: 2} or {mode: lora, rank: 8};
            see `zoo.tasks.tuning.Tuning`.
        class_weights: of the classes (attributes) in the loss: a list, "balanced" (the rarer, the heavier) or None.
        classes: names of the classes (attributes), taken from the data.
    """

    def __init__(
        self,
        task: Literal[
            "recognition", "landmarks", "action_units", "valence_arousal", "reconstruction3d", "attributes"
        ] = "landmarks",
        backbone: str | dict[str, Any] | None = None,
        network: str | None = None,
        pretrained: bool = False,
        outputs: int | None = None,
        head_options: dict[str, Any] | None = None,
        mode: Literal["finetune", "frozen"] = "finetune",
        image_size: int | None = None,
        lr: float = 1e-3,
        backbone_lr_factor: float = 0.1,
        weight_decay: float = 0.05,
        warmup_epochs: float = 1.0,
        tuning: dict[str, Any] | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # the data logs an image_size too, which may be None here
        if task not in EVERY_TASK:
            raise ZooError(f"There is no task {task!r}.{did_you_mean(task, EVERY_TASK)}")
        if mode not in ("finetune", "frozen"):
            raise ZooError(f"mode is 'finetune' or 'frozen', not {mode!r}.")
        if (backbone is None) == (network is None):
            raise ZooError("Give either model.backbone (a pre-trained start) or model.network (a timm name).")
        if class_weights is not None and task != "attributes":
            raise ZooError(f"{task} has no classes: set model.class_weights to null.")
        self.class_weight: Tensor | None = None
        if lr <= 0 or backbone_lr_factor < 0:
            raise ZooError("Learning rates lie above 0.")
        if backbone is not None:
            start = start_model(backbone)
            self._start: dict[str, Any] = {"backbone": describe_model(start), "network": None}
            body = start.backbone
        else:
            if network not in timm.list_models():
                raise ZooError(
                    f"There is no network {network!r} in timm.{did_you_mean(str(network), timm.list_models())}"
                )
            body = timm.create_model(network, pretrained=pretrained, num_classes=0)
            self._start = {"backbone": None, "network": network}
        self.encoder = Encoder(body)
        self.image_size = image_size
        if mode == "frozen":
            self.encoder.requires_grad_(False)
        if outputs is not None and (task != "reconstruction3d" or "mesh" in (head_options or {})):
            self._build(outputs, {})  # a mesh's topology comes from the data or from a checkpoint

    @property
    def backbone(self) -> torch.nn.Module:  # type: ignore[override]
        return self.encoder.backbone

    def class_names(self) -> list[str]:
        """Names of the classes: the data's, else those of the checkpoint, else numbers."""
        data = getattr(self._trainer, "datamodule", None)
        names = getattr(data, "classes", None) or self.hparams.classes
        return list(names) if names else [str(number) for number in range(self.outputs)]

    def _build(self, outputs: int, from_data: dict[str, Any]) -> None:
        h = self.hparams
        options = {**(h.head_options or {}), **from_data}
        self.outputs = outputs
        self.head = TaskHead(h.task, self.encoder.widths(self.image_size or 64), outputs, options)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        given = data.hparams.get("task") if data is not None else None
        if given not in (None, self.hparams.task):
            raise ZooError(
                f"The data is for {given}, the model for {self.hparams.task}: set data.task and model.task alike."
            )
        check_image_size(self, self.hparams.image_size, ", or model.image_size to what the data gives")
        if data is not None:
            self.image_size = self.image_size or data.hparams.get("image_size")
        if not hasattr(self, "head"):
            if data is None or not hasattr(data, "outputs"):
                raise ZooError("The data does not say how many outputs the head has: give model.outputs a value.")
            self._build(data.outputs, data.head_options)
            if _regresses(self.hparams.task) and hasattr(data, "mean_target"):
                self.head.start_from(data.mean_target())
            self.head.to(self.device)
        elif data is not None and self.hparams.task != "recognition" and data.outputs != self.outputs:
            raise ZooError(f"The data has {data.outputs} outputs, the model {self.outputs}: set model.outputs.")

    # ------------------------------------------------------------------ the representation

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images of cropped faces to a batch (B, 3, S, S)."""
        return preprocess_images(raw, self.image_size or 224, crop_pct=1.0, mean=MEAN, std=STD, exif=True)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to what the task predicts: embeddings, points, intensities, affect or vertices."""
        return self.head.predict(self._out(images))

    def _out(self, images: Tensor) -> Tensor:
        frozen = self.hparams.mode == "frozen"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            given = self.head.look(self.encoder, images)
        return self.head(given)

    # ------------------------------------------------------------------ training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        weights = weights_of_classes(self, self.hparams.class_weights, self.outputs)
        self.class_weight = None if weights is None else weights.to(self.device)

    def on_train_epoch_start(self) -> None:
        if self.hparams.mode == "frozen":
            self.encoder.eval()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.head.loss(self._out(batch["image"]), batch["target"], self.class_weight)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._seen: list[dict[str, Tensor]] = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        kept = {"prediction": self(batch["image"]), "target": batch["target"]}
        kept |= {key: batch[key] for key in ("scale", "subsets") if key in batch}
        if self.hparams.task == "reconstruction3d":  # one number a mesh: thousands of whole ones would fill the memory
            distance = (kept["prediction"] - kept["target"]).norm(dim=-1).mean(dim=1)
            kept = {"prediction": distance[:, None, None], "target": torch.zeros_like(distance)[:, None, None],
                    "scale": kept["scale"]}  # fmt: skip
        self._seen.append(
            {key: value.float().cpu() if key == "prediction" else value.cpu() for key, value in kept.items()}
        )

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        if not self._seen:
            return
        mine = {key: torch.cat([part[key] for part in self._seen]) for key in self._seen[0]}
        parts = [mine]
        if world_size() > 1:
            parts = [{}] * world_size()
            dist.all_gather_object(parts, mine)
        whole: dict[str, np.ndarray] = {key: torch.cat([part[key] for part in parts]).numpy() for key in mine}
        if len(whole["target"]) < 2 or (self.hparams.task == "recognition" and not _has_both(whole["target"])):
            return  # a sanity check's few samples
        numbers = score(self.hparams.task, whole["prediction"], whole["target"], whole.get("scale"))
        headline = HEADLINES[self.hparams.task].key
        if self.hparams.task == "landmarks" and "subsets" in whole:
            names = self.trainer.datamodule.subset_names  # type: ignore[attr-defined]
            for name, members in zip(names, whole["subsets"].T.astype(bool), strict=True):
                if members.any():
                    part = [whole[key][members] for key in ("prediction", "target", "scale")]
                    numbers[f"nme_{name}"] = score("landmarks", *part)["nme"]
        self.log_dict({f"{stage}/{key}": value for key, value in numbers.items()}, rank_zero_only=False)
        self.log(f"{stage}/headline", numbers[headline], prog_bar=True)

    def outcome_rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a report keeps of a batch: predictions (of attributes, probabilities), targets, scales."""
        out = self._out(batch["image"])
        found = out.float().softmax(-1) if self.hparams.task == "attributes" else self.head.predict(out).float()
        kept = {"prediction": found, "target": batch["target"]}
        return kept | {key: batch[key] for key in ("scale",) if key in batch}

    def outcome(self, rows: list[dict[str, Tensor]], data: Any) -> Outcome:
        """What was found in all held-out faces. Pairs of faces are not independent: verification has no interval."""
        task = self.hparams.task
        if task == "attributes":
            return ClassOutcome.of([(row["target"], row["prediction"]) for row in rows], self.class_names())
        whole = {key: torch.cat([row[key].cpu() for row in rows]).numpy() for key in rows[0]}
        if task in ("landmarks", "reconstruction3d"):
            errors = 100 * nme(whole["prediction"], whole["target"], whole["scale"])
            return SampleOutcome.of([{"NME (%)": torch.as_tensor(errors)}], "NME (%)")

        def numbers(index: np.ndarray) -> dict[str, float]:
            return score(task, whole["prediction"][index], whole["target"][index])

        count = len(whole["target"])
        return FunctionOutcome(count, HEADLINES[task].key, resample=task != "recognition", function=numbers)

    def figures(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Faces with the true and the found points, for the Figures callback; no picture for the other tasks."""
        if self.hparams.task != "landmarks":
            return {}
        from zoo.papers.face_representation.figures import draw_landmarks

        images = batch["image"][:6]
        std, mean = (images.new_tensor(values)[:, None, None] for values in (STD, MEAN))
        shown = (255 * (images * std + mean)).clamp(0, 255).byte().cpu()
        truth = batch["target"][:6].float().cpu().numpy()
        return {"landmarks": draw_landmarks(list(shown), truth, {"found": self(images).float().cpu().numpy()})}

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr_scale": 1.0}]
        if h.mode == "finetune" and h.backbone_lr_factor:
            body = [p for p in self.encoder.parameters() if p.requires_grad]
            groups.append({"params": body, "lr_scale": h.backbone_lr_factor})
        optimizer = adamw(self, groups, lr=h.lr, betas=(0.9, 0.999), weight_decay=h.weight_decay)
        return {
            "optimizer": optimizer,
            "lr_scheduler": warmup_cosine(self, optimizer, lr=h.lr, warmup_epochs=h.warmup_epochs),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        hparams = dict(checkpoint.get("hyper_parameters") or self.hparams)
        hparams |= {**self._start, "pretrained": False, "outputs": self.outputs, "image_size": self.image_size}
        if hparams["task"] == "reconstruction3d":
            hparams["head_options"] = {**(hparams["head_options"] or {}), "mesh": self.head.head.mesh}
        hparams["classes"] = self.class_names() if self.hparams.task == "attributes" else None
        checkpoint["hyper_parameters"] = hparams


def _regresses(task: str) -> bool:
    """Whether a task's head starts from the mean of its labels."""
    return task in ("action_units", "valence_arousal", "reconstruction3d")


def _has_both(identities: np.ndarray) -> bool:
    """Whether there are pairs of the same and of different people."""
    return 1 < len(np.unique(identities)) < len(identities)
