"""How far a prediction may be trusted, learnt on training sections that were left out in turn."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..metrics import pearson
from ..nn import Ensemble, HGGEPNetwork
from ..prediction.confidence import Confidence, distance
from ..prediction.counting import counting_noise
from ..section.expression import ExpressionScale
from .cross_fit import HeldOut, Weights, data_features
from .data import SectionData
from .split import units_of

COMPONENTS = 8  # of the prediction, that a spot's error is told from
FLOOR_SHARE = 0.05  # share of the left-out spots below whose told variance none is told
LEAST_VARIANCE = 1e-4  # told of any spot: nothing is predicted without error
CONSTANT = 1e-6  # relative spread below which a feature says nothing
MOMENT_SPOTS = 512  # whose features are in memory at once


def confidence_of(
    network: HGGEPNetwork | Ensemble,
    training: Sequence[SectionData],
    held_out: Sequence[HeldOut],
    weights: Weights,
    *,
    scale: ExpressionScale,
    stain: np.ndarray,
) -> Confidence:
    """Compare what was predicted of training sections that were left out.

    Parameters
    ----------
    network
        Fitted to all of the training data.
    training
        The sections; counts of spots that are not observed are not looked at.
    held_out
        What `cross_fit` made of them.
    weights
        Of network and linear path.
    scale
        The expression scale.
    stain
        (n_sections, 3), of `optical_density`.
    """
    n_genes = training[0].expression.shape[1]
    predicted = [part.mixed(weights) for part in held_out]
    correlations = [pearson(mixed, part.observed) for mixed, part in zip(predicted, held_out, strict=True)]
    excess = [
        excess_variance(mixed, part.observed, part.counts, part.totals, scale)
        for mixed, part in zip(predicted, held_out, strict=True)
    ]
    reliability = np.full(n_genes, np.nan, dtype=np.float32)
    if correlations:
        known = np.isfinite(correlations).any(0)
        reliability[known] = np.nanmean(np.array(correlations)[:, known], axis=0)
    components, spread, coefficients, floor = _error_model(predicted, excess, n_genes)
    means, variances = _moments(network, training)
    mean, std = _pooled(means, variances)
    units = np.array(units_of([data.group for data in training]))
    distances = [
        distance(mean, *_pooled(means[units != unit], variances[units != unit]))
        for mean, unit in zip(means, units, strict=True)
        if (units != unit).any()
    ]
    return Confidence(
        reliability,
        components,
        spread,
        coefficients,
        floor,
        mean.astype(np.float32),
        std.astype(np.float32),
        np.array(max(distances, default=np.nan), dtype=np.float32),
        stain.astype(np.float32),
    )


def excess_variance(
    predicted: np.ndarray, observed: np.ndarray, counts: np.ndarray, totals: np.ndarray, scale: ExpressionScale
) -> np.ndarray:
    """Return the mean squared error of each spot beyond what counting noise gives at its depth, (n_spots,).

    Both sides are centred per gene over the spots, which are of one section. The noise is `counting_noise`. Negative
    where the error is smaller.

    Parameters
    ----------
    predicted, observed
        (n_spots, n_genes), natural log units.
    counts, totals
        (n_spots, n_genes) raw, and (n_spots,) what they are divided by.
    scale
        The expression scale.
    """
    error = (predicted - predicted.mean(0)) - (observed - observed.mean(0))
    return (error**2).mean(1) - counting_noise(predicted, counts, totals, scale).mean(1)


def _error_model(
    predicted: Sequence[np.ndarray], excess: Sequence[np.ndarray], n_genes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit the excess variance by a ridge on the prediction's scores and their squares, sections centred."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV

    if not predicted:
        nothing = np.zeros((1, n_genes), np.float32), np.ones(1, np.float32), np.full(3, np.nan, np.float32)
        return *nothing, np.array(np.nan, np.float32)
    everything = np.concatenate(predicted)
    pca = PCA(min(COMPONENTS, *everything.shape), svd_solver="full").fit(everything)
    spread = np.maximum((everything @ pca.components_.T).std(0), 1e-6)
    z = [part @ pca.components_.T / spread for part in predicted]
    design = np.concatenate([np.hstack([scores, scores**2]) for scores in z])
    target = np.concatenate([part - part.mean() for part in excess])
    ridge = RidgeCV(np.logspace(-1, 5, 13)).fit(design, target)
    level = np.mean([part.mean() for part in excess])
    coefficients = np.concatenate([[ridge.intercept_ + level], ridge.coef_])
    told = coefficients[0] + design @ coefficients[1:]
    floor = np.quantile(told, FLOOR_SHARE).clip(LEAST_VARIANCE)
    return (
        pca.components_.astype(np.float32),
        spread.astype(np.float32),
        coefficients.astype(np.float32),
        np.array(floor, dtype=np.float32),
    )


def _moments(network: HGGEPNetwork | Ensemble, training: Sequence[SectionData]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each feature over each section's observed spots, (sections, fields, D)."""
    network.eval()
    means, variances = [], []
    for data in training:
        seen, features = np.flatnonzero(data.observed), data_features(network, data)
        # in double precision the difference of squares keeps eight digits of the spread
        total, squares = np.zeros(()), np.zeros(())
        for spots in np.array_split(seen, -(-len(seen) // MOMENT_SPOTS)):
            part = features[spots, 0].astype(np.float64)
            total, squares = total + part.sum(0), squares + (part**2).sum(0)
        mean = total / len(seen)
        means.append(mean)
        variances.append(np.maximum(squares / len(seen) - mean**2, 0))
    return np.stack(means), np.stack(variances)


def _pooled(means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over sections, which count alike; 1 for features that are constant."""
    mean = means.mean(0)
    std = np.sqrt((variances + (means - mean) ** 2).mean(0))
    return mean, np.where(std <= CONSTANT * np.abs(mean), 1.0, std)


def feature_statistics(network: HGGEPNetwork, training: Sequence[SectionData]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature over the training spots, (fields, D); sections count alike."""
    mean, std = _pooled(*_moments(network, training))
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
