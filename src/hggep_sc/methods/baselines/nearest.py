"""The expression of the training patches that look most alike."""

from collections.abc import Iterator, Sequence

import numpy as np

from ...training.selection import Training, choose
from .base import Baseline
from .config import BaselineConfig

N_NEIGHBORS = (1, 3, 10, 30, 50, 75, 100, 150, 200)  # chosen from, as far as there are spots


class NearestPatches(Baseline):
    """Mean centred expression of the k training patches whose standardised features are nearest (Euclidean).

    k is `config.n_neighbors`, or chosen by leaving each training section out in turn.
    """

    method = "nearest_patches"

    @property
    def n_neighbors(self) -> int:
        """The number of patches averaged over."""
        return int(self.arrays["n_neighbors"])

    @property
    def n_features(self) -> int:
        return self.arrays["features"].shape[1]

    @classmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        fewest = min([(~held_out).sum() for held_out in training.held_out], default=len(training.targets))
        candidates = [k for k in N_NEIGHBORS if k <= fewest] if config.n_neighbors is None else [config.n_neighbors]
        if candidates[0] > len(training.targets):
            raise ValueError(
                f"config.n_neighbors={candidates[0]}, but there are only {len(training.targets)} training spots"
            )
        k = choose("n_neighbors", candidates, training, mean_of_nearest)
        return {
            "n_neighbors": np.array(k),
            "features": training.features.astype(np.float32),
            "targets": training.targets.astype(np.float32),
        }

    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        (mean,) = mean_of_nearest(self.arrays["features"], self.arrays["targets"], features, [self.n_neighbors])
        return mean, None


def mean_of_nearest(X: np.ndarray, Y: np.ndarray, new: np.ndarray, ks: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield, for each k in rising order, the mean of Y over the k rows of X nearest to each new row."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=max(ks), algorithm="brute").fit(X).kneighbors(new, return_distance=False)
    total = np.zeros((len(new), Y.shape[1]))
    for j in range(max(ks)):
        total += Y[nearest[:, j]]
        if j + 1 in ks:
            yield total / (j + 1)
