"""Mean and spread of a section's features, by which a ridge standardises them."""

from collections.abc import Iterator
from typing import Self

import numpy as np

from ..storage.arrays import let_go

CONSTANT = 1e-6  # relative spread below which a feature says nothing
ROWS = 4096  # of features that are in double precision at once


class Moments:
    """Mean and spread of a section's features, (n_spots, n_features), gathered a part of the spots at a time.

    Attributes
    ----------
    mean
        (n_features,) float64, over the spots so far.
    """

    def __init__(self) -> None:
        self.mean = np.zeros(())
        self._n = 0
        self._squares = np.zeros(())  # summed, around the mean
        self._largest = np.zeros(())

    @classmethod
    def of(cls, block: np.ndarray) -> Self:
        """Return the moments of all of a section's spots."""
        moments = cls()
        for rows in rows_at_once(len(block)):
            moments.add(block[rows])
            let_go(block)
        return moments

    def add(self, part: np.ndarray) -> None:
        """Take in more spots, by the formula of Chan, Golub and LeVeque."""
        n, mean = self._n + len(part), part.mean(axis=0, dtype=np.float64)
        shift = mean - self.mean
        self._squares = self._squares + ((part - mean) ** 2).sum(axis=0) + shift**2 * (self._n * len(part) / n)
        self.mean = self.mean + shift * (len(part) / n)
        self._largest = np.maximum(self._largest, np.maximum(part.max(axis=0), -part.min(axis=0)))
        self._n = n

    def standardised(self, part: np.ndarray) -> np.ndarray:
        """Bring each column to mean 0 and variance 1 / n_features over the section, float32; constant ones to 0."""
        spread = np.sqrt(self._squares / self._n)
        spread[spread <= CONSTANT * self._largest] = np.inf
        return ((part - self.mean) / spread / np.sqrt(part.shape[1])).astype(np.float32)


def rows_at_once(n: int) -> Iterator[slice]:
    """Yield the rows that are in double precision at once, of n."""
    return (slice(start, start + ROWS) for start in range(0, n, ROWS))
