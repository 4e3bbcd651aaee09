"""The linear path beside the network: a low-rank ridge on features that are standardised within each section."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from ..features.moments import Moments, rows_at_once
from ..storage.arrays import let_go

if TYPE_CHECKING:
    from ..features.store import Described


@dataclass(frozen=True, eq=False)
class LinearPath:
    """Expression around the mean of the training sections' means, linear in features.

    Attributes
    ----------
    coefficients
        (n_features, k).
    components
        (k, n_genes) principal components of the targets.
    alpha
        The penalty.
    """

    coefficients: np.ndarray
    components: np.ndarray
    alpha: float

    def predict(self, features: "np.ndarray | LinearFeatures") -> np.ndarray:
        """(n_spots, n_features) of all spots of a section to (n_spots, n_genes), around the mean."""
        parts = (features[rows] @ self.coefficients @ self.components for rows in rows_at_once(len(features)))
        return np.concatenate(list(parts))

    def scaled(self, factor: float) -> "LinearPath":
        """Return the path whose prediction is so many times this one's."""
        return LinearPath((factor * self.coefficients).astype(np.float32), self.components, self.alpha)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything, for a model's folder."""
        return {
            "coefficients": torch.from_numpy(self.coefficients),
            "components": torch.from_numpy(self.components),
            "alpha": torch.tensor(self.alpha, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from `tensors`."""
        return cls(tensors["coefficients"].numpy(), tensors["components"].numpy(), float(tensors["alpha"]))


class LinearFeatures:
    """What the linear path sees of a section's spots, (n_spots, n_features), float32, computed where it is looked at.

    These are statistics of colour and texture, and the encoder's features. Every column has mean 0 over the section;
    the columns of either kind have together variance 1.
    """

    def __init__(self, described: "Described") -> None:
        self._blocks = [(block, Moments.of(block)) for block in _blocks(described)]

    def __len__(self) -> int:
        return len(self._blocks[0][0])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return sum(block.shape[1] for block, _ in self._blocks)

    def __getitem__(self, rows: "slice | np.ndarray") -> np.ndarray:
        standardised = np.hstack([moments.standardised(block[rows]) for block, moments in self._blocks])
        for block, _ in self._blocks:
            let_go(block)
        return standardised


def linear_features(described: "Described") -> np.ndarray:
    """Return `LinearFeatures` of all spots."""
    features = LinearFeatures(described)
    whole = np.empty((len(features), features.n_features), dtype=np.float32)
    for rows in rows_at_once(len(whole)):
        whole[rows] = features[rows]
    return whole


def plain_features(described: "Described") -> np.ndarray:
    """Return the features that `linear_features` standardises, as they are."""
    return np.hstack(_blocks(described))


def add_linear(expression: np.ndarray, path: LinearPath, described: "Described") -> None:
    """Add what a linear path predicts to `expression` (n_spots, n_genes), which is written to."""
    features = LinearFeatures(described)
    for rows in rows_at_once(len(expression)):
        expression[rows] += path.predict(features[rows])


def _blocks(described: "Described") -> list[np.ndarray]:
    """Return features of either kind, (n_spots, n_features), as they are."""
    return [kind.reshape(len(kind), -1) for kind in (described.colours, described.encoded) if kind is not None]
