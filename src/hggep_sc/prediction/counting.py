"""What the counting of molecules alone adds to the error of a prediction."""

import numpy as np

from ..section.expression import ExpressionScale


def counting_noise(predicted: np.ndarray, counts: np.ndarray, totals: np.ndarray, scale: ExpressionScale) -> np.ndarray:
    """Return the variance that counting gives each spot's log expression, (n_spots, n_genes).

    It is that of Poisson counts whose means follow the prediction, around the section's share of each gene.

    Parameters
    ----------
    predicted
        (n_spots, n_genes), natural log units.
    counts, totals
        (n_spots, n_genes) raw, and (n_spots,) what they are divided by.
    scale
        The expression scale.
    """
    fold = np.exp(predicted - predicted.mean(0))
    shares = counts.sum(0) / totals.sum() * fold / np.average(fold, axis=0, weights=totals)
    return counting_variance(totals[:, None] * shares, totals, scale.target_sum)


def counting_variance(rates: np.ndarray, totals: np.ndarray, target_sum: float) -> np.ndarray:
    """Return the variance of log(1 + target_sum k / total) for Poisson counts k.

    Parameters
    ----------
    rates
        (n_spots, n_genes) means of the counts.
    totals
        (n_spots,) what counts are divided by.
    target_sum
        What they are scaled to.

    Returns
    -------
    (n_spots, n_genes). Up to a mean of 100 the sum over k is taken on a grid of means and interpolated; above, the
    first order, mean (target_sum / (total + target_sum mean))^2.
    """
    from scipy.stats import poisson

    means = np.concatenate([[0.0], np.geomspace(1e-4, 100, 400)])
    k = np.arange(200)
    probability = poisson.pmf(k, means[:, None])
    logs = np.log1p(target_sum / totals * k[:, None])  # (k, spots)
    variance = probability @ logs**2 - (probability @ logs) ** 2
    first_order = rates * (target_sum / (totals[:, None] + target_sum * rates)) ** 2
    exact = np.stack([np.interp(rates[i], means, variance[:, i]) for i in range(len(rates))])
    return np.where(rates > means[-1], first_order, exact)
