"""The linear path beside the network, fitted."""

from collections.abc import Sequence

import numpy as np

from ..features.moments import rows_at_once
from ..prediction.linear import LinearPath
from .data import SectionData
from .ridge import ALPHAS, RANK, low_rank_ridge
from .selection import Training


def fit_linear(training: Sequence[SectionData], seed: int, alpha: float | None = None) -> LinearPath:
    """Fit to the observed spots of sections; the penalty is given, or chosen by leaving each out in turn."""
    observed = [np.flatnonzero(data.observed) for data in training]
    targets = []
    for data, spots in zip(training, observed, strict=True):
        expression = data.expression[spots].astype(np.float64)
        targets.append(expression - expression.mean(axis=0))
    xy = [data.xy[spots] for data, spots in zip(training, observed, strict=True)]
    known = Training.of(_joined(training, observed), targets, xy, [data.group for data in training], seed)
    alpha, coefficients, components = low_rank_ridge(known, ALPHAS if alpha is None else (alpha,), RANK)
    return LinearPath(np.ascontiguousarray(coefficients), np.ascontiguousarray(components, dtype=np.float32), alpha)


def _joined(training: Sequence[SectionData], observed: Sequence[np.ndarray]) -> np.ndarray:
    """Return the features of the observed spots of all sections, float32, which are in memory once."""
    parts = [data.linear for data in training if data.linear is not None]  # read where there is a linear path
    features = np.empty((sum(map(len, observed)), parts[0].n_features), dtype=np.float32)
    of_sections = np.split(features, np.cumsum([len(spots) for spots in observed])[:-1])
    for part, spots, found in zip(parts, observed, of_sections, strict=True):
        for rows in rows_at_once(len(spots)):
            found[rows] = part[spots[rows]]
    return features
