"""Hypergraph association module (HAM), equations 13-16 of the paper."""

import torch
from torch import Tensor, nn
from torch_geometric.nn import HypergraphConv

BLOCK = 2**22  # distances held at once, whole rows of them: memory does not grow with the N x N that there are


@torch.no_grad()
def nearest_hyperedges(features: Tensor, positions: Tensor, n_neighbors: int) -> Tensor:
    """Give every spot a hyperedge that holds itself and its nearest spots.

    Nearness is equation 15, Inc = Norm(Dis) + Norm(Pos): Euclidean distance of the features (eq. 13) plus
    Euclidean distance of the spot coordinates (eq. 14), each row divided by its mean.

    Parameters
    ----------
    features
        (N, D).
    positions
        (N, 2), in any unit.
    n_neighbors
        K; sections with fewer than K + 1 spots use all of them.

    Returns
    -------
    Incidence, (2, N * (K + 1)): row 0 the spot, row 1 the hyperedge it lies in.
    """
    n = len(features)
    k = min(n_neighbors + 1, n)
    features, positions = features.float(), positions.float()
    spots = torch.empty((n, k), dtype=torch.long, device=features.device)
    n_rows = max(BLOCK // n, 1)
    for start in range(0, n, n_rows):
        rows = slice(start, start + n_rows)
        inc = _row_normalised(features[rows], features)
        inc += _row_normalised(positions[rows], positions)
        inc[:, start:].diagonal().fill_(-1.0)  # a spot comes first in its own hyperedge, duplicates or not
        spots[rows] = inc.topk(k, largest=False).indices
    edges = torch.arange(n, device=spots.device).repeat_interleave(k)
    return torch.stack([spots.flatten(), edges])


def _row_normalised(rows: Tensor, points: Tensor) -> Tensor:
    # the matrix-product shortcut loses short distances between large coordinates
    mode = "use_mm_for_euclid_dist_if_necessary" if points.shape[1] > 2 else "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(rows, points, compute_mode=mode)
    distance /= distance.mean(1, keepdim=True).clamp_min(torch.finfo(distance.dtype).tiny)
    return distance


class HAM(nn.Module):
    """Two hypergraph convolutions D^-1 H B^-1 H^T X W (eq. 16), (N, D) -> (N, D/2) -> (N, D)."""

    def __init__(self, width: int, n_neighbors: int, dropout: float) -> None:
        super().__init__()
        self.n_neighbors = n_neighbors
        self.conv1 = HypergraphConv(width, width // 2)
        self.norm = nn.Sequential(nn.ReLU(), nn.LayerNorm(width // 2), nn.Dropout(dropout))
        self.conv2 = HypergraphConv(width // 2, width)

    def forward(self, h: Tensor, positions: Tensor) -> Tensor:
        edges = nearest_hyperedges(h, positions, self.n_neighbors)
        x = self.norm(self.conv1(h, edges, num_edges=len(h)))
        return self.conv2(x, edges, num_edges=len(h))
