"""What every fine-tuning task of text shares: the encoder it starts from, the optimiser, what a checkpoint keeps."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.module import StateDict, ZooModule
from zoo.nn.text import pack_tokenizer
from zoo.nn.text_module import FROM_DATA, TextModule
from zoo.optim import clip_gradients
from zoo.optim_text import BertAdam, linear_schedule, text_groups
from zoo.tasks.start import describe_model, start_model
from zoo.tasks.tuning import TunedTask

Batch = dict[str, Tensor]


class TextTask(TunedTask, TextModule):
    """Base class: a text encoder of the zoo (`encoder`) and a head (`head`), trained as BERT and ELECTRA do it.

    A subclass calls `save_hyperparameters()` and then `start_from(...)` in its constructor. Its hyper-parameters hold
    `lr`, `weight_decay`, `betas`, `eps`, `warmup`, `schedule`, `layer_decay` and `clip_grad`; a checkpoint carries the
    encoder's description and the tokenizer, so it loads without the backbone that it started from.
    """

    encoder: Any
    official_layer_decay = False

    def start_from(
        self,
        backbone: str | dict[str, Any],
        pretrained: bool = True,
        truncate_layers: int | None = None,
        tokenizer: str | None = None,
    ) -> StateDict | None:
        """Sets `encoder`. Returns the state of the head if `backbone` was a run of this very task, to go on with it."""
        model = start_model(backbone)
        if not pretrained:
            known, model = getattr(model, "tokenizer", None), start_model(describe_model(model))
            if known is not None and isinstance(model, TextModule):
                model.carry(known)  # it may have travelled with the weights
        head: StateDict | None = None
        if isinstance(model, TextTask):
            if pretrained and (isinstance(self, type(model)) or isinstance(model, type(self))):
                head = model.head.state_dict()  # type: ignore[union-attr]
            model = model.encoder
        if not isinstance(model, TextModule) or not hasattr(model, "forward_tokens"):
            raise ZooError(f"{backbone} is no text model: this task fine-tunes encoders of text.")
        self.encoder = model.train()
        if truncate_layers is not None:
            layers = model.backbone.encoder.layer
            if not 0 < truncate_layers <= len(layers):
                raise ZooError(f"truncate_layers lies from 1 to the encoder's {len(layers)}, not at {truncate_layers}.")
            del layers[truncate_layers:]
        self._drop_pretraining_parts(model)
        own = tokenizer or (None if model.hparams.get("tokenizer") == FROM_DATA else model.hparams.get("tokenizer"))
        self.hparams.update(
            tokenizer=own, vocab_size=model.hparams.vocab_size, max_positions=model.hparams.max_positions
        )
        return head

    @staticmethod
    def _drop_pretraining_parts(model: ZooModule) -> None:
        for name, child in list(model.named_children()):
            if child is not model.backbone and name != "pooler":
                setattr(model, name, None)

    @property
    def tokenizer(self) -> Any:
        """The task's own tokenizer, else the encoder's."""
        return super().tokenizer or self.encoder.tokenizer

    @property
    def backbone(self) -> Any:  # type: ignore[override]
        """The bare encoder."""
        return self.encoder.backbone

    def without_pooler(self) -> None:
        """For heads on tokens: the encoder's pooler gets no gradient there."""
        pooler = getattr(self.encoder.backbone, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)

    def reduce(self, losses: Tensor) -> Tensor:
        """(B,) to a scalar: the mean, or the sum where the hyper-parameter `loss_reduction` says so."""
        return losses.sum() if self.hparams.get("loss_reduction") == "sum" else losses.mean()

    def gathered(self, rows: list[Any]) -> list[Any]:
        """The rows of all devices, in the order of ranks."""
        if self.trainer.world_size == 1:
            return rows
        parts: list[list[Any]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        groups = text_groups(
            self,
            lr=h.lr,
            weight_decay=h.weight_decay,
            layer_decay=h.layer_decay,
            num_layers=len(self.backbone.encoder.layer),
            official_layer_decay=self.official_layer_decay,
        )
        optimizer = BertAdam(groups, lr=h.lr, betas=tuple(h.betas), eps=h.eps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": linear_schedule(self, optimizer, warmup=h.warmup, kind=h.schedule),
        }

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip_gradients(self, self.hparams.clip_grad, "global", gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # What it became, not where it started.
        hparams = dict(checkpoint.get("hyper_parameters") or self.hparams)
        hparams |= {"backbone": describe_model(self.encoder), "pretrained": True, **self.became()}
        if self.encoder.tokenizer is None and self._tokenizer is not None:  # it came with the data
            hparams["tokenizer"] = pack_tokenizer(self._tokenizer)
        known = inspect.signature(type(self).__init__).parameters
        checkpoint["hyper_parameters"] = {key: value for key, value in hparams.items() if key in known}

    def became(self) -> dict[str, Any]:
        """Hyper-parameters that the data decided, for the checkpoint."""
        return {}
