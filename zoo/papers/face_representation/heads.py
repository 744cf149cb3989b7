"""Heads of the five downstream tasks, on the maps or the pooled features of any timm network.

The paper's own heads were never released; these follow its description, and sizes are ours. Every head normalises what
it gets by batch statistics without learned scale, so that frozen features of any size are fit for it.

Shape letters: B images, K landmarks, C channels, D features. The mesh decoder is in `mesh_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.module import full_precision


class HeatmapHead(nn.Module):
    """Feature pyramid to one heat map a landmark, read out by its centre of mass.

    Args:
        widths: channels of the maps, finest first. landmarks: K. width: channels of the pyramid.
    """

    def __init__(self, widths: Sequence[int], landmarks: int, width: int = 256) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, affine=False) for channels in widths)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.maps = nn.Conv2d(width, landmarks, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w), finest first, to heat maps (B, K, h, w) before their softmax."""
        x = None
        for norm, lateral, level in zip(reversed(self.norms), reversed(self.lateral), reversed(maps), strict=True):
            here = lateral(norm(level))
            x = (
                here
                if x is None
                else here + F.interpolate(x, size=here.shape[-2:], mode="bilinear", align_corners=False)
            )
        return self.maps(self.smooth(x))


def expected_points(heatmaps: Tensor) -> Tensor:
    """(B, K, h, w) scores to (B, K, 2) x and y as shares of the image, the centre of mass of the softmax."""
    with full_precision(heatmaps.device.type):
        share = heatmaps.float().flatten(2).softmax(dim=-1).unflatten(-1, heatmaps.shape[-2:])
        x = (torch.arange(share.shape[-1], device=share.device) + 0.5) / share.shape[-1]
        y = (torch.arange(share.shape[-2], device=share.device) + 0.5) / share.shape[-2]
        return torch.stack([(share.sum(dim=-2) * x).sum(dim=-1), (share.sum(dim=-1) * y).sum(dim=-1)], dim=-1)


def heatmap_loss(heatmaps: Tensor, points: Tensor, sigma: float = 1.0) -> Tensor:
    """Cross-entropy to a Gaussian of `sigma` cells around each true point, plus the distance of the centre of mass.

    Args:
        heatmaps: (B, K, h, w). points: (B, K, 2) shares of the image; NaN for landmarks without label.
    """
    with full_precision(heatmaps.device.type):
        heatmaps = heatmaps.float()
        h, w = heatmaps.shape[-2:]
        known = points.isfinite().all(dim=-1)
        safe = points.nan_to_num()
        x = (torch.arange(w, device=points.device) + 0.5)[None, None, :] - safe[..., :1] * w
        y = (torch.arange(h, device=points.device) + 0.5)[None, None, :] - safe[..., 1:] * h
        target = (-(y.square()[..., :, None] + x.square()[..., None, :]) / (2 * sigma**2)).exp().flatten(2)
        target = target / target.sum(dim=-1, keepdim=True).clamp_min(1e-8)
        entropy = -(target * heatmaps.flatten(2).log_softmax(dim=-1)).sum(dim=-1)
        distance = (expected_points(heatmaps) - safe).abs().sum(dim=-1) * max(h, w)
        return ((entropy + distance) * known).sum() / known.sum().clamp_min(1)


class LinearHead(nn.Module):
    """Pooled features (B, D) to (B, outputs): action units, valence and arousal.

    `bounded` ends in tanh, for values between -1 and 1.
    """

    def __init__(self, width: int, outputs: int, bounded: bool = False) -> None:
        super().__init__()
        self.norm, self.linear, self.bounded = nn.BatchNorm1d(width, affine=False), nn.Linear(width, outputs), bounded

    def forward(self, features: Tensor) -> Tensor:
        out = self.linear(self.norm(features))
        return out.float().tanh() if self.bounded else out


class EmbeddingHead(nn.Module):
    """Pooled features (B, D) to unit-length embeddings (B, E), as face recognition compares them."""

    def __init__(self, width: int, embed_dim: int = 512) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(width, affine=False), nn.Linear(width, embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.linear(self.norm(features)).float(), dim=1)


class MarginSoftmax(nn.Module):
    """Cross-entropy over identities with a margin on the right one (ArcFace: Deng 2019; CosFace: Wang 2018).

    Args:
        embed_dim: E. identities: number of classes.
        kind: "arc" adds the margin to the angle, "cos" takes it off the cosine.
        scale, margin: s and m; None takes the papers' m, 0.5 and 0.35.
    """

    def __init__(
        self, embed_dim: int, identities: int, kind: str = "arc", scale: float = 64.0, margin: float | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(identities, embed_dim) * 0.01)
        self.kind, self.scale = kind, scale
        self.margin = margin if margin is not None else (0.5 if kind == "arc" else 0.35)

    def forward(self, embedding: Tensor, identity: Tensor) -> Tensor:
        """Unit-length (B, E) and classes (B,) to the mean loss."""
        with full_precision(embedding.device.type):
            cosine = F.normalize(embedding.float(), dim=1) @ F.normalize(self.weight.float(), dim=1).T
            right = cosine.gather(1, identity[:, None])
            if self.kind == "arc":
                sine = (1 - right.square()).clamp_min(1e-9).sqrt()
                cos_m, sin_m = float(np.cos(self.margin)), float(np.sin(self.margin))
                harder = right * cos_m - sine * sin_m
                # Beyond pi - m the cosine would rise again: from there on a straight line.
                harder = torch.where(right > -cos_m, harder, right - self.margin * sin_m)
            else:
                harder = right - self.margin
            return F.cross_entropy(self.scale * cosine.scatter(1, identity[:, None], harder), identity)
