"""The picture of CLIP2Point: an object, its depth views, and the pictures that the depth encoder finds for one view."""

from __future__ import annotations

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

_NEAREST = 4


def draw_retrieval(
    images: Tensor, views: Tensor, queries: Tensor, similarity: Tensor, order: Tensor | None = None
) -> Figure:
    """One row an object: its picture, its V depth maps, the depth map that asks, and the pictures it finds.

    Args:
        images: (B, 3, S, S) uint8 pictures of a batch.
        views: (K, V, S, S) depth maps of the first K objects, 0 to 1.
        queries: (K, S, S) or more: depth maps of the pictures' views.
        similarity: (B, B) of depth map i and picture j.
        order: which objects the rows are, (K,); default the first K.
    """
    pictures = images.cpu().permute(0, 2, 3, 1).numpy()
    rows, num_views = len(views), views.shape[1]
    order = torch.arange(rows) if order is None else order.cpu()
    similarity = similarity.float().cpu()
    # A narrow empty column stands between the parts.
    widths = [1, 0.15] + [1] * num_views + [0.15, 1, 0.15] + [1] * _NEAREST
    figure, axes = plt.subplots(
        rows, len(widths), figsize=(0.95 * sum(widths), 1.05 * rows + 0.5), squeeze=False, width_ratios=widths
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for row in range(rows):
        index = int(order[row])
        line = list(axes[row])
        line[0].imshow(pictures[index])
        for view in range(num_views):
            line[2 + view].imshow(views[row, view].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        line[3 + num_views].imshow(queries[index].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        for place, found in enumerate(similarity[index].topk(min(_NEAREST, similarity.shape[1])).indices.tolist()):
            axis = line[5 + num_views + place]
            axis.imshow(pictures[found])
            colour = "tab:green" if found == index else "0.8"
            side = pictures.shape[1]
            axis.add_patch(Rectangle((-0.5, -0.5), side, side, fill=False, color=colour, linewidth=2.5))
    first = axes[0]
    first[0].set_title("object", fontsize=9)
    first[2 + num_views // 2].set_title(f"its {num_views} depth maps", fontsize=9)
    first[3 + num_views].set_title("one map asks", fontsize=9)
    count = similarity.shape[1]
    first[5 + num_views + 1].set_title(f"the nearest of {count} pictures (green: its own)", fontsize=9, loc="left")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.9, wspace=0.06, hspace=0.06)
    return figure
