"""Features to a mesh: a linear layer to a coarse graph, then graph convolutions while the graph is refined to the mesh.

The paper's own decoder was never released (its authors' line of work grows meshes by graph convolutions); this one
works for any topology, from a hundred vertices to a morphable model's fifty thousand.

Shape letters: B images, V vertices, C channels, D features, T triangles, E pairs of neighbours.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from zoo.module import full_precision

COARSEST = 256
"""Graphs of at most so many vertices are not made coarser: the linear layer writes to them."""


class MeshDecoder(nn.Module):
    """Pooled features to a mesh.

    Args:
        width: D. vertices: V. triangles: (T, 3) corners, the topology; None, where a checkpoint will bring it, then
            `mesh` says how large it is.
        channels: of the graph convolutions. blocks: how many at each resolution; each sees one ring of neighbours more.
        template: (V, 3) what the prediction starts from, usually the mean of the training meshes.
        mesh: [vertices, pairs of neighbours, pairs to the next coarser graph] of each resolution, the mesh first.
    """

    template: Tensor

    def __init__(
        self, width: int, vertices: int, triangles: Tensor | None = None, channels: int = 16, blocks: int = 2,
        template: Tensor | None = None, mesh: Sequence[Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if triangles is not None:
            levels = hierarchy(triangles, vertices)
        else:
            empty = [[vertices, 0, 0]] if mesh is None else mesh
            levels = [(count, *(torch.zeros(2, pairs, dtype=torch.long) for pairs in rest)) for count, *rest in empty]
        self.mesh = [[count, near.shape[1], down.shape[1]] for count, near, down in levels]
        for number, (_, near, down) in enumerate(levels):
            self.register_buffer(f"near_{number}", near)
            self.register_buffer(f"down_{number}", down)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.start = nn.Linear(width, levels[-1][0] * channels)
        self.mix = nn.ModuleList(nn.Linear(2 * channels, channels) for _ in range(blocks * len(levels)))
        self.out = nn.Linear(channels, 3)
        self.register_buffer("template", torch.zeros(vertices, 3) if template is None else template.clone())

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, V, 3)."""
        x = self.start(self.norm(features)).unflatten(-1, (self.mesh[-1][0], -1))
        blocks = len(self.mix) // len(self.mesh)
        for number in reversed(range(len(self.mesh))):
            if number + 1 < len(self.mesh):
                x = average(x, getattr(self, f"down_{number}"), self.mesh[number][0])
            near = getattr(self, f"near_{number}")
            turn = len(self.mesh) - 1 - number
            for mix in self.mix[turn * blocks : (turn + 1) * blocks]:
                x = x + F.elu(mix(torch.cat([x, average(x, near, x.shape[1])], dim=-1)))
        return self.template + self.out(x)


def average(x: Tensor, pairs: Tensor, count: int) -> Tensor:
    """(B, V, C) to (B, count, C): vertex pairs[0, i] of the result is the mean over its x[:, pairs[1, i]], 0 if none.

    Args:
        pairs: (2, E), the first row sorted.
    """
    with full_precision(x.device.type):
        rows, columns = pairs
        degree = torch.bincount(rows, minlength=count)
        ends = F.pad(degree.cumsum(0), (1, 0))
        shares = 1.0 / degree[rows].float()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse")  # torch calls it beta, and says that it checks nothing
            matrix = torch.sparse_csr_tensor(ends, columns, shares, (count, x.shape[1]), check_invariants=False)
        flat = x.float().transpose(0, 1).flatten(1)
        return (matrix @ flat).unflatten(1, (x.shape[0], x.shape[2])).transpose(0, 1).to(x.dtype)


def hierarchy(triangles: Tensor, vertices: int, coarsest: int = COARSEST) -> list[tuple[int, Tensor, Tensor]]:
    """A mesh and ever coarser graphs of it: number of vertices, neighbours (2, E), and pairs (2, U) that say over which
    vertices of the next coarser graph each vertex takes the mean; none for the last.

    A coarser graph keeps vertices of which no two are neighbours, so many that every other one has one beside it.
    """
    corners = triangles.numpy()
    edges = np.concatenate([corners[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    graph = _graph(edges, vertices)
    levels = []
    while True:
        count = graph.shape[0]
        kept = _independent(graph) if count > coarsest else np.arange(count)
        if len(kept) == count:
            levels.append((count, _pairs(graph), torch.zeros(2, 0, dtype=torch.long)))
            return levels
        place = np.full(count, -1)
        place[kept] = np.arange(len(kept))
        near = graph.tocoo()
        chosen = (place[near.col] >= 0) & (place[near.row] < 0)
        rows, columns = np.r_[kept, near.row[chosen]], np.r_[place[kept], place[near.col[chosen]]]
        down = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (count, len(kept)))
        levels.append((count, _pairs(graph), _pairs(down)))
        reach = (down.T @ (graph + sparse.identity(count)) @ down).tocoo()
        graph = _graph(np.stack([reach.row, reach.col], axis=1), len(kept))


def _graph(edges: np.ndarray, count: int) -> sparse.csr_matrix:
    """Symmetric, without loops."""
    edges = edges[edges[:, 0] != edges[:, 1]]
    both = np.concatenate([edges, edges[:, ::-1]])
    return sparse.csr_matrix((np.ones(len(both)), both.T), (count, count)).sign().tocsr()


def _independent(graph: sparse.csr_matrix) -> np.ndarray:
    """Vertices in their order, each unless it has a neighbour among those before; lone vertices stay as they are."""
    covered, kept = np.zeros(graph.shape[0], bool), []
    for vertex in range(graph.shape[0]):
        if not covered[vertex]:
            kept.append(vertex)
            covered[graph.indices[graph.indptr[vertex] : graph.indptr[vertex + 1]]] = True
    return np.array(kept)


def _pairs(matrix: sparse.csr_matrix) -> Tensor:
    matrix = matrix.tocsr()
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return torch.from_numpy(np.stack([rows, matrix.indices]).astype(np.int64))
