"""Spots split into compact groups."""

from collections.abc import Callable

import numpy as np


def halved(xy: np.ndarray, fits: Callable[[np.ndarray], bool]) -> list[np.ndarray]:
    """Split spots into compact groups by halving along the longer side; the order of the spots does not matter.

    Parameters
    ----------
    xy
        (n, 2) spot centres.
    fits
        Whether a group, given by the indices of its spots, need not be halved; one spot never is.

    Returns
    -------
    Sorted indices of each group.
    """
    todo, groups = [np.arange(len(xy))], []
    while todo:
        spots = todo.pop()
        if len(spots) <= 1 or fits(spots):
            groups.append(np.sort(spots))
            continue
        points = xy[spots]
        axis = int(np.ptp(points[:, 1]) > np.ptp(points[:, 0]))
        order = spots[np.lexsort((points[:, 1 - axis], points[:, axis]))]
        todo += [order[len(order) // 2 :], order[: len(order) // 2]]
    return groups
