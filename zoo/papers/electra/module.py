"""ELECTRA as a LightningModule: find the tokens that a small generator replaced (Clark et al., ICLR 2020,
arXiv 2003.10555).

Shape letters: B sequences, L tokens, N prediction slots of a sequence, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.classification import BinaryAUROC
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining, ElectraModel

from zoo.errors import ZooError
from zoo.module import StateDict, full_precision
from zoo.nn.text import additive_mask
from zoo.nn.text_mlm import (
    Masked,
    MaskedLMHead,
    candidates,
    gather_places,
    init_sinusoidal,
    init_truncated,
    masked_lm_loss,
)
from zoo.nn.text_module import FROM_DATA
from zoo.nn.text_pretraining import PretrainedText
from zoo.papers.electra import losses, weights
from zoo.papers.electra.corruption import mask_tokens, replace_tokens, sample
from zoo.papers.electra.network import (
    DiscriminatorHead,
    Generator,
    TokenHead,
    TwoTowers,
    electra_config,
    encode,
    generator_config,
)
from zoo.papers.electra.stages import ElectraOutput, check_modes, start_second_stage

Batch = dict[str, Tensor]
Objective = Literal["rtd", "rtd_masked", "mlm", "replace_mlm", "all_tokens_mlm", "electric"]
_DETECTS = ("rtd", "rtd_masked", "electric")


class Electra(PretrainedText):
    """Pre-trains a text encoder by replaced-token detection.

    A small masked language model (the generator) fills masked places with samples; the discriminator says of every
    token whether it is the original. Both learn together; the discriminator is the result (`backbone`). Defaults are
    ELECTRA-Small of the paper; `official_masking` reproduces the released code where it differs (README.md).

    Args:
        vocab_size, hidden_size, num_layers, num_heads, intermediate_size, embedding_size, max_positions: the
            discriminator (or the one network of objective "mlm").
        tokenizer: path or hub id; "data" takes the data's, and the weights carry it along; None for none.
        objective: what the main network learns.
            "rtd": ELECTRA. "rtd_masked": the same, loss on the masked places only ("ELECTRA 15%", section 3.4).
            "mlm": masked language model of full size without a generator (BERT).
            "replace_mlm": what stood in the masked places, which hold the generator's samples (3.4).
            "all_tokens_mlm": what stood in every place, by copying or predicting (3.4).
            "electric": energies against the generator's noise (Clark et al., EMNLP 2020); needs "two_tower".
        generator: "mlm" (learned), "two_tower" (learned, reads from left and right: Electric's), "uniform" (replaces by
            uniformly drawn tokens), "frozen" (second stage of two-stage training), or "none" (weights of a
            discriminator alone: features, no pre-training).
        init_from: "frozen" only: a checkpoint, run folder or name of the first stage (objective "mlm", the same sizes),
            from which both generator and discriminator start.
        generator_size, generator_layers: the generator's width and depth as shares of the discriminator's.
        sharing: what generator and discriminator share: the "embeddings" (paper), "none", or "all" weights.
        mask_prob: share of the tokens that are masked.
        official_masking: draw places with replacement, leave 15 % of them unmasked, average the ids of places drawn
            twice. The paper: distinct places, all masked.
        gen_weight, disc_weight: of the two losses; disc_weight None is 50, and 1 for the main network's MLM objectives.
        temperature: of the generator's samples.
        disallow_correct: never sample the original token.
        dropout: of hidden states and attention, both networks.
        init_std: of the start values; init_positions: of the position table, "normal" as the paper, or "sinusoidal" for
            trainings of minutes.
        lr, weight_decay, betas, eps, warmup_steps: Adam without bias correction; rate (1 - t/T) * min(1, t/warm-up).
            warmup_steps below 1 is a share of all steps.
        clip_grad: largest global gradient norm over both networks.
    """

    schedule = "electra"

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
        objective: Objective = "rtd",
        generator: Literal["mlm", "two_tower", "uniform", "frozen", "none"] = "mlm",
        init_from: str | None = None,
        generator_size: float = 0.25,
        generator_layers: float = 1.0,
        sharing: Literal["embeddings", "none", "all"] = "embeddings",
        mask_prob: float = 0.15,
        official_masking: bool = False,
        gen_weight: float = 1.0,
        disc_weight: float | None = None,
        temperature: float = 1.0,
        disallow_correct: bool = False,
        dropout: float = 0.1,
        init_std: float = 0.02,
        init_positions: Literal["normal", "sinusoidal"] = "normal",
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        warmup_steps: float = 10000,
        clip_grad: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.check_encoder()
        check_modes(self.hparams)
        config = electra_config(
            vocab_size, hidden_size, num_layers, num_heads, intermediate_size, embedding_size, max_positions, dropout
        )
        self.backbone = ElectraModel(config)
        self.generator: Generator | TwoTowers | None = None
        self.generator_predictions: MaskedLMHead | None = None
        self.cloze_predictions: MaskedLMHead | None = None
        self.discriminator_predictions: DiscriminatorHead | None = None
        self.token_predictions: TokenHead | None = None
        if objective in _DETECTS:
            self.discriminator_predictions = DiscriminatorHead(hidden_size)
        elif objective != "mlm":
            self.token_predictions = TokenHead(hidden_size, embedding_size, vocab_size, objective == "all_tokens_mlm")
        self._build_generator(config)
        # The official code names no start value for these two, so TensorFlow's own.
        init_truncated(self, init_std, glorot=("embeddings_project", "dense_prediction"))
        if init_positions == "sinusoidal":
            init_sinusoidal(self.backbone.embeddings.position_embeddings, init_std)
        self.add_tokenizer_buffer()
        self.auc = BinaryAUROC()

    def _build_generator(self, config: ElectraConfig) -> None:
        h = self.hparams
        if h.generator in ("uniform", "none"):
            return
        own = h.sharing == "none"
        small = generator_config(config, h.generator_size, h.generator_layers, own_embeddings=own)
        if h.generator == "two_tower":
            self.generator = TwoTowers(small, own)
            self.cloze_predictions = MaskedLMHead(2 * small.hidden_size, small.embedding_size, h.vocab_size)
            return
        if h.objective == "mlm" or h.sharing == "all":
            small = config
        elif h.generator == "frozen":  # as large as the discriminator, nothing shared
            self.generator = Generator(config, own_embeddings=True)
            small = config
        else:
            self.generator = Generator(small, own)
        self.generator_predictions = MaskedLMHead(small.hidden_size, small.embedding_size, h.vocab_size)
        if h.generator == "frozen":
            self.generator.requires_grad_(False)  # type: ignore[union-attr]
            self.generator_predictions.requires_grad_(False)

    @property
    def disc_weight(self) -> float:
        """What the main network's loss is multiplied with."""
        weight = self.hparams.disc_weight
        return weight if weight is not None else 50.0 if self.hparams.objective in _DETECTS else 1.0

    # ------------------------------------------------------------------ the representation

    def forward_tokens(self, batch: Batch) -> Tensor:
        """`input_ids` and, where given, `attention_mask` and `token_type_ids`, (B, L), to hidden states (B, L, D)."""
        mask = additive_mask(batch.get("attention_mask"), self.backbone.embeddings.LayerNorm.weight.dtype)
        return encode(self.backbone.embeddings, self.backbone, batch["input_ids"], batch.get("token_type_ids"), mask)

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
        source = (
            self.generator.config if wants_generator and isinstance(self.generator, Generator) else self.backbone.config
        )
        config = ElectraConfig.from_dict({**source.to_dict(), "pad_token_id": self.special.pad})
        model = (ElectraForMaskedLM if wants_generator else ElectraForPreTraining)(config)
        model.load_state_dict(weights.to_transformers(self.state_dict(), network))
        return model.eval()

    # ------------------------------------------------------------------ the method

    def generator_logits(self, masked: Masked, types: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, N, V) in float32: the generator's scores at the prediction slots only (not for two towers)."""
        if self.generator_predictions is None:  # uniform
            return torch.zeros(
                *masked.positions.shape, self.hparams.vocab_size, device=masked.positions.device, dtype=torch.float32
            )
        generator = self.generator if isinstance(self.generator, Generator) else None
        own = None if generator is None else generator.embeddings
        embeddings = self.backbone.embeddings if own is None else own
        hidden = encode(embeddings, generator or self.backbone, masked.input_ids, types, mask)
        at_slots = gather_places(hidden, masked.positions)
        with full_precision(hidden.device.type):  # half-precision logits tie and bias the samples
            return self.generator_predictions(at_slots.float(), embeddings.word_embeddings.weight.float())

    def cloze_logits(self, ids: Tensor, types: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, L, V) in float32: the two towers' scores of every token given all others."""
        assert isinstance(self.generator, TwoTowers)
        assert self.cloze_predictions is not None
        own = self.generator.ltr.embeddings
        table = (self.backbone.embeddings if own is None else own).word_embeddings.weight
        hidden = self.generator(self.backbone.embeddings, ids, types, mask)
        with full_precision(hidden.device.type):
            return self.cloze_predictions(hidden.float(), table.float())

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

        # 1. Choose k tokens of each sequence; the generator predicts them from the others.
        masked = mask_tokens(
            ids, real, self.special, h.mask_prob, official=h.official_masking, positions=positions, uniform=mask_uniform
        )
        cloze = self.cloze_logits(ids, types, mask) if h.generator == "two_tower" else None
        logits = self.generator_logits(masked, types, mask) if cloze is None else gather_places(cloze, masked.positions)
        with full_precision(ids.device.type):
            gen_loss = mlm_loss = masked_lm_loss(logits, masked.ids, masked.weights)[0]
            if cloze is not None:  # two towers learn from every token
                gen_loss = masked_lm_loss(cloze, ids, candidates(ids, real, self.special).float())[0]

            # 2. Sample from it, without a gradient.
            sampled = sample(
                logits,
                temperature=h.temperature,
                forbid=masked.ids if h.disallow_correct else None,
                gumbel_uniform=gumbel_uniform,
            )
        total = h.gen_weight * gen_loss
        if h.objective == "mlm":
            return ElectraOutput(total, mlm_loss, logits, masked, sampled, gen_loss)

        # 3. The main network reads the samples in their places, and tells the replaced tokens from the original ones.
        corrupted, written = replace_tokens(ids, masked, sampled, official=h.official_masking)
        hidden = encode(self.backbone.embeddings, self.backbone, corrupted, types, mask)
        if self.token_predictions is not None:
            disc_loss, token_logits = self._predict_tokens(hidden, ids, corrupted, masked, real)
            total = total + self.disc_weight * disc_loss
            return ElectraOutput(
                total, mlm_loss, logits, masked, sampled, gen_loss, corrupted, None, None, disc_loss, token_logits
            )
        assert self.discriminator_predictions is not None
        disc_logits = self.discriminator_predictions(hidden)
        labels = (corrupted != ids).long()
        with full_precision(ids.device.type):
            if h.objective == "electric":  # every sample is noise, also one that hits the original
                assert cloze is not None
                labels = written.long()
                disc_logits = losses.electric_logits(disc_logits, cloze, corrupted, h.mask_prob)
            counted = real * written if h.objective == "rtd_masked" else real
            disc_loss = losses.replaced_token_loss(disc_logits, labels, counted)
            total = total + self.disc_weight * disc_loss
        return ElectraOutput(
            total, mlm_loss, logits, masked, sampled, gen_loss, corrupted, labels, disc_logits.float(), disc_loss
        )

    def _predict_tokens(
        self, hidden: Tensor, ids: Tensor, corrupted: Tensor, masked: Masked, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and logits of the two objectives that predict tokens from the generator's samples."""
        assert self.token_predictions is not None
        everywhere = self.hparams.objective == "all_tokens_mlm"
        hidden = hidden if everywhere else gather_places(hidden, masked.positions)
        with full_precision(ids.device.type):
            logits, copy = self.token_predictions(
                hidden.float(), self.backbone.embeddings.word_embeddings.weight.float()
            )
            if not everywhere:
                return masked_lm_loss(logits, masked.ids, masked.weights)[0], logits
            nll = losses.copy_nll(logits, copy, corrupted, ids) * real
            return nll.sum() / (real.sum() + 1e-6), logits

    @torch.no_grad()
    def pseudo_log_likelihood(self, batch: Batch) -> Tensor:
        """(B,) Electric's score of a text: minus the energies of its tokens, summed (up to a constant a token)."""
        if self.hparams.objective != "electric" or self.discriminator_predictions is None:
            raise ZooError("Only a model of objective 'electric' scores text.")
        energies = self.discriminator_predictions(self.forward_tokens(batch)).float()
        ids = batch["input_ids"]
        real = batch.get("attention_mask", torch.ones_like(ids))
        return -(energies * candidates(ids, real, self.special)).sum(1)

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.hparams.generator == "frozen" and self.trainer.ckpt_path is None:
            start_second_stage(self)  # a resumed run has these weights

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.pretraining_task(batch)
        values = {"train/loss": out.loss.detach(), "train/mlm_loss": out.mlm_loss.detach()}
        if out.gen_loss is not out.mlm_loss:
            values["train/cloze_loss"] = out.gen_loss.detach()
        if out.disc_loss is not None:
            values["train/disc_loss"] = out.disc_loss.detach()
        if out.disc_labels is not None:
            values["train/replaced"] = out.disc_labels.float().mean()
        self.log_dict(values, batch_size=len(batch["input_ids"]))
        return out.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        ids = batch["input_ids"]
        with self.same_draws(batch_idx):
            out = self.pretraining_task(batch)
        values = {"loss": out.loss, **self.masked_scores(out.mlm_loss, out.mlm_logits, out.masked)}
        used, count = out.masked.weights, out.masked.weights.sum().clamp(min=1)
        values["sampled_acc"] = ((out.sampled == out.masked.ids) * used).sum() / count
        if out.disc_loss is not None:
            values["disc_loss"] = out.disc_loss
        if out.token_logits is not None:  # the main network's own guesses, at the same places
            guesses = out.token_logits.argmax(-1)
            if self.hparams.objective == "all_tokens_mlm":
                guesses = guesses.gather(1, out.masked.positions)
            values["main_acc"] = ((guesses == out.masked.ids) * used).sum() / count
        if out.disc_logits is not None and out.disc_labels is not None:
            real = batch.get("attention_mask", torch.ones_like(ids))
            share = (out.disc_labels * real).sum() / real.sum()
            # What always answering with the share of replaced tokens would cost.
            values["disc_loss_prior"] = -torch.special.xlogy(share, share) - torch.special.xlogy(1 - share, 1 - share)
            values |= losses.detection_scores(out.disc_logits, out.disc_labels, real)
            chosen = real.bool()
            self.auc(out.disc_logits[chosen].sigmoid(), out.disc_labels[chosen])
            self.log("val/disc_auc", self.auc, prog_bar=True, batch_size=len(ids))
        self.log_dict({f"val/{key}": value for key, value in values.items()}, sync_dist=True, batch_size=len(ids))

    def baselines(self) -> dict[str, tuple[str, str, float]]:
        """What the report compares the validation metrics with: chance, and guessing the most frequent token."""
        flat = "" if self.hparams.temperature == 1 else f", samples at temperature {self.hparams.temperature:g}"
        rows = {"val/disc_auc": (f"replaced-token AUC{flat}", "chance", 0.5)} if self.discriminator_predictions else {}
        return rows | (super().baselines() if self.hparams.generator != "uniform" else {})

    def figures(self, batch: Batch) -> dict[str, Any]:
        """Sentences as the discriminator sees them, and the curves of the run."""
        from zoo.papers.electra.figures import draw_curves, draw_detection

        drawn = {}
        if self.discriminator_predictions is not None and self.tokenizer is not None:
            few = {key: value[:6] for key, value in batch.items()}
            with self.same_draws(0):
                out = self.pretraining_task(few)
            drawn["replaced_tokens"] = draw_detection(self.tokenizer, few, out)
        curves = draw_curves(self.trainer)
        return drawn | ({"curves": curves} if curves is not None else {})
