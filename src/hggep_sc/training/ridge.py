"""Ridge regression on standardised features, of targets as they are or through their principal components."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import linalg

from ..features.moments import rows_at_once
from .selection import Training, choose

ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # penalties to choose from
RANK = 8  # principal components of the targets


class RidgePath:
    """Ridge regression of Y on X for any penalty, from one eigendecomposition.

    B(alpha) = (X'X + alpha I)^-1 X'Y = V (L + alpha)^-1 V'X'Y, where X'X = V L V'. With fewer spots than features,
    V comes from the eigenvectors of XX', the smaller matrix. There is no intercept: X and Y are centred.
    """

    def __init__(self, X: np.ndarray, Y: np.ndarray) -> None:
        if len(X) < X.shape[1]:
            X = X.astype(np.float64)
            eigenvalues, U = linalg.eigh(X @ X.T)
            kept = eigenvalues > np.finfo(float).eps * len(X) * eigenvalues[-1]  # X'Y has no part in the rest
            self.eigenvalues = eigenvalues[kept]
            self.V = X.T @ U[:, kept] / np.sqrt(self.eigenvalues)
            products = X.T @ Y
        else:
            squares = np.zeros((X.shape[1], X.shape[1]))
            products = np.zeros((X.shape[1], Y.shape[1]))
            for rows in rows_at_once(len(X)):  # never all of X in double precision
                part = X[rows].astype(np.float64)
                squares += part.T @ part
                products += part.T @ Y[rows]
            self.eigenvalues, self.V = linalg.eigh(squares)
        self.rotated = self.V.T @ products

    def coefficients(self, alpha: float) -> np.ndarray:
        """Return B, (n_features, n_targets)."""
        return self.V @ (self.rotated / (self.eigenvalues + alpha)[:, None])

    def predict(self, X: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
        """Yield X B for each alpha."""
        for alpha in alphas:
            B, found = self.coefficients(alpha), np.empty((len(X), self.rotated.shape[1]))
            for rows in rows_at_once(len(X)):
                found[rows] = X[rows] @ B
            yield found


def ridge(training: Training, alphas: Sequence[float]) -> tuple[float, np.ndarray]:
    """Choose the penalty and fit every target by itself.

    Returns
    -------
    The penalty and (n_features, n_targets) coefficients, float32.
    """

    def predict(X: np.ndarray, Y: np.ndarray, new: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
        return RidgePath(X, Y).predict(new, alphas)

    alpha = choose("alphas", alphas, training, predict)
    return alpha, RidgePath(training.features, training.targets).coefficients(alpha).astype(np.float32)


def low_rank_ridge(training: Training, alphas: Sequence[float], rank: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Choose the penalty and fit the targets' leading principal components, from which the targets are rebuilt.

    Y is about Z C, with C the `rank` leading components (sklearn's PCA) of the centred targets and Z = Y C'. The ridge
    predicts Z. Noise of single targets, which the components leave out, is then not fitted.

    Returns
    -------
    The penalty, (n_features, k) coefficients, float32, and (k, n_targets) components.
    """

    def predict(X: np.ndarray, Y: np.ndarray, new: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
        C = principal_components(Y, rank)
        return (Z @ C for Z in RidgePath(X, Y @ C.T).predict(new, alphas))

    alpha = choose("alphas", alphas, training, predict)
    C = principal_components(training.targets, rank)
    path = RidgePath(training.features, training.targets @ C.T)
    return alpha, path.coefficients(alpha).astype(np.float32), C


def principal_components(targets: np.ndarray, rank: int) -> np.ndarray:
    """Return the leading components of targets, (rank, n_genes); fewer where there are not as many spots or genes."""
    from sklearn.decomposition import PCA

    return PCA(min(rank, *targets.shape), svd_solver="full").fit(targets).components_
