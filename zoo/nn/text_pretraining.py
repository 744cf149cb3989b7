"""What every LightningModule shares that pre-trains a BERT-like encoder of text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.nn.text import mean_over_tokens
from zoo.nn.text_mlm import Masked
from zoo.nn.text_module import TextModule
from zoo.optim import clip_gradients
from zoo.optim_text import BertAdam, Schedule, linear_schedule, text_groups


class PretrainedText(TextModule):
    """Base class of encoders that are pre-trained here: features, validation draws, BERT's optimiser.

    A subclass has `forward_tokens` and the hyper-parameters `hidden_size`, `num_heads`, `mask_prob`, `lr`,
    `weight_decay`, `betas`, `eps`, `warmup_steps`, `clip_grad`.

    Attributes:
        schedule: "electra" or "bert", see `zoo.optim_text.schedule_factor`.
    """

    # As in the official codes, losses are means over a device's own tokens.
    per_device_loss = True
    schedule: ClassVar[Schedule] = "bert"

    def check_encoder(self) -> None:
        """Raises `ZooError` for sizes and shares that cannot be."""
        h = self.hparams
        heads = h.num_heads or max(1, h.hidden_size // 64)
        if h.hidden_size % heads:
            raise ZooError(f"hidden_size {h.hidden_size} is not a multiple of num_heads {heads}.")
        if not 0 < h.mask_prob < 1:
            raise ZooError(f"mask_prob is a share between 0 and 1, not {h.mask_prob}.")

    def forward_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        """`input_ids` and, where given, `attention_mask` and `token_type_ids`, (B, L), to hidden states (B, L, D)."""
        raise NotImplementedError

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """To (B, D): the mean of the hidden states of all tokens that are no padding.

        Fine-tuning takes the hidden state of [CLS] instead (`forward_tokens(batch)[:, 0]`, or the pooler's).
        """
        return mean_over_tokens(self.forward_tokens(batch), batch.get("attention_mask"))

    @contextmanager
    def same_draws(self, index: int) -> Iterator[None]:
        """Within it draws depend on `index` alone, and training's generator stays as it is."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(index)
            yield

    def masked_scores(self, loss: Tensor, logits: Tensor, masked: Masked) -> dict[str, Tensor]:
        """`mlm_loss`, `mlm_acc` and, where the data counted its tokens, `unigram_acc` of guessing the most frequent."""
        used, count = masked.weights, masked.weights.sum().clamp(min=1)
        values = {"mlm_loss": loss, "mlm_acc": ((logits.argmax(-1) == masked.ids) * used).sum() / count}
        if self.most_frequent_token is not None:
            values["unigram_acc"] = ((masked.ids == self.most_frequent_token) * used).sum() / count
        return values

    def baselines(self) -> dict[str, tuple[str, str, float]]:
        """What the report holds the validation metrics against: guessing the most frequent token."""
        unigram = self.trainer.callback_metrics.get("val/unigram_acc")
        return (
            {} if unigram is None else {"val/mlm_acc": ("masked-token accuracy", "most frequent token", float(unigram))}
        )

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        optimizer = BertAdam(
            text_groups(self, lr=h.lr, weight_decay=h.weight_decay), lr=h.lr, betas=tuple(h.betas), eps=h.eps
        )
        schedule = linear_schedule(self, optimizer, warmup=h.warmup_steps, kind=self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip_gradients(self, self.hparams.clip_grad, "global", gradient_clip_val)
