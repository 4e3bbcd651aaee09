"""The linear probe of HEST-Bench: principal components of the features, and a ridge with a fixed penalty."""

from typing import ClassVar

import numpy as np

from ...training.ridge import RidgePath
from ...training.selection import Training
from .config import BaselineConfig
from .ridge import Ridge

N_COMPONENTS = 256
STRENGTH = 100.0  # over the number of components and genes: the penalty


class HestRidge(Ridge):
    """HEST-Bench's probe of an encoder (Jaume et al., HEST-1k, 2024, and the benchmark's code).

    Features are standardised over all training spots and brought to 256 principal components (fewer where there are
    not as many spots or features). The ridge's penalty is 100 / (components * genes), whatever the data. Nothing is
    relative to a section: the other baselines standardise features, and centre targets, within each. The benchmark's
    prediction lacks an intercept; here `gene_mean` is added, which no correlation sees. The benchmark's solver
    (scikit-learn's "lsqr") stops near the solution; this is the solution.
    """

    method = "hest_ridge"
    within_section: ClassVar[bool] = False

    @classmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        features = training.features.astype(np.float64)
        scaler = StandardScaler()
        pca = PCA(min(N_COMPONENTS, *features.shape), svd_solver="full")
        components = pca.fit_transform(scaler.fit_transform(features))
        alpha = STRENGTH / (components.shape[1] * training.targets.shape[1])
        slopes = RidgePath(components, training.targets).coefficients(alpha)
        coefficients = (pca.components_ / scaler.scale_).T @ slopes
        return {"alpha": np.array(alpha), "center": scaler.mean_, "coefficients": coefficients}

    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return (features - self.arrays["center"]) @ self.arrays["coefficients"], None
