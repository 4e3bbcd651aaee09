"""Graphs of the spots of a section by their array coordinates, and layers on them.

A graph is a dense 0/1 matrix (N, N): row i marks the spots that i looks at, itself not among them. It is directed.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import scatter

Pooling = Literal["mean", "max"]
Normalise = Literal["receivers", "neighbours"]

MASKED = -9e15  # score of a pair that is not in the graph


def nearest(positions: Tensor, k: int, reach: float | None = None) -> Tensor:
    """Mark for each spot the k others that are nearest to it.

    Of spots equally near those come first that stand first in the section; the published codes leave that to an
    unstable sort.

    Parameters
    ----------
    positions
        (N, 2) array coordinates, whole numbers.
    k
        How many; fewer where there are not as many.
    reach
        Array units from which on a spot is too far; None: none is.

    Returns
    -------
    (N, N), float32, 0 or 1.
    """
    places, n = positions.long(), len(positions)
    squared = (places[:, None] - places).square().sum(-1)
    number = torch.arange(n, device=positions.device)
    itself = torch.iinfo(torch.int64).max
    rank = (squared * n + number).masked_fill(number[:, None] == number, itself)  # by distance, then by number
    chosen = rank.topk(min(k, n - 1), largest=False).indices
    near = torch.zeros(n, n, device=positions.device).scatter_(1, chosen, 1.0)
    return near if reach is None else near * (squared <= reach**2)


class GraphLayer(nn.Module):
    """g_i = ReLU(W m_i) / |ReLU(W m_i)|, m_i what i's neighbours are on average, or at most; 0 without any.

    Parameters
    ----------
    width
        Of a spot's features.
    pooling
        "mean" or "max".
    """

    def __init__(self, width: int, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width)))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """(..., N, width) to the same shape."""
        return F.normalize(F.relu(F.linear(self.pooled(x, adjacency), self.weight)), dim=-1)

    def pooled(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Bring together the neighbours of each spot; in the published code, one that has none makes all NaN."""
        if self.pooling == "mean":
            return (adjacency / adjacency.sum(1, keepdim=True).clamp_min(1)).to(x.dtype) @ x
        receiver, sender = adjacency.nonzero(as_tuple=True)
        return scatter(x[..., sender, :], receiver, dim=-2, dim_size=len(adjacency), reduce="max")


class GraphAttentionHead(nn.Module):
    """e_ij = LeakyReLU(a' [W x_i, W x_j]); A = softmax of e over the graph's pairs; A W x.

    Parameters
    ----------
    width, out
        Of a spot's features, and of what becomes of them.
    dropout
        Of A.
    normalise
        What the softmax is taken over. "receivers", as published: over i, so that the weights that each spot j *gives*
        sum to 1; one that nobody looks at gives 1/N to every spot. "neighbours": over j, as in the paper on graph
        attention (Velickovic et al., 2018).
    """

    def __init__(self, width: int, out: int, dropout: float, normalise: Normalise) -> None:
        super().__init__()
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, out), gain=1.414))
        self.a = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * out, 1), gain=1.414))
        self.dropout, self.axis = nn.Dropout(dropout), {"receivers": 0, "neighbours": 1}[normalise]

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """(N, width) to (N, out)."""
        h = x @ self.W
        looks, seen = (h @ self.a.view(2, -1, 1)).unbind()  # (N, 1) each: H_i a[:out] and H_j a[out:]
        scores = F.leaky_relu(looks + seen.T, 0.01)
        weights = scores.masked_fill(adjacency == 0, MASKED).softmax(self.axis)
        return self.dropout(weights) @ h


class GraphAttention(nn.Module):
    """Two layers of graph attention, the first of several heads, under the names of THItoGene's state dict.

    Parameters
    ----------
    width, hidden, out
        Of a spot's features, of each head of the first layer, of the second.
    heads
        In the first layer.
    dropout
        Of the input, of what the heads give, and of the weights.
    normalise
        As in `GraphAttentionHead`.
    """

    def __init__(self, width: int, hidden: int, out: int, heads: int, dropout: float, normalise: Normalise) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.names = [f"attention_{head}" for head in range(heads)]
        for name in self.names:
            self.add_module(name, GraphAttentionHead(width, hidden, dropout, normalise))
        self.out_att = GraphAttentionHead(heads * hidden, out, dropout, normalise)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """(N, width) to (N, out)."""
        x = self.dropout(x)
        heads = [F.elu(self.get_submodule(name)(x, adjacency)) for name in self.names]
        return F.elu(self.out_att(self.dropout(torch.cat(heads, dim=1)), adjacency))
