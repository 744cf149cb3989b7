"""Pre-training compact BERTs (Turc et al., arXiv 1908.08962; step 1 of Pre-trained Distillation).

Shape letters: B sequences, L tokens, N prediction slots of a sequence, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForPreTraining, BertModel

from zoo.errors import ZooError
from zoo.module import StateDict, full_precision
from zoo.nn.text import additive_mask
from zoo.nn.text_mlm import (
    Masked,
    MaskedLMHead,
    Unit,
    gather_places,
    init_sinusoidal,
    init_truncated,
    mask_for_mlm,
    masked_lm_loss,
)
from zoo.nn.text_module import FROM_DATA
from zoo.nn.text_pretraining import PretrainedText
from zoo.papers.well_read_students import weights

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class PretrainingOutput:
    """What one step gives: scalar losses, `masked`, `mlm_logits` (B, N, V), `nsp_logits` (B, 2) or None."""

    loss: Tensor
    mlm_loss: Tensor
    masked: Masked
    mlm_logits: Tensor
    nsp_loss: Tensor | None = None
    nsp_logits: Tensor | None = None


class CompactBert(PretrainedText):
    """A small BERT: masked language modelling and, where the data has it, next-sentence prediction.

    The 24 models of the paper are num_layers in {2, 4, 6, 8, 10, 12} x hidden_size in {128, 256, 512, 768}, with
    hidden_size / 64 heads and 4 * hidden_size in the feed-forward layers. Defaults are BERT-Tiny.

    Args:
        num_layers, hidden_size, num_heads, vocab_size, max_positions: the encoder; num_heads None is hidden_size / 64.
        tokenizer: path or hub id; "data" takes the data's, and the weights carry it along; None for none.
        heads: "mlm_nsp" (official), "mlm" (packed text without pairs), or "none" (the encoder alone, no pre-training).
        act: "gelu_tanh" as the TensorFlow code has it, or "gelu" (exact) as transformers has it for the same weights.
        mask_prob, max_predictions: share of the tokens that are predicted, and at most how many of a sequence.
        mask_unit: "token" (word pieces, the paper's models), "word" or "span".
        dropout: of hidden states and attention.
        init_std: of the start values.
        init_positions: "normal", or "sinusoidal" for trainings too short to find out what a neighbour is.
        lr, weight_decay, betas, eps, warmup_steps: Adam without bias correction; the rate rises over the warm-up,
            then is lr * (1 - t / T). warmup_steps below 1 is a share of all steps.
        clip_grad: largest global gradient norm.
    """

    def __init__(
        self,
        num_layers: int = 2,
        hidden_size: int = 128,
        num_heads: int | None = None,
        vocab_size: int = 30522,
        max_positions: int = 512,
        tokenizer: str | None = FROM_DATA,
        heads: Literal["mlm_nsp", "mlm", "none"] = "mlm_nsp",
        act: Literal["gelu", "gelu_tanh"] = "gelu",
        mask_prob: float = 0.15,
        max_predictions: int | None = None,
        mask_unit: Unit = "token",
        dropout: float = 0.1,
        init_std: float = 0.02,
        init_positions: Literal["normal", "sinusoidal"] = "normal",
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        warmup_steps: float = 10000,
        clip_grad: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.check_encoder()
        num_heads = max(1, hidden_size // 64) if num_heads is None else num_heads
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=4 * hidden_size,
            hidden_act="gelu_pytorch_tanh" if act == "gelu_tanh" else "gelu",
            max_position_embeddings=max_positions,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=None,  # the official table has no special row for padding
        )
        config._attn_implementation = "sdpa"
        self.backbone = BertModel(config)
        self.mlm_head: MaskedLMHead | None = None
        self.nsp_head: nn.Linear | None = None
        if heads != "none":
            self.mlm_head = MaskedLMHead(hidden_size, hidden_size, vocab_size, tanh_gelu=act == "gelu_tanh")
        if heads == "mlm_nsp":
            self.nsp_head = nn.Linear(hidden_size, 2)
        else:
            # Nothing trains the pooler without next-sentence prediction; fine-tuning does.
            self.backbone.pooler.requires_grad_(heads == "none")
        init_truncated(self, init_std)
        if init_positions == "sinusoidal":
            init_sinusoidal(self.backbone.embeddings.position_embeddings, init_std)
        self.add_tokenizer_buffer()

    # ------------------------------------------------------------------ the representation

    def forward_tokens(self, batch: Batch) -> Tensor:
        """`input_ids` and, where given, `attention_mask` and `token_type_ids`, (B, L), to hidden states (B, L, D)."""
        mask = additive_mask(batch.get("attention_mask"), self.backbone.embeddings.LayerNorm.weight.dtype)
        embedded = self.backbone.embeddings(input_ids=batch["input_ids"], token_type_ids=batch.get("token_type_ids"))
        return self.backbone.encoder(embedded, attention_mask=mask).last_hidden_state

    def pooled(self, batch: Batch) -> Tensor:
        """To (B, D): dense and tanh on [CLS], what classifiers are put on."""
        return self.backbone.pooler(self.forward_tokens(batch))

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        if weights.is_tensorflow(state_dict):
            return weights.from_tensorflow(state_dict)
        return weights.from_transformers(state_dict) if weights.is_transformers(state_dict) else state_dict

    def load_weights(self, state_dict: StateDict, source: str = "these weights") -> None:
        """As every module's; with heads "none" the official file's pre-training heads are left out."""
        state = self.convert_state_dict(state_dict)
        if self.hparams.heads == "none" and state is not state_dict:
            state = {key: value for key, value in state.items() if not key.startswith(("mlm_head.", "nsp_head."))}
        super().load_weights(state, source)

    def official_state_dict(self) -> StateDict:
        """The weights under the official TensorFlow variable names."""
        return weights.to_tensorflow(self.state_dict())

    def to_transformers(self) -> Any:
        """transformers' `BertForPreTraining` with these weights, ready for save_pretrained."""
        if self.hparams.heads != "mlm_nsp":
            raise ZooError("BertForPreTraining has both heads, this model has not: take `backbone` instead.")
        model = BertForPreTraining(BertConfig.from_dict({**self.backbone.config.to_dict(), "pad_token_id": 0}))
        model.load_state_dict(weights.to_transformers(self.state_dict()))
        return model.eval()

    # ------------------------------------------------------------------ the method

    def pretraining_task(self, batch: Batch) -> PretrainingOutput:
        """One step. Masks are drawn here, unless the batch brings `masked_lm_positions`, `_ids` and `_weights`."""
        h = self.hparams
        if self.mlm_head is None:
            raise ZooError("This is an encoder alone (heads 'none'): pre-training needs model.heads mlm or mlm_nsp.")
        ids = batch["input_ids"]
        real = batch.get("attention_mask", torch.ones_like(ids))
        if "masked_lm_positions" in batch:
            masked = Masked(ids, *(batch[f"masked_lm_{name}"] for name in ("positions", "ids", "weights")))
        else:
            masked = mask_for_mlm(
                ids,
                real,
                self.special,
                h.vocab_size,
                mask_prob=h.mask_prob,
                max_predictions=h.max_predictions,
                unit=h.mask_unit,
                continues=self._continues(ids.device) if h.mask_unit == "word" else None,
            )
        tokens = self.forward_tokens({**batch, "input_ids": masked.input_ids})
        with full_precision(ids.device.type):
            table = self.backbone.embeddings.word_embeddings.weight.float()
            logits = self.mlm_head(gather_places(tokens, masked.positions).float(), table)
            loss = mlm_loss = masked_lm_loss(logits, masked.ids, masked.weights, eps=1e-5)[0]
        if self.nsp_head is None:
            return PretrainingOutput(loss, mlm_loss, masked, logits)
        if "next_sentence_label" not in batch:
            raise ZooError("Next-sentence prediction needs sentence pairs: set data.examples bert, or model.heads mlm.")
        pooled = self.backbone.pooler(tokens)
        with full_precision(ids.device.type):
            nsp_logits = self.nsp_head(pooled.float())
            nsp_loss = F.cross_entropy(nsp_logits, batch["next_sentence_label"])
        return PretrainingOutput(mlm_loss + nsp_loss, mlm_loss, masked, logits, nsp_loss, nsp_logits)

    def _continues(self, device: torch.device) -> Tensor:
        if self.tokenizer is None:
            raise ZooError("mask_unit 'word' needs a tokenizer, to know which word pieces continue a word.")
        names = [self.tokenizer.id_to_token(i) or "" for i in range(self.hparams.vocab_size)]
        return torch.tensor([name.startswith("##") for name in names], device=device)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.pretraining_task(batch)
        values = {"train/loss": out.loss.detach(), "train/mlm_loss": out.mlm_loss.detach()}
        if out.nsp_loss is not None:
            values["train/nsp_loss"] = out.nsp_loss.detach()
        self.log_dict(values, batch_size=len(batch["input_ids"]))
        return out.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        ids = batch["input_ids"]
        with self.same_draws(batch_idx):
            out = self.pretraining_task(batch)
        values = {"loss": out.loss, **self.masked_scores(out.mlm_loss, out.mlm_logits, out.masked)}
        if out.nsp_logits is not None:
            labels = batch["next_sentence_label"]
            values["nsp_acc"] = (out.nsp_logits.argmax(-1) == labels).float().mean()
            values["nsp_random"] = labels.float().mean()  # more than half: a lone sentence always gets a random next
        self.log_dict(
            {f"val/{key}": value for key, value in values.items()}, prog_bar=True, sync_dist=True, batch_size=len(ids)
        )

    def baselines(self) -> dict[str, tuple[str, str, float]]:
        """What the report compares with: guessing the most frequent token, and the commoner answer."""
        rows = super().baselines()
        share = self.trainer.callback_metrics.get("val/nsp_random")
        if share is not None:
            rows["val/nsp_acc"] = ("next-sentence accuracy", "always the commoner answer", float(max(share, 1 - share)))
        return rows

    def figures(self, batch: Batch) -> dict[str, Any]:
        """The first sentences with what the model guesses for the masked words, and the curves of the run."""
        from zoo.callbacks.curves import draw_curves
        from zoo.papers.well_read_students.figures import CURVES

        curves = draw_curves(self.trainer, CURVES, baselines=("val/unigram_acc",))
        return self._guesses(batch) | ({} if curves is None else {"curves": curves})

    def _guesses(self, batch: Batch) -> dict[str, Any]:
        from zoo.papers.well_read_students.figures import draw_guesses

        if self.tokenizer is None or self.mlm_head is None:
            return {}
        few = {key: value[:5] for key, value in batch.items()}
        with self.same_draws(0):
            out = self.pretraining_task(few)
        return {"masked_words": draw_guesses(self.tokenizer, few["input_ids"], out)}
