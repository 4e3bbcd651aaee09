"""A prediction corrected by spots of the section that are measured.

What is measured less what is predicted is taken for a Gaussian process over position and look (Cressie 1993, Statistics
for Spatial Data, chapter 3; Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, chapters 2 and 5;
several genes at once as in the linear model of coregionalization, Goovaerts 1997). A spot's look is its scores on the
leading principal components of the prediction, so that the prediction of any method can be corrected.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from ..errors import InputError, InputWarning
from ..features.parts import halved
from ..runtime.messages import warn
from ..section.expression import ExpressionScale
from .counting import counting_noise

if TYPE_CHECKING:
    import scipy.sparse as sp

    from ..section import Section

LEAST = 5  # measured spots of a section: of fewer, error cannot be told from noise
COMPONENTS = 8  # of the prediction, which are corrected
CONSTANT = 1e-8  # variance that is none, of a prediction, and of a component as a share of the first one's
SAMPLE = 2048  # spots, evenly dealt, that the components are found on
FITTED = 500  # measured spots, evenly dealt, that hyperparameters are found on
AT_ONCE = 1000  # measured spots that a spot is corrected by: the nearest, where there are more
CHUNK = 4096  # spots that are corrected at once
RATIOS = np.concatenate([[0.0], np.geomspace(0.02, 20, 10)])  # of signal to noise, that a component may have
ROUNDS = 30  # of expectation and maximization, for how usual each ratio is
TRIALS = 80  # of hyperparameters
# logarithms of: weight of position and of slopes, each by that of look; length in position (by the section's radius)
# and in look (by the spread of look). They are found by maximum likelihood with these normal priors, which hold them
# where few spots say nothing of them.
PRIOR_MEAN = np.array([0.0, 0.0, np.log(0.2), np.log(1.5)])
PRIOR_SD = np.array([1.5, 1.5, 0.8, 0.8])


class Measured(NamedTuple):
    """Measured spots of a section.

    Attributes
    ----------
    spots
        (m,) indices among the section's.
    counts
        (m, n_genes) raw counts.
    totals
        (m,) what these are divided by, above 0.
    """

    spots: np.ndarray
    counts: "sp.csr_matrix"
    totals: np.ndarray


class Corrected(NamedTuple):
    """A prediction corrected by measured spots.

    Attributes
    ----------
    expression
        (n_spots, n_genes) float32, on the scale of the prediction. At measured spots it is the posterior mean too:
        smoothed, not what was counted.
    uncertainty
        (n_spots,) float32: the error to expect beyond counting noise, root mean square over genes, natural log units;
        the level of each gene aside.
    """

    expression: np.ndarray
    uncertainty: np.ndarray


def counts_at(section: "Section", spots: np.ndarray, genes: Sequence[str], scale: ExpressionScale) -> Measured:
    """Read the counts of a section's measured spots, and of no others.

    Those where nothing was counted are left out, with a warning.

    Parameters
    ----------
    section
        The section.
    spots
        (m,) indices of its measured spots.
    genes
        Names of the predicted genes that it has.
    scale
        The expression scale of the prediction.

    Raises
    ------
    MissingSlotError
        If there are no counts.
    InputError
        If they are none, or too few spots have any.
    """
    of_spots = section.subset(spots)
    counts = of_spots.counts(genes)
    totals = scale.totals(counts, of_spots.library())
    known = totals > 0
    if known.sum() < LEAST:
        raise InputError(
            f"section {section.name!r}: {known.sum()} of its {len(spots)} measured spots have counts, and measured= "
            f"needs at least {LEAST}: of fewer, error cannot be told from noise. If the raw counts are in a layer, "
            "name it by layer="
        )
    if not known.all():
        warn(
            f"section {section.name!r}: {(~known).sum()} of its {len(spots)} measured spots have no counts, and are "
            "taken for not measured",
            InputWarning,
        )
    return Measured(spots[known], counts[known], totals[known])


def corrected(predicted: np.ndarray, xy: np.ndarray, measured: Measured, scale: ExpressionScale) -> Corrected:
    """Correct the prediction of a section by the counts of some of its spots.

    The residual at the measured spots is split into each gene's level, shrunk towards none as far as the genes' levels
    are noise (James & Stein 1961), and scores on the leading components of the prediction, each a Gaussian process.
    The kernel is a sum of a Matern kernel (3/2) over position, a linear one over look (slopes: a regression on the
    components, shrunk towards the prediction) and a squared exponential over look. Its hyperparameters are the same for
    all components, but for the ratio of signal to noise; noise is at least that of Poisson counts. What lies outside
    the components is left as it was predicted: few spots tell too little of single genes. Where the prediction is
    constant, the components are those of the residual, and what is left is kriging.

    Parameters
    ----------
    predicted
        (n_spots, n_genes) log expression on `scale`.
    xy
        (n_spots, 2) spot centres, in any unit.
    measured
        What was measured.
    scale
        The expression scale of the prediction.

    Returns
    -------
    Expression and uncertainty. Where more than `AT_ONCE` spots are measured, compact groups of spots are corrected by
    as many that are nearest to them, so that no matrix grows with their number.
    """
    at, counts, totals = measured
    residual = scale.transform(counts, totals).astype(np.float64) - predicted[at]
    level = _level(residual)
    residual -= level
    basis, look = _components(predicted)
    if len(basis) == 0:
        basis = np.linalg.svd(residual, full_matrices=False)[2][:COMPONENTS]
    places = np.hstack([_centred(xy), look])
    scores = residual @ basis.T

    some = _evenly(len(at), FITTED)
    natural = predicted[at[some]].astype(np.float64) * scale.log_unit
    noise = counting_noise(natural, counts[some].toarray(), totals[some], scale).mean(0) / scale.log_unit**2
    field = _Field.fit(places[at[some]], scores[some], basis**2 @ noise + CONSTANT)
    outside = np.square(residual[some] - scores[some] @ basis).sum(1).mean() + field.noise
    unresolved = max((outside - noise.sum()) / predicted.shape[1], 0.0)

    expression = predicted.astype(np.float32)
    uncertainty = np.empty(len(xy), dtype=np.float32)
    for group, near in _groups(xy, at):
        local = field.given(places[at[near]], scores[near])
        for part in np.array_split(group, -(-len(group) // CHUNK)):
            mean, variance = local.at(places[part])
            expression[part] += level + mean @ basis
            uncertainty[part] = np.sqrt(variance / predicted.shape[1] + unresolved) * scale.log_unit
    return Corrected(expression, uncertainty)


def _level(residual: np.ndarray) -> np.ndarray:
    """Mean residual of each gene, shrunk by how much of the means' spread over genes is no noise."""
    mean, noise = residual.mean(0), residual.var(0, ddof=1) / len(residual)
    signal = max(float((mean**2 - noise).mean()), 0.0)
    return mean * np.divide(signal, signal + noise, out=np.zeros_like(noise), where=signal + noise > 0)


def _components(predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leading components of a prediction (k, n_genes), and spots' scores (n, k >= 1), of mean square length 1."""
    from sklearn.decomposition import PCA

    sample = predicted[_evenly(len(predicted), SAMPLE)].astype(np.float64)
    if sample.var(0).sum() <= CONSTANT:
        return np.empty((0, predicted.shape[1])), np.zeros((len(predicted), 1))
    pca = PCA(min(COMPONENTS, *sample.shape), svd_solver="randomized", random_state=0).fit(sample)
    basis = pca.components_[pca.explained_variance_ > CONSTANT * pca.explained_variance_[0]]
    look = predicted @ basis.T - pca.mean_ @ basis.T
    return basis, look / np.sqrt(np.square(look).sum(1).mean())


def _centred(xy: np.ndarray) -> np.ndarray:
    """Positions around the section's centre, their mean square length 1."""
    offset = xy - xy.mean(0)
    length = np.sqrt(np.square(offset).sum(1).mean())
    return offset / length if length > 0 else offset


def _evenly(n: int, most: int) -> np.ndarray:
    """Return up to so many of n indices."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _groups(xy: np.ndarray, at: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Compact groups of spots, and for each the measured ones (indices into `at`) that it is corrected by."""
    if len(at) <= AT_ONCE:
        return [(np.arange(len(xy)), np.arange(len(at)))]
    is_measured = np.zeros(len(xy), dtype=bool)
    is_measured[at] = True
    groups = []
    for group in halved(xy, lambda spots: int(is_measured[spots].sum()) <= AT_ONCE // 2):
        low, high = xy[group].min(0), xy[group].max(0)
        gap = np.maximum(np.maximum(low - xy[at], xy[at] - high), 0)
        near = np.argsort(np.hypot(*gap.T), kind="stable")[:AT_ONCE]
        groups.append((group, np.sort(near)))
    return groups


def _kernel(a: np.ndarray, b: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Covariance between places, (len(a), len(b)); a place is a position and a look."""
    position, slope, look = _weights(theta)
    length, look_length = np.exp(theta[2:])
    distance = np.sqrt(3) * cdist(a[:, :2], b[:, :2]) / length
    covariance = position * (1 + distance) * np.exp(-distance)
    covariance += slope * (a[:, 2:] @ b[:, 2:].T)
    covariance += look * np.exp(-0.5 * cdist(a[:, 2:], b[:, 2:], "sqeuclidean") / look_length**2)
    return covariance


def _variance(a: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Diagonal of the kernel, (len(a),)."""
    position, slope, look = _weights(theta)
    return position + look + slope * np.square(a[:, 2:]).sum(1)


def _weights(theta: np.ndarray) -> np.ndarray:
    """Weights of position, slopes and look, which sum to 1."""
    weights = np.exp([*theta[:2], 0.0])
    return weights / weights.sum()


def _likelihoods(
    places: np.ndarray, scores: np.ndarray, least: np.ndarray, theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log likelihood of each component at each ratio of signal to noise, and the noise's variance.

    Both are (ratios, components). The variance is at its maximum of likelihood, from `least` (components,) on. By the
    kernel's eigenvectors a ratio costs a product, and no factorization of its own.
    """
    values, vectors = np.linalg.eigh(_kernel(places, places, theta))
    variance = RATIOS[:, None] * values.clip(0) + 1
    squares = (1 / variance) @ np.square(vectors.T @ scores)
    noise = np.maximum(squares / len(scores), least)
    return -0.5 * (len(scores) * np.log(noise) + squares / noise + np.log(variance).sum(1)[:, None]), noise


def _shares(log_likelihood: np.ndarray) -> tuple[np.ndarray, float]:
    """Posterior of the ratios (ratios, components), and the log likelihood of all; components share a prior."""
    most = log_likelihood.max(0)
    likelihood = np.exp(log_likelihood - most)
    prior = np.full(len(RATIOS), 1 / len(RATIOS))
    for _ in range(ROUNDS):
        shares = prior[:, None] * likelihood
        shares /= shares.sum(0)
        prior = shares.mean(1) + 0.01 / len(RATIOS)  # none is ruled out by few components
        prior /= prior.sum()
    return shares, float((np.log(prior @ likelihood) + most).sum())


class _Field(NamedTuple):
    """Hyperparameters of the Gaussian processes."""

    theta: np.ndarray
    ratios: np.ndarray  # (ratios, components): how likely each ratio of signal to noise is
    variances: np.ndarray  # (ratios, components): of the noise

    @classmethod
    def fit(cls, places: np.ndarray, scores: np.ndarray, least: np.ndarray) -> "_Field":
        """Find them; `least` (components,) is the variance that counting noise has."""
        from scipy.optimize import minimize

        def cost(theta: np.ndarray) -> float:
            penalty = 0.5 * np.square((theta - PRIOR_MEAN) / PRIOR_SD).sum()
            return float(penalty - _shares(_likelihoods(places, scores, least, theta)[0])[1])

        simplex = np.vstack([PRIOR_MEAN, PRIOR_MEAN + np.diag(PRIOR_SD)])
        options = {"maxfev": TRIALS, "initial_simplex": simplex}
        theta = minimize(cost, PRIOR_MEAN, method="Nelder-Mead", options=options).x
        log_likelihood, noise = _likelihoods(places, scores, least, theta)
        return cls(theta, _shares(log_likelihood)[0], noise)

    @property
    def noise(self) -> float:
        """Variance at a spot that the processes do not explain, summed over components."""
        return float((self.ratios * self.variances).sum())

    def given(self, places: np.ndarray, scores: np.ndarray) -> "_Posterior":
        """Return the processes, given their values with noise at measured spots."""
        values, vectors = np.linalg.eigh(_kernel(places, places, self.theta))
        shrinkage = RATIOS[:, None] / (RATIOS[:, None] * values.clip(0) + 1)  # (ratios, m)
        coefficients = vectors @ ((shrinkage.T @ self.ratios) * (vectors.T @ scores))
        weights = (self.ratios * self.variances).sum(1) * RATIOS
        return _Posterior(self.theta, places, vectors, coefficients, weights @ shrinkage, weights.sum())


class _Posterior(NamedTuple):
    """The Gaussian processes, given measured spots."""

    theta: np.ndarray
    places: np.ndarray  # of the measured spots
    vectors: np.ndarray
    coefficients: np.ndarray  # (m, components)
    gain: np.ndarray  # (m,) what each eigenvector takes off the variance
    signal: float  # variance of the processes before, summed over components

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (n, components), and variance summed over components (n,), at other places."""
        covariance = _kernel(places, self.places, self.theta)
        explained = np.square(covariance @ self.vectors) @ self.gain
        variance = self.signal * _variance(places, self.theta) - explained
        return covariance @ self.coefficients, variance.clip(0)
