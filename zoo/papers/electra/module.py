"""ELECTRA as a LightningModule: find the tokens that a small generator replaced (Clark et al., ICLR 2020,
arXiv 2003.10555).

Shape letters: B sequences, L tokens, N prediction slots of a sequence, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.classification import BinaryAUROC
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining, ElectraModel

from zoo.errors import ZooError
from zoo.module import StateDict, full_precision
from zoo.nn.text import additive_mask, mean_over_tokens
from zoo.nn.text_mlm import Masked, MaskedLMHead, gather_places, init_truncated, masked_lm_loss
from zoo.nn.text_module import FROM_DATA, TextModule
from zoo.optim import clip_gradients
from zoo.optim_text import BertAdam, linear_schedule, text_groups
from zoo.papers.electra import losses, weights
from zoo.papers.electra.corruption import mask_tokens, replace_tokens, sample
from zoo.papers.electra.network import (
    DiscriminatorHead,
    Generator,
    electra_config,
    encode,
    generator_config,
)

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class ElectraOutput:
    """What one step gives; losses are scalars.

    Attributes:
        loss: gen_weight * mlm_loss + disc_weight * disc_loss.
        mlm_loss, mlm_logits: the generator's, logits (B, N, V).
        masked: what was masked.
        sampled: (B, N) the generator's tokens.
        disc_input_ids, disc_labels, disc_logits: (B, L) the discriminator's, None for the "mlm" objective.
        disc_loss: None for the "mlm" objective.
    """

    loss: Tensor
    mlm_loss: Tensor
    mlm_logits: Tensor
    masked: Masked
    sampled: Tensor
    disc_input_ids: Tensor | None = None
    disc_labels: Tensor | None = None
    disc_logits: Tensor | None = None
    disc_loss: Tensor | None = None


class Electra(TextModule):
    """Pre-trains a text encoder by replaced-token detection.

    A small masked language model (the generator) fills masked places with samples; the discriminator says of every
    token whether it is the original. Both learn together; the discriminator is the result (`backbone`). Defaults are
    ELECTRA-Small of the paper; `official_masking` reproduces the released code where it differs (README.md).

    Args:
        vocab_size, hidden_size, num_layers, num_heads, intermediate_size, embedding_size, max_positions: the
            discriminator (or the one network of objective "mlm").
        tokenizer: path or hub id; "data" takes the data's, and the weights carry it along; None for none.
        objective: "rtd" (ELECTRA), or "mlm" (masked language model of full size, the BERT ablation).
        generator: "mlm" (learned), "uniform" (replaces by uniformly drawn tokens), or "none" (weights of a
            discriminator alone: features, no pre-training).
        generator_size, generator_layers: the generator's width and depth as shares of the discriminator's.
        sharing: what generator and discriminator share: the "embeddings" (paper), "none", or "all" weights.
        mask_prob: share of the tokens that are masked.
        official_masking: draw places with replacement, leave 15 % of them unmasked, average the ids of places drawn
            twice. The paper: distinct places, all masked.
        gen_weight, disc_weight: of the two losses.
        temperature: of the generator's samples.
        disallow_correct: never sample the original token.
        dropout: of hidden states and attention, both networks.
        init_std: of the start values.
        lr, weight_decay, betas, eps, warmup_steps: Adam without bias correction; rate (1 - t/T) * min(1, t/warm-up).
            warmup_steps below 1 is a share of all steps.
        clip_grad: largest global gradient norm over both networks.
    """

    # As in the official code, both losses are means over a device's own tokens.
    per_device_loss = True

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 256,
        num_layers: int = 12,
        num_heads: int = 4,
        intermediate_size: int = 1024,
        embedding_size: int = 128,
        max_positions: int = 512,
        tokenizer: str | None = FROM_DATA,
        objective: Literal["rtd", "mlm"] = "rtd",
        generator: Literal["mlm", "uniform", "none"] = "mlm",
        generator_size: float = 0.25,
        generator_layers: float = 1.0,
        sharing: Literal["embeddings", "none", "all"] = "embeddings",
        mask_prob: float = 0.15,
        official_masking: bool = False,
        gen_weight: float = 1.0,
        disc_weight: float = 50.0,
        temperature: float = 1.0,
        disallow_correct: bool = False,
        dropout: float = 0.1,
        init_std: float = 0.02,
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        warmup_steps: float = 10000,
        clip_grad: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._check_arguments()
        config = electra_config(
            vocab_size, hidden_size, num_layers, num_heads, intermediate_size, embedding_size, max_positions, dropout
        )
        self.backbone = ElectraModel(config)
        self.generator: Generator | None = None
        self.generator_predictions: MaskedLMHead | None = None
        self.discriminator_predictions: DiscriminatorHead | None = None
        if objective == "rtd":
            self.discriminator_predictions = DiscriminatorHead(hidden_size)
        if objective == "mlm" or generator == "mlm":
            width, table = hidden_size, embedding_size
            if objective == "rtd" and sharing != "all":
                small = generator_config(config, generator_size, generator_layers, own_embeddings=sharing == "none")
                self.generator = Generator(small, own_embeddings=sharing == "none")
                width, table = small.hidden_size, small.embedding_size
            self.generator_predictions = MaskedLMHead(width, table, vocab_size)
        # The official code names no start value for these two, so TensorFlow's own.
        init_truncated(self, init_std, glorot=("embeddings_project", "dense_prediction"))
        self.add_tokenizer_buffer()
        self.auc = BinaryAUROC()

    def _check_arguments(self) -> None:
        h = self.hparams
        if h.hidden_size % h.num_heads:
            raise ZooError(f"hidden_size {h.hidden_size} is not a multiple of num_heads {h.num_heads}.")
        if not 0 < h.mask_prob < 1:
            raise ZooError(f"mask_prob is a share between 0 and 1, not {h.mask_prob}.")
        if h.temperature <= 0:
            raise ZooError(f"temperature lies above 0, not at {h.temperature}.")
        if h.objective == "mlm" and h.generator != "mlm":
            raise ZooError("objective 'mlm' trains the masked language model itself: leave generator at 'mlm'.")
        if h.generator != "mlm" and h.sharing != "embeddings":
            raise ZooError(f"sharing {h.sharing!r} has no meaning without a learned generator.")
        if not 0 < h.generator_size <= 1 or not 0 < h.generator_layers <= 1:
            raise ZooError(
                "generator_size and generator_layers are shares of the discriminator, above 0 and at most 1."
            )

    # ------------------------------------------------------------------ the representation

    def forward_tokens(self, batch: Batch) -> Tensor:
        """`input_ids` and, where given, `attention_mask` and `token_type_ids`, (B, L), to hidden states (B, L, D)."""
        mask = additive_mask(batch.get("attention_mask"), self.backbone.embeddings.LayerNorm.weight.dtype)
        return encode(self.backbone.embeddings, self.backbone, batch["input_ids"], batch.get("token_type_ids"), mask)

    def forward(self, batch: Batch) -> Tensor:
        """To (B, D): the mean of the hidden states of all tokens that are no padding.

        ELECTRA has no pooler; fine-tuning takes the hidden state of [CLS] (`forward_tokens(batch)[:, 0]`).
        """
        return mean_over_tokens(self.forward_tokens(batch), batch.get("attention_mask"))

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        if weights.is_tensorflow(state_dict):
            return weights.from_tensorflow(state_dict)
        return weights.from_transformers(state_dict) if weights.is_transformers(state_dict) else state_dict

    def official_state_dict(self) -> StateDict:
        """The weights under the official TensorFlow variable names."""
        return weights.to_tensorflow(self.state_dict())

    def to_transformers(self, network: Literal["discriminator", "generator"] = "discriminator") -> Any:
        """transformers' `ElectraForPreTraining` or `ElectraForMaskedLM` with these weights, for save_pretrained."""
        wants_generator = network == "generator"
        if (self.generator_predictions if wants_generator else self.discriminator_predictions) is None:
            raise ZooError(f"This model has no {network}.")
        source = self.generator.config if wants_generator and self.generator is not None else self.backbone.config
        config = ElectraConfig.from_dict({**source.to_dict(), "pad_token_id": self.special.pad})
        model = (ElectraForMaskedLM if wants_generator else ElectraForPreTraining)(config)
        model.load_state_dict(weights.to_transformers(self.state_dict(), network))
        return model.eval()

    # ------------------------------------------------------------------ the method

    def generator_logits(self, masked: Masked, types: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, N, V) in float32: the generator's scores at the prediction slots only."""
        if self.generator_predictions is None:  # uniform
            return torch.zeros(
                *masked.positions.shape, self.hparams.vocab_size, device=masked.positions.device, dtype=torch.float32
            )
        own = self.generator is not None and self.generator.embeddings is not None
        embeddings = self.generator.embeddings if own else self.backbone.embeddings  # type: ignore[union-attr]
        hidden = encode(embeddings, self.generator or self.backbone, masked.input_ids, types, mask)
        at_slots = gather_places(hidden, masked.positions)
        with full_precision(hidden.device.type):  # half-precision logits tie and bias the samples
            return self.generator_predictions(at_slots.float(), embeddings.word_embeddings.weight.float())

    def pretraining_task(
        self,
        batch: Batch,
        *,
        positions: Tensor | None = None,
        mask_uniform: Tensor | None = None,
        gumbel_uniform: Tensor | None = None,
    ) -> ElectraOutput:
        """One step of ELECTRA on `batch`. The three draws are made here unless given (see `corruption`)."""
        h = self.hparams
        if h.generator == "none":
            raise ZooError("These are the weights of a discriminator alone: pre-training needs a generator.")
        ids, types = batch["input_ids"], batch.get("token_type_ids")
        attention_mask = batch.get("attention_mask")
        real = torch.ones_like(ids) if attention_mask is None else attention_mask
        mask = additive_mask(attention_mask)

        # 1. Mask k tokens of each sequence and let the generator fill the places.
        masked = mask_tokens(
            ids, real, self.special, h.mask_prob, official=h.official_masking, positions=positions, uniform=mask_uniform
        )
        logits = self.generator_logits(masked, types, mask)
        with full_precision(ids.device.type):
            mlm_loss, _ = masked_lm_loss(logits, masked.ids, masked.weights)

            # 2. Sample from it, without a gradient.
            sampled = sample(
                logits,
                temperature=h.temperature,
                forbid=masked.ids if h.disallow_correct else None,
                gumbel_uniform=gumbel_uniform,
            )
        total = h.gen_weight * mlm_loss
        if self.discriminator_predictions is None:
            return ElectraOutput(total, mlm_loss, logits, masked, sampled)

        # 3. The discriminator tells the replaced tokens from the original ones, at every place.
        corrupted, labels = replace_tokens(ids, masked, sampled, official=h.official_masking)
        hidden = encode(self.backbone.embeddings, self.backbone, corrupted, types, mask)
        disc_logits = self.discriminator_predictions(hidden)
        with full_precision(ids.device.type):
            disc_loss = losses.replaced_token_loss(disc_logits, labels, real)
            total = total + h.disc_weight * disc_loss
        return ElectraOutput(
            total, mlm_loss, logits, masked, sampled, corrupted, labels, disc_logits.float(), disc_loss
        )

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.pretraining_task(batch)
        values = {"train/loss": out.loss.detach(), "train/mlm_loss": out.mlm_loss.detach()}
        if out.disc_loss is not None:
            values["train/disc_loss"] = out.disc_loss.detach()
            values["train/replaced"] = out.disc_labels.float().mean()  # type: ignore[union-attr]
        self.log_dict(values, batch_size=len(batch["input_ids"]))
        return out.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        ids = batch["input_ids"]
        # The same draws at every validation, and none taken from training's generator.
        with torch.random.fork_rng(devices=[ids.device] if ids.device.type == "cuda" else []):
            torch.manual_seed(batch_idx)
            out = self.pretraining_task(batch)
        used, count = out.masked.weights, out.masked.weights.sum().clamp(min=1)
        hits = out.mlm_logits.argmax(-1) == out.masked.ids
        values = {"loss": out.loss, "mlm_loss": out.mlm_loss, "mlm_acc": (hits * used).sum() / count}
        values["sampled_acc"] = ((out.sampled == out.masked.ids) * used).sum() / count
        if self.most_frequent_token is not None:
            values["unigram_acc"] = ((out.masked.ids == self.most_frequent_token) * used).sum() / count
        if out.disc_logits is not None and out.disc_labels is not None:
            real = batch.get("attention_mask", torch.ones_like(ids))
            share = (out.disc_labels * real).sum() / real.sum()
            values["disc_loss"] = out.disc_loss  # type: ignore[assignment]
            # What always answering with the share of replaced tokens would cost.
            values["disc_loss_prior"] = -torch.special.xlogy(share, share) - torch.special.xlogy(1 - share, 1 - share)
            values |= losses.detection_scores(out.disc_logits, out.disc_labels, real)
            chosen = real.bool()
            self.auc(out.disc_logits[chosen].sigmoid(), out.disc_labels[chosen])
            self.log("val/disc_auc", self.auc, prog_bar=True, batch_size=len(ids))
        self.log_dict({f"val/{key}": value for key, value in values.items()}, sync_dist=True, batch_size=len(ids))

    def baselines(self) -> dict[str, tuple[str, str, float]]:
        """What the report compares the validation metrics with: chance, and guessing the most frequent token."""
        rows = {"val/disc_auc": ("replaced-token AUC", "chance", 0.5)} if self.hparams.objective == "rtd" else {}
        unigram = self.trainer.callback_metrics.get("val/unigram_acc")
        if unigram is not None and self.hparams.generator == "mlm":
            rows["val/mlm_acc"] = ("masked-token accuracy", "most frequent token", float(unigram))
        return rows

    def figures(self, batch: Batch) -> dict[str, Any]:
        """Sentences as the discriminator sees them, and the curves of the run."""
        from zoo.papers.electra.figures import draw_curves, draw_detection

        drawn = {}
        if self.hparams.objective == "rtd" and self.tokenizer is not None:
            few = {key: value[:6] for key, value in batch.items()}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                out = self.pretraining_task(few)
            drawn["replaced_tokens"] = draw_detection(self.tokenizer, few, out)
        curves = draw_curves(self.trainer)
        return drawn | ({"curves": curves} if curves is not None else {})

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        groups = text_groups(self, lr=h.lr, weight_decay=h.weight_decay)
        optimizer = BertAdam(groups, lr=h.lr, betas=tuple(h.betas), eps=h.eps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": linear_schedule(self, optimizer, warmup=h.warmup_steps, kind="electra"),
        }

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip_gradients(self, self.hparams.clip_grad, "global", gradient_clip_val)
