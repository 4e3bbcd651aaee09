"""The hypergraph of equation 15 in the plainest way, a spot at a time in double precision: what ours is held to."""

import numpy as np


def hyperedge(spot: int, features: np.ndarray, positions: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Members of a spot's hyperedge: itself, then its nearest spots; of equally near ones the first."""
    incidence = incidence_row(spot, features, positions)
    others = [other for other in np.argsort(incidence, kind="stable") if other != spot]
    return np.array([spot, *others[:n_neighbors]])


def incidence_row(spot: int, features: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Inc = Norm(Dis) + Norm(Pos) of a spot to all spots, each distance divided by its mean (0 where all are 0)."""
    row = np.zeros(len(features))
    for points in (np.asarray(features, dtype=np.float64), np.asarray(positions, dtype=np.float64)):
        distance = np.sqrt(((points - points[spot]) ** 2).sum(axis=1))
        if distance.any():
            row += distance / distance.mean()
    return row


def nearest_hyperedges(features: np.ndarray, positions: np.ndarray, n_neighbors: int) -> list[set[int]]:
    """Members of every spot's hyperedge."""
    return [set(hyperedge(spot, features, positions, n_neighbors).tolist()) for spot in range(len(features))]
