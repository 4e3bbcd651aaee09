"""Context in um: spots that lie closer than those a model learnt from are predicted amid as many as it knows.

Attention and hypergraph take whatever spots they are given for neighbours. So closer spots are dealt into layers, each
of which is a lattice of about the model's own pitch, and each layer is predicted by itself: every spot once, among
neighbours as far away as those in training.
"""

from collections.abc import Iterator

import numpy as np

from ..section import spot_spacing

FINER = 0.7  # of the training pitch, below which spots are dealt into layers


def pitch_of(spacing_um: float | None, trained_um: tuple[float, float] | None) -> float | None:
    """Return the um between neighbours that a model knows, where spots lie much closer; else, or unknown, None."""
    if spacing_um is None or trained_um is None or spacing_um >= FINER * trained_um[0]:
        return None
    return trained_um[0]


def layers_at_pitch(xy: np.ndarray, pitch: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Deal spots into layers that have one spot in each square of a lattice.

    Parameters
    ----------
    xy
        (n, 2) spot centres.
    pitch
        Side of the squares, in the unit of `xy`.

    Yields
    ------
    For each layer the indices of its spots, and which of them are its own (bool). A layer's own spots lie at about the
    same place in their squares; in a square without one the spot that is nearest to that place stands in, as context.
    Every spot is one layer's own. On a regular grid a layer is a regular grid of this pitch.
    """
    from scipy.spatial import KDTree

    spacing = spot_spacing(xy) or pitch
    steps = max(round(pitch / spacing), 1)  # places in a square, along each side
    at = (xy - xy.min(axis=0) + spacing / 2) / pitch
    square = np.floor(at)
    place = np.floor((at - square) * steps).clip(max=steps - 1)
    squares, of_square = np.unique(square, axis=0, return_inverse=True)
    key = np.column_stack([place, of_square.reshape(-1)])
    order = np.lexsort((*xy.T, *key.T[::-1]))
    new = np.concatenate([[True], (np.diff(key[order], axis=0) != 0).any(axis=1)])
    starts = np.flatnonzero(new)
    turn = np.empty(len(xy), dtype=np.int64)  # of spots at one place of one square
    turn[order] = np.arange(len(xy)) - np.repeat(starts, np.diff([*starts, len(xy)]))
    tree = KDTree(at)
    layers, of_layer = np.unique(np.column_stack([place, turn]), axis=0, return_inverse=True)
    for number, (x, y, _) in enumerate(layers):
        nodes = tree.query(squares + (np.array([x, y]) + 0.5) / steps)[1]
        own = np.flatnonzero(of_layer.reshape(-1) == number)
        nodes[of_square.reshape(-1)[own]] = own
        spots = np.unique(nodes)
        yield spots, np.isin(spots, own)
