"""BM-MAE as a LightningModule: one masked autoencoder over four MRI sequences (arXiv 2505.00568).

Shape letters: B subjects, M sequences, T tokens of a sequence, N = M * T, V visible, D width, P voxels of a patch.
Volumes are z-scored over their non-zero voxels, {sequence: (B, 1, S, S, S)}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.module import StateDict, ZooModule, full_precision
from zoo.nn.patches3d import unpatchify_3d
from zoo.optim import adamw, capped_cosine
from zoo.papers.bm_mae import weights
from zoo.papers.bm_mae.losses import modality_losses, standardise_patches
from zoo.papers.bm_mae.masking import Masks, check_mask_ratio, draw_masks, masks_from, names_in_order
from zoo.papers.bm_mae.network import MODALITIES, Decoder, MultimodalViT, within_modality

if TYPE_CHECKING:
    from zoo.papers.bm_mae.downstream import Classifier, Segmenter

Volumes = Mapping[str, Tensor]


@dataclass(frozen=True)
class BMMAEOutput:
    """What one step gives.

    Attributes:
        loss: scalar, the sum of `losses`.
        losses: (4,) mean squared error on the hidden patches of T1, T1ce, T2, FLAIR.
        masks: what was hidden.
    """

    loss: Tensor
    losses: Tensor
    masks: Masks


class BMMAE(ZooModule):
    """Pre-trains one encoder for any subset of the sequences T1, T1ce, T2 and FLAIR.

    Three quarters of all tokens are hidden, in shares that differ between sequences and between subjects, and a small
    decoder restores their voxels. Defaults are the official pre-training.

    Args:
        image_size, patch_size: side of the cubic volumes and of a patch in voxels.
        embed_dim, depth, num_heads, mlp_dim: the encoder; the width is a multiple of 6 and of num_heads.
        decoder_embed_dim, decoder_depth, decoder_num_heads, decoder_mlp_dim, decoder_dropout: the decoder.
        mask_ratio: share of the tokens hidden from the encoder.
        norm_pix_loss: standardise each target patch.
        cross_modal: False lets no token see another sequence's, an ablation: what the sequences say of each other is
            then out of reach.
        lr, weight_decay, betas: AdamW; decay acts on all parameters, as in the official run.
        warmup_epochs, cosine_epochs: the learning rate of epoch e is lr * min((e + 1) / warmup_epochs, half a cosine
            over cosine_epochs at e). With 1500 for 1000 epochs it ends at a quarter, as in the official run. None for
            cosine_epochs takes the length of the run.
        compile: run the step through torch.compile.
    """

    per_device_loss = True  # a mean over the hidden tokens of the device's batch, as in the official code

    def __init__(
        self,
        image_size: int = 128,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 1536,
        decoder_embed_dim: int = 384,
        decoder_depth: int = 3,
        decoder_num_heads: int = 12,
        decoder_mlp_dim: int = 1536,
        decoder_dropout: float = 0.1,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        cross_modal: bool = True,
        lr: float = 1e-4,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_epochs: float = 50.0,
        cosine_epochs: float | None = 1500.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._check_arguments()
        self.backbone = MultimodalViT(image_size, patch_size, embed_dim, depth, num_heads, mlp_dim)
        self.decoder = Decoder(
            self.backbone.grid, patch_size, embed_dim, decoder_embed_dim, decoder_depth, decoder_num_heads,
            decoder_mlp_dim, decoder_dropout,
        )  # fmt: skip
        self._restore = torch.compile(self.restoration) if compile else self.restoration

    def _check_arguments(self) -> None:
        h = self.hparams
        if h.patch_size < 1 or h.image_size % h.patch_size:
            raise ZooError(f"image_size {h.image_size} is not a multiple of patch_size {h.patch_size}.")
        for side, heads in (("", h.num_heads), ("decoder_", h.decoder_num_heads)):
            width = h[f"{side}embed_dim"]
            if width % 6 or width % heads:
                raise ZooError(f"{side}embed_dim {width} is not a multiple of 6 and of {side}num_heads {heads}.")
        check_mask_ratio(h.mask_ratio, (h.image_size // h.patch_size) ** 3, len(MODALITIES))

    # ------------------------------------------------------------------ the representation

    def preprocess(self, raw: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """A subject's folder, one of its files, or {sequence: NIfTI path} to what `forward` takes.

        Volumes are brought to 1 mm if they are not, cropped around their centre to image_size and z-scored.
        Returns {sequence: (1, 1, S, S, S)}. Raises `ZooError` that names subject and file.
        """
        from zoo.nn.mri import load_subject

        volumes, _ = load_subject(raw, self.hparams.image_size)
        return {name: volume.as_tensor().unsqueeze(0) for name, volume in volumes.items()}

    def forward_tokens(self, volumes: Volumes) -> Tensor:
        """Any non-empty subset of the sequences to (B, 1 + M * T, D): class token, then the tokens of each sequence."""
        return self.backbone(volumes)

    def forward(self, volumes: Volumes) -> Tensor:
        """Any non-empty subset of the sequences to (B, D): the class token, which the official classifiers read."""
        return self.backbone(volumes)[:, 0]

    @classmethod
    def convert_state_dict(cls, state_dict: StateDict) -> StateDict:
        return weights.from_official(state_dict) if weights.is_official(state_dict) else state_dict

    def official_state_dict(self) -> StateDict:
        """This model's weights under the official names; undoes `convert_state_dict`."""
        return weights.to_official(self.state_dict())

    def make_classifier(self, modalities: Sequence[str], outputs: int, dropout: float = 0.0) -> Classifier:
        """A classifier of these sequences with a copy of this encoder; for the tasks in `zoo.tasks`."""
        from zoo.papers.bm_mae.downstream import Classifier

        return Classifier(self.backbone, self.encoder_arguments(modalities, dropout), outputs)

    def make_segmenter(self, modalities: Sequence[str], outputs: int, dropout: float = 0.0) -> Segmenter:
        """A UNETR over these sequences with a copy of this encoder; for the tasks in `zoo.tasks`."""
        from zoo.papers.bm_mae.downstream import Segmenter

        return Segmenter(self.backbone, self.encoder_arguments(modalities, dropout), outputs)

    def encoder_arguments(self, modalities: Sequence[str], dropout: float) -> dict[str, Any]:
        h = self.hparams
        return dict(
            image_size=h.image_size, patch_size=h.patch_size, dim=h.embed_dim, depth=h.depth, num_heads=h.num_heads,
            mlp_dim=h.mlp_dim, dropout=dropout, modalities=names_in_order(list(modalities), MODALITIES),
        )  # fmt: skip

    # ------------------------------------------------------------------ the method

    def draw_masks(self, batch: int, present: Tensor | None = None) -> Masks:
        """The random draws of one step, from torch's global generators."""
        return draw_masks(
            batch, len(MODALITIES), self.backbone.num_tokens, self.hparams.mask_ratio, self.device, present
        )

    def predict(self, patches: Mapping[str, Tensor], masks: Masks, wanted: Tensor | None = None) -> Tensor:
        """Voxels of the `wanted` (B, K) tokens, by default of all N: (B, K, P).

        `patches` holds all four sequences; those that are hidden can be anything.
        """
        inside = across = None
        if not self.hparams.cross_modal:
            T = masks.num_tokens
            inside = within_modality(masks.visible // T)
            across = within_modality(
                torch.arange(masks.restore.shape[1], device=self.device).expand_as(masks.restore) // T
            )
        encoded = self.backbone.encode(self.backbone.embed_visible(patches, masks), inside)
        return self.decoder(encoded, masks, wanted, across)

    def restoration(self, volumes: Volumes, masks: Masks, present: Tensor | None = None) -> BMMAEOutput:
        """The loss of a batch that has all four sequences (absent ones as zeros, marked in `present` (B, 4)).

        Per sequence the mean over hidden tokens of the mean squared error over voxels; then the sum over sequences.
        """
        patches = self.backbone.patches(volumes)
        if len(patches) != len(MODALITIES):
            raise ZooError(f"Pre-training takes all of {', '.join(MODALITIES)}; this batch has {', '.join(patches)}.")
        prediction = self.predict(patches, masks, wanted=masks.hidden)
        with full_precision(prediction.device.type), torch.no_grad():
            index = masks.hidden.unsqueeze(-1).expand(-1, -1, prediction.shape[-1])
            target = torch.cat(list(patches.values()), dim=1).gather(1, index).float()
            if self.hparams.norm_pix_loss:
                target = standardise_patches(target)
            sequence = masks.hidden // masks.num_tokens
            counted = torch.ones_like(sequence, dtype=torch.bool) if present is None else present.gather(1, sequence)
        with full_precision(prediction.device.type):
            error = (prediction.float() - target).square().mean(-1)
            losses = modality_losses(error, sequence, counted, len(MODALITIES))
            return BMMAEOutput(losses.sum(), losses, masks)

    @torch.no_grad()
    def reconstruct(
        self,
        volumes: Volumes | Mapping[str, Any],
        *,
        masked: Mapping[str, Tensor] | None = None,
        sequences: Sequence[str] | None = None,
        paste_visible: bool = False,
    ) -> dict[str, Tensor]:
        """Predicts the sequences that are not given from those that are.

        Args:
            volumes: {sequence: (B, 1, S, S, S)} as `preprocess` gives, or {sequence: NIfTI path}.
            masked: {sequence: (B, T)}, 1 or True where a patch of a *given* sequence is hidden too.
            sequences: what to return; by default what is absent or has hidden patches.
            paste_visible: put the patches that the model saw back into what it returns.

        Returns {sequence: (B, 1, S, S, S)} in z-scored units. Raises `ZooError` if nothing is to be predicted.
        """
        if any(not isinstance(volume, Tensor) for volume in volumes.values()):
            volumes = self.preprocess(dict(volumes))
        given = self.backbone.check(volumes)
        masked = dict(masked or {})
        hidden_parts = names_in_order(list(masked), given) if masked else []
        wanted = [name for name in MODALITIES if name not in given or name in hidden_parts]
        if sequences is not None:
            wanted = names_in_order(list(sequences), MODALITIES)
        if not wanted:
            raise ZooError("All four sequences are given: leave out the one to predict, or say which patches to hide.")
        first, T = volumes[given[0]], self.backbone.num_tokens
        hidden = {}
        for name in MODALITIES:
            value = masked.get(name, torch.zeros(len(first), T)) if name in given else torch.ones(len(first), T)
            if tuple(value.shape) != (len(first), T):
                raise ZooError(f"The mask of {name} has shape {tuple(value.shape)}, not ({len(first)}, {T}).")
            hidden[name] = value.to(first.device).bool()
        masks = masks_from(torch.stack([hidden[name] for name in MODALITIES], dim=1))
        whole = {name: volumes[name] if name in given else torch.zeros_like(first) for name in MODALITIES}
        patches = self.backbone.patches(whole)
        predicted = self.predict(patches, masks).unflatten(1, (len(MODALITIES), -1))
        result = {}
        for name in wanted:
            voxels = predicted[:, MODALITIES.index(name)]
            if paste_visible:
                voxels = torch.where(hidden[name].unsqueeze(-1), voxels, patches[name].to(voxels.dtype))
            result[name] = unpatchify_3d(voxels, self.hparams.patch_size, self.backbone.grid)
        return result

    # ------------------------------------------------------------------ training

    def complete(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Volumes of all four sequences, and which of them each subject has (B, 4); None if all.

        Sequences that the data leaves out (`data.modalities`: one pre-training for a subset, which the paper compares
        with) are zeros that nobody has.
        """
        names = [name for name in MODALITIES if name in batch]
        if not names:
            raise ZooError(f"The data gives none of {', '.join(MODALITIES)}.")
        present = batch.get("present")
        if len(names) == len(MODALITIES):
            return {name: batch[name] for name in MODALITIES}, present
        first = batch[names[0]]
        if present is None:
            present = torch.ones(len(first), len(names), dtype=torch.bool, device=first.device)
        whole = torch.zeros(len(first), len(MODALITIES), dtype=torch.bool, device=present.device)
        whole[:, [MODALITIES.index(name) for name in names]] = present
        return {name: batch[name] if name in names else torch.zeros_like(first) for name in MODALITIES}, whole

    def _step(self, batch: Mapping[str, Any], stage: str) -> Tensor:
        volumes, present = self.complete(batch)
        size = len(volumes[MODALITIES[0]])
        out = self._restore if stage == "train" else self.restoration
        result = out(volumes, self.draw_masks(size, present), present)
        values = {f"{stage}/loss": result.loss.detach()}
        values |= {f"{stage}/{name}_loss": result.losses[i].detach() for i, name in enumerate(MODALITIES)}
        validating = stage == "val"
        self.log_dict(
            values, prog_bar=validating, on_step=not validating, on_epoch=validating, sync_dist=validating,
            batch_size=size,
        )  # fmt: skip
        return result.loss

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._step(batch, "val")

    def figures(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Pictures of a batch, for the Figures callback."""
        from zoo.papers.bm_mae.figures import draw_masked, draw_withheld  # matplotlib is only needed here

        whole, present = self.complete(batch)
        there = [name for i, name in enumerate(MODALITIES) if present is None or bool(present[0, i])]
        volumes = {name: volume[:1] for name, volume in whole.items()}
        pictures = {"masked": draw_masked(self, volumes, there)}
        if len(there) > 1:
            pictures["withheld"] = draw_withheld(self, {name: volumes[name] for name in there})
        return pictures

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = adamw(self, trained, lr=h.lr, betas=tuple(h.betas), weight_decay=h.weight_decay)
        schedule = capped_cosine(self, optimizer, warmup_epochs=h.warmup_epochs, cosine_epochs=h.cosine_epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
