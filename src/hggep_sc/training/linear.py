"""The linear path beside the network, fitted."""

from collections.abc import Sequence

import numpy as np

from ..prediction.linear import LinearPath
from .data import SectionData
from .ridge import ALPHAS, RANK, low_rank_ridge
from .selection import Training


def fit_linear(training: Sequence[SectionData], seed: int, alpha: float | None = None) -> LinearPath:
    """Fit to the observed spots of sections; the penalty is given, or chosen by leaving each out in turn."""
    features, targets, xy = [], [], []
    for data in training:
        seen = data.observed
        assert data.linear is not None  # read where there is a linear path
        features.append(data.linear if seen.all() else data.linear[seen])  # without a copy where that can be
        expression = data.expression[seen].astype(np.float64)
        targets.append(expression - expression.mean(axis=0))
        xy.append(data.xy[seen])
    groups = [data.group for data in training]
    alphas = ALPHAS if alpha is None else (alpha,)
    alpha, coefficients, components = low_rank_ridge(Training.of(features, targets, xy, groups, seed), alphas, RANK)
    return LinearPath(np.ascontiguousarray(coefficients), np.ascontiguousarray(components, dtype=np.float32), alpha)
