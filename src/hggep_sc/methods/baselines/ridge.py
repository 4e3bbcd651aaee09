"""Ridge regression of expression on patch features, gene by gene or through principal components."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import linalg

from .base import Baseline
from .config import BaselineConfig
from .selection import Training, choose


class RidgePath:
    """Ridge regression of Y on X for any penalty, from one eigendecomposition.

    B(alpha) = (X'X + alpha I)^-1 X'Y = V (L + alpha)^-1 V'X'Y, where X'X = V L V'. With fewer spots than features,
    V comes from the eigenvectors of XX', the smaller matrix. There is no intercept: X and Y are centred.
    """

    def __init__(self, X: np.ndarray, Y: np.ndarray) -> None:
        X = X.astype(np.float64)
        if len(X) < X.shape[1]:
            eigenvalues, U = linalg.eigh(X @ X.T)
            kept = eigenvalues > np.finfo(float).eps * len(X) * eigenvalues[-1]  # X'Y has no part in the rest
            self.eigenvalues = eigenvalues[kept]
            self.V = X.T @ U[:, kept] / np.sqrt(self.eigenvalues)
        else:
            self.eigenvalues, self.V = linalg.eigh(X.T @ X)
        self.rotated = self.V.T @ (X.T @ Y)

    def coefficients(self, alpha: float) -> np.ndarray:
        """Return B, (n_features, n_targets)."""
        return self.V @ (self.rotated / (self.eigenvalues + alpha)[:, None])

    def predict(self, X: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
        """Yield X B for each alpha."""
        scores = X @ self.V
        for alpha in alphas:
            yield (scores / (self.eigenvalues + alpha)) @ self.rotated


class Ridge(Baseline):
    """Ridge regression of every gene on the features of a spot's patches.

    The penalty is chosen among `config.alphas` by leaving each training section out in turn.
    """

    method = "ridge"

    @property
    def alpha(self) -> float:
        """The penalty that was chosen."""
        return float(self.arrays["alpha"])

    @classmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        def predict(X: np.ndarray, Y: np.ndarray, new: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
            return RidgePath(X, Y).predict(new, alphas)

        alpha = choose("alphas", config.alphas, training, predict)
        path = RidgePath(training.features, training.targets)
        return {"alpha": np.array(alpha), "coefficients": path.coefficients(alpha).astype(np.float32)}

    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return features @ self.arrays["coefficients"], None


class LowRankRidge(Ridge):
    """Ridge regression of the targets' leading principal components, from which the genes are rebuilt.

    Y is about Z C, with C the `config.rank` leading components (sklearn's PCA) of the centred targets and Z = Y C'.
    The ridge predicts Z; its prediction is the latent. Noise of single genes, which the components leave out, is
    then not fitted.
    """

    method = "low_rank_ridge"

    @classmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        def predict(X: np.ndarray, Y: np.ndarray, new: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
            C = principal_components(Y, config.rank)
            return (Z @ C for Z in RidgePath(X, Y @ C.T).predict(new, alphas))

        alpha = choose("alphas", config.alphas, training, predict)
        C = principal_components(training.targets, config.rank)
        path = RidgePath(training.features, training.targets @ C.T)
        return {"alpha": np.array(alpha), "coefficients": path.coefficients(alpha).astype(np.float32), "components": C}

    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        latent = features @ self.arrays["coefficients"]
        return latent @ self.arrays["components"], latent


def principal_components(targets: np.ndarray, rank: int) -> np.ndarray:
    """Return the leading components of targets, (rank, n_genes); fewer where there are not as many spots or genes."""
    from sklearn.decomposition import PCA

    return PCA(min(rank, *targets.shape), svd_solver="full").fit(targets).components_
