"""The pictures of BM-MAE: what was hidden and restored, and each sequence from the other three."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from zoo.nn.patches3d import unpatchify_3d
from zoo.papers.bm_mae.network import MODALITIES

if TYPE_CHECKING:
    from zoo.papers.bm_mae.module import BMMAE, Volumes

_TITLES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}


def busy_slice(volumes: Volumes) -> int:
    """Where along the last axis of the first subject the sequences differ most, which is where a tumour is."""
    stacked = torch.stack([volume[0, 0].float() for volume in volumes.values()])
    inside = (stacked != 0).any(0).float()
    contrast = (stacked.std(0, correction=0) * inside).sum((0, 1))
    return int(contrast.argmax())


def _grid(rows: int, titles: tuple[str, ...]) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(rows, len(titles), figsize=(2.2 * len(titles), 2.25 * rows), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def _show(axis: plt.Axes, volume: Tensor, z: int, limits: tuple[float, float], hidden: Tensor | None = None) -> None:
    image = volume[:, :, z].float().cpu().numpy().T
    axis.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
    if hidden is not None:
        mask = hidden[:, :, z].cpu().numpy().T
        overlay = np.zeros((*mask.shape, 4))
        overlay[..., :3], overlay[..., 3] = (0.35, 0.42, 0.55), mask
        axis.imshow(overlay)


def _limits(volume: Tensor) -> tuple[float, float]:
    return float(volume.quantile(0.002)) if volume.numel() < 2**24 else float(volume.min()), float(volume.max())


def draw_masked(model: BMMAE, volumes: Volumes, there: Sequence[str] = MODALITIES) -> Figure:
    """A row a sequence of the first subject: input, what the encoder sees, what the model makes of it.

    Patches that were visible are shown as they are in the last column, as the loss does not ask for them. `volumes`
    holds all four sequences, `there` says which of them the subject has.
    """
    present = torch.tensor([[name in there for name in MODALITIES]])
    masks = model.draw_masks(1, present)
    patches = model.backbone.patches(volumes)
    predicted = model.predict(patches, masks).unflatten(1, (len(MODALITIES), -1))
    p, grid, z = model.hparams.patch_size, model.backbone.grid, busy_slice(volumes)
    figure, axes = _grid(len(there), ("input", "visible patches", "restored"))
    for row, name in enumerate(there):
        index = MODALITIES.index(name)
        hidden = masks.masked[:1, index].unsqueeze(-1)
        mixed = torch.where(hidden, predicted[:, index], patches[name].to(predicted.dtype))
        cover = unpatchify_3d(hidden.float().expand(-1, -1, p**3), p, grid)[0, 0]
        original = volumes[name][0, 0].float()
        limits = _limits(original)
        _show(axes[row, 0], original, z, limits)
        _show(axes[row, 1], original, z, limits, cover)
        _show(axes[row, 2], unpatchify_3d(mixed, p, grid)[0, 0], z, limits)
        axes[row, 0].set_ylabel(_TITLES[name], fontsize=10)
        axes[row, 1].set_xlabel(f"{float(1 - hidden.float().mean()):.0%} visible", fontsize=8)
    figure.tight_layout()
    return figure


def draw_withheld(model: BMMAE, volumes: Volumes) -> Figure:
    """A column a sequence of the first subject: as it is, as restored from all others given, and the difference."""
    z = busy_slice(volumes)
    figure, axes = _grid(3, tuple(_TITLES[name] for name in volumes))
    for column, name in enumerate(volumes):
        others = {other: volume for other, volume in volumes.items() if other != name}
        restored = model.reconstruct(others)[name][0, 0].float()
        original = volumes[name][0, 0].float()
        limits = _limits(original)
        _show(axes[0, column], original, z, limits)
        _show(axes[1, column], restored, z, limits)
        difference = (restored - original)[:, :, z].cpu().numpy().T
        axes[2, column].imshow(difference, cmap="RdBu_r", vmin=-2, vmax=2)
        axes[2, column].set_xlabel(f"MSE {float((restored - original).square().mean()):.3f}", fontsize=8)
    for row, title in enumerate(("input", "from the others", "difference (blue -2, red +2)")):
        axes[row, 0].set_ylabel(title, fontsize=9)
    figure.tight_layout()
    return figure
