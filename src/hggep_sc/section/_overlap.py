"""Spots whose patches share tissue."""

import numpy as np

from ._scale import spot_spacing

NEIGHBOURS = 1.5  # spacings of spots: nearer ones are neighbours, however small their patches


def reach(xy: np.ndarray, field: float) -> float:
    """Return within what distance spots share tissue in their patches or are neighbours, in the unit of both."""
    return max(field, NEIGHBOURS * (spot_spacing(xy) or 0.0))


def within(xy: np.ndarray, others: np.ndarray, distance: float) -> np.ndarray:
    """Tell which spots lie nearer to one of the others than a distance along both axes, as square patches overlap.

    Returns
    -------
    (n_spots,) bool.
    """
    from scipy.spatial import KDTree

    return np.isfinite(KDTree(others).query(xy, p=np.inf, distance_upper_bound=distance)[0])
