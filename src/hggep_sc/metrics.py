"""Figures of merit: arrays in, arrays out."""

import numpy as np


def pearson(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Pearson correlation of each gene across spots.

    Parameters
    ----------
    predicted, observed
        (n_spots, n_genes).

    Returns
    -------
    (n_genes,) float64; NaN where either is constant, or with fewer than two spots.
    """
    if predicted.shape != observed.shape:
        raise ValueError(f"predicted {predicted.shape} and observed {observed.shape} must have the same shape")
    if len(predicted) < 2:
        return np.full(predicted.shape[1], np.nan)
    p = predicted.astype(np.float64)
    o = observed.astype(np.float64)
    constant = (np.ptp(p, axis=0) == 0) | (np.ptp(o, axis=0) == 0)
    p -= p.mean(0)
    o -= o.mean(0)
    norm = np.sqrt((p**2).sum(0) * (o**2).sum(0))
    r = np.divide((p * o).sum(0), norm, out=np.full(p.shape[1], np.nan), where=~constant & (norm > 0))
    return np.clip(r, -1.0, 1.0)


def rmse(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Root mean squared error of each gene across spots, (n_genes,), in units of the input."""
    return np.sqrt(np.mean((predicted.astype(np.float64) - observed) ** 2, axis=0))
