"""Step 2 of Pre-trained Distillation: a student learns a teacher's class probabilities on unlabelled text."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.module import full_precision
from zoo.nn.text import pack_tokenizer
from zoo.optim_text import Schedule
from zoo.paths import cache_dir
from zoo.tasks.start import start_model
from zoo.tasks.text_classification import TextClassification

Batch = dict[str, Tensor]


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """(B,) -sum_c p_T(c) log p_S(c): temperature 1, no hard labels, in float32. Both logits are (B, C).

    Its gradient in the student's logits is p_S - p_T; its least value the teacher's entropy.
    """
    return F.cross_entropy(student_logits.float(), teacher_logits.float().softmax(-1), reduction="none")


class Distillation(TextClassification):
    """Distils a fine-tuned teacher into a student with a fresh classifier; labels are never looked at in training.

    The teacher's logits on the whole transfer set are computed once, in eval mode and without gradient, and kept in
    the cache under a hash of teacher, tokenizer and text: what changes any of them gives a new entry.

    Args:
        backbone: the student's start: a run or name of `CompactBert` (PD), with pretrained False from scratch (D).
        teacher: a run or name of a fine-tuned `TextClassification` with the same tokenizer.
        teacher_batch: sequences that go through the teacher at once.
        others: as in `TextClassification`.
    """

    def __init__(
        self,
        backbone: str | dict[str, Any],
        teacher: str | None,
        pretrained: bool = True,
        truncate_layers: int | None = None,
        num_classes: int | None = None,
        classes: list[str] | None = None,
        dropout: float = 0.1,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        warmup: float = 0.1,
        schedule: Schedule = "bert",
        layer_decay: float = 1.0,
        clip_grad: float | None = 1.0,
        teacher_batch: int = 128,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        max_positions: int | None = None,
    ) -> None:
        taught: Any = None
        if teacher is not None:
            taught = start_model(teacher)
            if not isinstance(taught, TextClassification) or taught.regression:
                raise ZooError(f"{teacher} is no fine-tuned text classifier: a teacher gives class probabilities.")
            num_classes, classes = taught.num_outputs, taught.classes or classes
        super().__init__(
            backbone=backbone,
            pretrained=pretrained,
            truncate_layers=truncate_layers,
            num_classes=num_classes,
            classes=classes,
            dropout=dropout,
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            eps=eps,
            warmup=warmup,
            schedule=schedule,
            layer_decay=layer_decay,
            clip_grad=clip_grad,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            max_positions=max_positions,
        )
        # Hidden from torch: the teacher is no part of the student's weights and stays in eval mode.
        self.__dict__["teacher"] = taught
        self.teacher_logits: Tensor | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit" or self.teacher_logits is not None:
            return
        teacher: TextClassification | None = self.__dict__["teacher"]
        if teacher is None:
            raise ZooError("Distilling needs a teacher: give model.teacher a fine-tuned classifier.")
        if self.tokenizer is None or teacher.tokenizer is None:
            raise ZooError("Teacher and student need a tokenizer, and the same one.")
        if teacher.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ZooError("Teacher and student cut text differently: they need the same tokenizer.")
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "transfer_batches"):
            raise ZooError("Distilling needs data that gives its texts in order: use TransferDataModule.")
        self.teacher_logits = teacher_predictions(
            teacher, list(data.transfer_batches(self.hparams.teacher_batch)), device=self.trainer.strategy.root_device
        )
        if warning := one_class_only(self.teacher_logits, teacher.classes):
            rank_zero_warn(warning)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.classify(batch)
        assert self.teacher_logits is not None
        target = self.teacher_logits[batch["index"].cpu()].to(logits.device)
        with full_precision(logits.device.type):
            losses = soft_cross_entropy(logits, target)
        agreement = (logits.argmax(-1) == target.argmax(-1)).float().mean()
        self.log_dict({"train/loss": losses.mean().detach(), "train/agreement": agreement}, batch_size=len(losses))
        return losses.mean()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] = dict(checkpoint["hyper_parameters"]) | {"teacher": None}


def one_class_only(logits: Tensor, classes: list[str] | None = None, share: float = 0.98) -> str | None:
    """A warning if logits (n, C) have the same class on top for at least `share` of the texts, else None."""
    counts = logits.argmax(-1).bincount(minlength=logits.shape[-1])
    top = int(counts.argmax())
    if counts[top] < share * len(logits):
        return None
    return (
        f"The teacher puts {int(counts[top])} of {len(logits)} transfer texts into one class, "
        f"{classes[top] if classes else top}: it has not learned to tell them apart, and no student can learn it from "
        "it. Fine-tune the teacher again, at a lower model.lr for instance."
    )


@torch.inference_mode()
def teacher_predictions(
    teacher: TextClassification, batches: list[Batch], *, device: torch.device | str = "cpu", folder: Any = None
) -> Tensor:
    """(n, C) float32 logits of the teacher on all texts in order, from the cache if the very same were asked before.

    Args:
        batches: `input_ids`, `attention_mask`, `token_type_ids` of consecutive texts.
        folder: the cache; None is `teachers/` in the zoo's own.
    """
    key = hashlib.blake2b(pack_tokenizer(teacher.tokenizer).encode() if teacher.tokenizer else b"", digest_size=16)
    for name, value in sorted(teacher.state_dict().items()):
        key.update(name.encode())
        key.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for batch in batches:
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            key.update(batch[name].contiguous().numpy().tobytes())
    root = cache_dir() / "teachers" if folder is None else folder
    path = root / f"{key.hexdigest()}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    teacher = teacher.to(device).eval()
    parts = [teacher.classify({name: value.to(device) for name, value in batch.items()}).cpu() for batch in batches]
    logits = torch.cat(parts).clone()
    try:
        root.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        torch.save(logits, new)
        os.replace(new, path)
    except OSError as error:
        raise ZooError(f"Cannot write the teacher's predictions to {root}: {error.strerror or error}.") from error
    return logits
