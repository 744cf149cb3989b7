"""Position smoothing: soft targets over the patch grid, sharpening as training goes on (DropPos, section 3.2).

The official code differs from the paper in three ways, each behind a switch here: it squares the distance, its
normalisation makes *columns* sum to one, and it builds the map for a grid of the wrong side (`official_grid_side`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def smoothing_map(
    grid_side: int,
    sigma: float,
    *,
    num_positions: int | None = None,
    distance: str = "euclidean",
    normalize: str = "row",
) -> Tensor:
    """Soft targets W: row i is the target distribution of a patch whose true position is i.

    W(i, j) ~ exp(-dist(i, j) / sigma^2); sigma = 0 gives the identity (plain cross-entropy).

    Args:
        grid_side: patches along one side of the grid that distances are measured on.
        sigma: width of the smoothing, in patches.
        num_positions: keep the leading (num_positions, num_positions) block; default all grid_side^2.
        distance: "euclidean" (paper) or "squared" (official code).
        normalize: "row" (paper: each target sums to 1) or "column" (official code: they do not).

    Returns:
        float32 tensor (num_positions, num_positions).
    """
    if distance not in ("euclidean", "squared"):
        raise ValueError(f"distance is 'euclidean' or 'squared', not {distance!r}")
    if normalize not in ("row", "column"):
        raise ValueError(f"normalize is 'row' or 'column', not {normalize!r}")
    size = grid_side**2
    keep = size if num_positions is None else num_positions
    if sigma == 0.0:
        return torch.eye(size)[:keep, :keep]
    index = torch.arange(size)
    cell = torch.stack([index // grid_side, index % grid_side], dim=1).double()
    squared = (cell[:, None] - cell[None]).square().sum(-1)
    dist = squared if distance == "squared" else squared.sqrt()
    weight = torch.exp(-dist / sigma**2)
    # The map is symmetric, so the official division by row sums along the other axis normalises its columns.
    # It happens before the cut to num_positions, as there.
    weight = weight / weight.sum(dim=1 if normalize == "row" else 0, keepdim=True)
    return weight[:keep, :keep].float()


def official_grid_side(image_size: int, patch_size: int) -> int:
    """The side that the official script gives its map: it divides by patches per side, not by pixels per patch."""
    return image_size // (image_size // patch_size)


def sigma_at(epoch: int, max_epochs: int, sigma: float, decay: bool = True) -> float:
    """Smoothing width in an epoch (0-based): falls linearly from `sigma` to `sigma / max_epochs`."""
    return (1 - epoch / max_epochs) * sigma if decay else sigma
