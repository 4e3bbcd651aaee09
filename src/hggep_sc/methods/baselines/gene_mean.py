"""The mean of each gene, whatever the image shows."""

from typing import ClassVar

import numpy as np

from ...training.selection import Training
from .base import Baseline
from .config import BaselineConfig


class GeneMean(Baseline):
    """Predicts, for every spot alike, the mean over the training sections of their mean expression.

    A constant has no correlation: its PCC is NaN. Its RMSE is what knowing the genes alone gives.
    """

    method = "gene_mean"
    takes: ClassVar[frozenset[str]] = Baseline.takes - {"encoder", "weights"}
    reads_image = False
    n_features = 0

    @classmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        return {}

    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return np.zeros((len(features), len(self.genes)), dtype=np.float32), None
