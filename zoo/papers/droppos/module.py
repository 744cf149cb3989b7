"""DropPos as a LightningModule: say where each visible patch came from (Wang et al., NeurIPS 2023, arXiv 2309.03576).

Shape letters: B images, N patches of an image, V visible patches, D embedding width, P pixel values of a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.module import StateDict, ZooModule, full_precision
from zoo.nn.images import preprocess_images
from zoo.nn.patches import embed_patches, patchify
from zoo.optim import adamw, clip_gradients, resolve_lr, warmup_cosine
from zoo.papers.droppos import losses, weights
from zoo.papers.droppos.masking import Masks, make_masks, take, wrong_positions
from zoo.papers.droppos.network import (
    PixelDecoder,
    PositionDecoder,
    block_on_first,
    build_encoder,
    init_like_mae,
)
from zoo.papers.droppos.smoothing import official_grid_side, sigma_at, smoothing_map

_CPU_CHUNK = 8  # images


@dataclass(frozen=True)
class DropPosOutput:
    """What one step gives. All losses and accuracies are scalars; accuracies are shares from 0 to 1.

    Attributes:
        loss: the training objective.
        position_loss: smoothed cross-entropy over the dropped positions.
        position_acc: top-1 accuracy over the dropped positions (the paper's).
        position_acc_weighted: the same weighted as the loss is (what the official code logs).
        masks: the random draws.
        tokens: (B, 1 + V, D) encoder output.
        logits: (B, V, N) position scores, in the order of `masks.visible`.
        attention: (B, V) attentive-reconstruction weights of the visible patches, each row sums to 1, or None.
        pixel_loss, pixels: MAE loss and (B, N, P) prediction of the multi-task variant, else None.
    """

    loss: Tensor
    position_loss: Tensor
    position_acc: Tensor
    position_acc_weighted: Tensor
    masks: Masks
    tokens: Tensor
    logits: Tensor
    attention: Tensor | None = None
    pixel_loss: Tensor | None = None
    pixels: Tensor | None = None


class DropPos(ZooModule):
    """Pre-trains a ViT by reconstructing dropped positions.

    Patches are hidden as in MAE; of those that stay visible most lose their position embedding, and the network
    classifies each of them into one of the N positions. Defaults are the paper's ViT-B/16 recipe; the arguments that
    say "official" reproduce the released code where it differs from the paper (see README.md of this room).

    Args:
        image_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio: the encoder, timm's terms.
        decoder_embed_dim, decoder_depth, decoder_num_heads: the position decoder (and the pixel decoder if multi_task).
        mask_ratio: share of patches hidden from the encoder.
        pos_mask_ratio: share of the visible patches whose position embedding is dropped.
        mask_token_type: what stands in for a dropped position: a learned token ("param"), nothing ("zeros"), or the
            dropped embeddings exchanged among each other ("wrong_pos").
        shuffle: permute the visible tokens before the encoder (changes nothing but rounding; an official option).
        sigma: width of position smoothing in patches; 0 is plain cross-entropy.
        sigma_decay: let sigma fall linearly to 0 over the epochs.
        smoothing_distance: "euclidean" (paper) or "squared" (official).
        smoothing_normalize: "row" (paper) or "column" (official).
        smoothing_grid: measure distances on the grid of "patches" (paper), or on the grid of the "official" script,
            whose side is wrong (16 instead of 14 for ViT-B/16 at 224 pixels).
        attn_guide: weigh each patch by its similarity to the class token of the full image (attentive reconstruction).
        attn_temperature: softmax temperature of these weights.
        conf_ignore: leave out patches that are already placed with at least the target's probability.
        multi_task: add MAE's pixel loss: pos_weight * position loss + pixel loss.
        pos_weight: only with multi_task; another value without it is an error, since it would do nothing.
        norm_pix_loss: standardise each target patch of the pixel loss.
        pixel_unshuffle: undo `shuffle` before the pixel decoder; False feeds it tokens at wrong places (official).
        base_lr: learning rate for 256 images; scaled by the effective batch. `lr` overrides it.
        weight_decay, betas, warmup_epochs, min_lr: AdamW and MAE's schedule.
        clip_grad: largest gradient norm, 0 or None for no clipping.
        clip_mode: "global" norm, or each tensor on its own ("per_tensor", official).
        compile: run the step through torch.compile.
    """

    per_device_loss = True  # a weighted mean over the device's batch, as in the official code

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 2,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.75,
        pos_mask_ratio: float = 0.75,
        mask_token_type: Literal["param", "zeros", "wrong_pos"] = "param",
        shuffle: bool = False,
        sigma: float = 1.0,
        sigma_decay: bool = True,
        smoothing_distance: Literal["euclidean", "squared"] = "euclidean",
        smoothing_normalize: Literal["row", "column"] = "row",
        smoothing_grid: Literal["patches", "official"] = "patches",
        attn_guide: bool = True,
        attn_temperature: float = 0.1,
        conf_ignore: bool = False,
        multi_task: bool = False,
        pos_weight: float = 1.0,
        norm_pix_loss: bool = True,
        pixel_unshuffle: bool = True,
        base_lr: float = 1.5e-4,
        lr: float | None = None,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_epochs: float = 10.0,
        min_lr: float = 0.0,
        clip_grad: float | None = 5.0,
        clip_mode: Literal["global", "per_tensor"] = "global",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._check_arguments()
        self.grid_side = image_size // patch_size
        self.backbone = build_encoder(image_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio)
        learned = mask_token_type == "param"
        self.mask_pos_token = nn.Parameter(torch.zeros(1, 1, embed_dim), requires_grad=learned)
        decoder = dict(in_dim=embed_dim, dim=decoder_embed_dim, depth=decoder_depth, num_heads=decoder_num_heads)
        self.decoder = PositionDecoder(**decoder, mlp_ratio=mlp_ratio, num_positions=self.num_patches)
        self.pixel_decoder: PixelDecoder | None = None
        if multi_task:
            self.pixel_decoder = PixelDecoder(
                **decoder,
                mlp_ratio=mlp_ratio,
                grid_side=self.grid_side,
                patch_values=in_chans * patch_size**2,
                learn_mask_token=learned,
            )
        self.register_buffer("smoothing", self.smoothing_at(sigma), persistent=False)
        self.init_weights()
        self._step = torch.compile(self.position_task) if compile else self.position_task

    def _check_arguments(self) -> None:
        h = self.hparams
        if h.image_size % h.patch_size:
            raise ZooError(f"image_size {h.image_size} is not a multiple of patch_size {h.patch_size}.")
        for name in ("mask_ratio", "pos_mask_ratio"):
            if not 0 <= h[name] <= 1:
                raise ZooError(f"{name} is a share from 0 to 1, not {h[name]}.")
        visible = int((h.image_size // h.patch_size) ** 2 * (1 - h.mask_ratio))
        if visible < 1:
            raise ZooError(f"mask_ratio {h.mask_ratio} leaves no patch visible: lower it.")
        if not h.multi_task and h.pos_weight != 1.0:
            raise ZooError("pos_weight only weighs the position loss against MAE's: set multi_task, or leave it at 1.")
        if h.smoothing_grid == "official":
            side = official_grid_side(h.image_size, h.patch_size)
            if side < h.image_size // h.patch_size:
                raise ZooError(
                    f"smoothing_grid 'official' gives a {side}x{side} grid, too small for this model's "
                    f"{h.image_size // h.patch_size}x{h.image_size // h.patch_size} patches (the official code fails "
                    "here too): use 'patches'."
                )

    def init_weights(self) -> None:
        """Xavier-uniform weights as in MAE; the patch embedding counts as a linear layer; tokens have std 0.02."""
        self.apply(init_like_mae)
        projection = self.backbone.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.data.view(projection.out_channels, -1))
        nn.init.zeros_(projection.bias)
        nn.init.normal_(self.backbone.cls_token, std=0.02)
        nn.init.normal_(self.mask_pos_token, std=0.02)
        if self.pixel_decoder is not None:
            nn.init.normal_(self.pixel_decoder.mask_token, std=0.02)

    # ------------------------------------------------------------------ the representation

    @property
    def num_patches(self) -> int:
        return self.grid_side**2

    def preprocess(self, raw: Any) -> Tensor:
        """Paths or PIL images (one or a list) to a normalised (B, 3, image_size, image_size) batch."""
        return preprocess_images(raw, self.hparams.image_size)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 1 + N, D): class and patch tokens after the final norm, every position given."""
        return self.backbone.forward_features(images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D): the mean of the patch tokens, as the paper's fine-tuning pools."""
        return self.forward_tokens(images)[:, 1:].mean(dim=1)

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.from_official(state_dict) if weights.is_official(state_dict) else state_dict

    def official_state_dict(self) -> StateDict:
        return weights.to_official(self.state_dict())

    # ------------------------------------------------------------------ the method

    def smoothing_at(self, sigma: float) -> Tensor:
        """Position targets for a smoothing width, with this model's geometry switches."""
        h = self.hparams
        side = self.grid_side if h.smoothing_grid == "patches" else official_grid_side(h.image_size, h.patch_size)
        # The official map keeps its own size: confidence thresholds are read off its diagonal.
        return smoothing_map(side, sigma, distance=h.smoothing_distance, normalize=h.smoothing_normalize)

    def encode(self, tokens: Tensor, wanted: int | None = None) -> Tensor:
        """Patch tokens with their positions (B, K, D) to encoder output (B, 1 + K, D), class token first.

        With `wanted`, only the first `wanted` tokens of the output, (B, wanted, D): the last block skips the others.
        """
        encoder = self.backbone
        cls = (encoder.cls_token + encoder.pos_embed[:, :1]).to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([cls, tokens], dim=1)
        if wanted is None:
            return encoder.norm(encoder.blocks(tokens))
        return encoder.norm(block_on_first(encoder.blocks[-1], encoder.blocks[:-1](tokens), wanted))

    def dropped_positions(self, masks: Masks) -> Tensor:
        """(B, V, D): the position embeddings that the visible patches get, dropped ones replaced."""
        positions = self.backbone.pos_embed[0, 1:][masks.visible]
        if self.hparams.mask_token_type == "wrong_pos":
            return wrong_positions(positions, masks)
        replacement = self.mask_pos_token if self.hparams.mask_token_type == "param" else torch.zeros_like(positions)
        return torch.where(masks.position_dropped.unsqueeze(-1), replacement, positions)

    @torch.no_grad()
    def attentive_weights(self, visible_tokens: Tensor, patches: Tensor, masks: Masks) -> Tensor:
        """Attentive reconstruction: how much each visible patch looks like the class token of the *full* image, (B, V).

        The visible patches come embedded already; only the hidden ones are embedded here.
        """
        num_visible = visible_tokens.shape[1]
        hidden = embed_patches(self.backbone.patch_embed, take(patches, masks.patch_order[:, num_visible:]))
        positions = self.backbone.pos_embed[0, 1:][masks.patch_order]
        tokens = torch.cat([visible_tokens, hidden], dim=1) + positions
        # On a CPU a few images at a time: their activations stay in its cache (10 % of this pass at ViT-S, batch 32).
        whole = tokens.device.type != "cpu" or torch.compiler.is_compiling()
        parts = [self.encode(part, 1 + num_visible) for part in ([tokens] if whole else tokens.split(_CPU_CHUNK))]
        with full_precision(tokens.device.type):
            # Its softmax over the visible patches is the one over all patches, gathered and made to sum to 1 again.
            return losses.feature_similarity(torch.cat(parts), self.hparams.attn_temperature)

    def position_task(self, images: Tensor, masks: Masks | None = None) -> DropPosOutput:
        """One step of DropPos on normalised images (B, C, H, W). `masks` is drawn here unless given."""
        h = self.hparams
        patches = patchify(images, h.patch_size)
        if masks is None:
            noise = torch.rand(patches.shape[:2], device=images.device)
            masks = make_masks(noise, h.mask_ratio, h.pos_mask_ratio, shuffle=h.shuffle)

        # 1. Embed what is visible, give it the positions that were not dropped, encode.
        visible = embed_patches(self.backbone.patch_embed, take(patches, masks.visible))
        tokens = visible + self.dropped_positions(masks)
        tokens = tokens if masks.shuffle is None else take(tokens, masks.shuffle)
        tokens = self.encode(tokens)

        # 2. Score each visible patch against every position.
        logits = self.decoder(tokens)
        logits = logits if masks.shuffle is None else take(logits, masks.shuffle.argsort(dim=1))

        # 3. Attentive reconstruction: patches that look like the whole image count more. This pass comes second because
        #    autocast would otherwise keep half-precision weights that carry no gradient.
        attention = self.attentive_weights(visible.detach(), patches, masks) if h.attn_guide else None

        # 4. Smoothed cross-entropy over the dropped positions, in float32.
        with full_precision(images.device.type):
            logits = logits.float()
            weight = losses.position_weights(
                logits, masks.visible, masks.position_dropped, self.smoothing, attention, h.conf_ignore
            )
            loss = position_loss = losses.position_loss(logits, masks.visible, weight, self.smoothing)
            accuracy = losses.position_accuracy(logits.detach(), masks.visible, masks.position_dropped.float())
            accuracy_weighted = losses.position_accuracy(logits.detach(), masks.visible, weight)

        # 5. Multi-task variant: MAE's pixel loss beside it.
        pixels = pixel_loss = None
        if self.pixel_decoder is not None:
            in_order = tokens
            if masks.shuffle is not None and h.pixel_unshuffle:
                in_order = torch.cat([tokens[:, :1], take(tokens[:, 1:], masks.shuffle.argsort(dim=1))], dim=1)
            pixels = self.pixel_decoder(in_order, masks.restore)
            with full_precision(images.device.type):
                # MAE lays a patch out row, column, channel.
                target = patches.unflatten(-1, (h.in_chans, -1)).transpose(-1, -2).flatten(-2)
                pixel_loss = losses.pixel_loss(pixels, target, masks.patch_masked, h.norm_pix_loss)
            loss = h.pos_weight * position_loss + pixel_loss

        return DropPosOutput(
            loss, position_loss, accuracy, accuracy_weighted, masks, tokens, logits, attention, pixel_loss, pixels
        )

    # ------------------------------------------------------------------ training

    def on_train_epoch_start(self) -> None:
        h = self.hparams
        sigma = sigma_at(self.current_epoch, self._num_epochs(), h.sigma, h.sigma_decay)
        self.smoothing.copy_(self.smoothing_at(sigma))
        self.log("sigma", sigma)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        out = self._step(batch[0])
        self._log("train", out, batch[0].shape[0])
        return out.loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._log("val", self.position_task(batch[0]), batch[0].shape[0])

    def baselines(self) -> dict[str, tuple[str, str, float]]:
        """What to hold logged metrics against, for the ProbeReport callback."""
        return {"val/position_acc": ("position top-1", f"chance, 1 of {self.num_patches}", 1 / self.num_patches)}

    def figures(self, batch: tuple[Tensor, ...]) -> dict[str, Any]:
        """Pictures of a batch, for the Figures callback."""
        from zoo.papers.droppos.figures import draw_positions  # matplotlib is only needed here

        images = batch[0][:6]
        out = self.position_task(images)
        return {"positions": draw_positions(images, out.masks, out.logits, self.hparams.patch_size)}

    def _log(self, stage: str, out: DropPosOutput, batch_size: int) -> None:
        values = {"loss": out.loss.detach(), "position_acc": out.position_acc}
        if self.hparams.attn_guide or self.hparams.conf_ignore:
            values["position_acc_weighted"] = out.position_acc_weighted
        if out.pixel_loss is not None:
            values |= {"position_loss": out.position_loss.detach(), "pixel_loss": out.pixel_loss.detach()}
        validating = stage == "val"
        self.log_dict(
            {f"{stage}/{name}": value for name, value in values.items()},
            prog_bar=validating,
            on_step=not validating,
            on_epoch=validating,
            sync_dist=validating,
            batch_size=batch_size,
        )

    def _num_epochs(self) -> int:
        if self.trainer.max_epochs and self.trainer.max_epochs > 0:
            return self.trainer.max_epochs
        steps = self.trainer.estimated_stepping_batches
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return max(1, math.ceil(steps / per_epoch))

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        lr = resolve_lr(self, h.base_lr, h.lr)
        groups = param_groups_weight_decay(self, h.weight_decay)
        optimizer = adamw(self, groups, lr=lr, betas=tuple(h.betas), weight_decay=h.weight_decay)
        schedule = warmup_cosine(self, optimizer, lr=lr, min_lr=h.min_lr, warmup_epochs=h.warmup_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip_gradients(self, self.hparams.clip_grad, self.hparams.clip_mode, gradient_clip_val)
