"""Ridge regression of expression on patch features, gene by gene or through principal components."""

import numpy as np

from ...training.ridge import low_rank_ridge, ridge
from ...training.selection import Training
from .base import Baseline
from .config import BaselineConfig


class Ridge(Baseline):
    """Ridge regression of every gene on the features of a spot's patches.

    The penalty is chosen among `config.alphas` by leaving each training section out in turn.
    """

    method = "ridge"

    @property
    def alpha(self) -> float:
        """The penalty that was chosen."""
        return float(self.arrays["alpha"])

    @property
    def n_features(self) -> int:
        return len(self.arrays["coefficients"])

    @classmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        alpha, coefficients = ridge(training, config.alphas)
        return {"alpha": np.array(alpha), "coefficients": coefficients}

    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return features @ self.arrays["coefficients"], None


class LowRankRidge(Ridge):
    """Ridge regression of the targets' `config.rank` leading principal components, from which the genes are rebuilt.

    What the ridge predicts is the latent; see `hggep_sc.training.ridge.low_rank_ridge`.
    """

    method = "low_rank_ridge"

    @classmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        alpha, coefficients, components = low_rank_ridge(training, config.alphas, config.rank)
        return {"alpha": np.array(alpha), "coefficients": coefficients, "components": components}

    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        latent = features @ self.arrays["coefficients"]
        return latent @ self.arrays["components"], latent
