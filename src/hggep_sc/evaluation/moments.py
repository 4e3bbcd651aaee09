"""Moments of a section's prediction and counts, from which its correlations follow, and those over several sections."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..metrics import BLOCK
from ..section import Section, reach
from ..section.expression import ExpressionScale

TARGETS = ("observed", "smoothed")
CONSTANT = 1e-11  # relative spread below which sections pooled are constant: what lies below is rounding


def section_moments(
    section: Section, predicted: np.ndarray, panel: Sequence[str], scale: ExpressionScale
) -> pd.DataFrame:
    """Return the moments of each gene over the section's spots with counts, in natural log units.

    The smoothed target of a spot is the mean of the observed log expression over the spot and its neighbours with
    counts, within 1.5 times the distance from spot to spot: at most eight on a square grid, six on a hexagonal one.

    Parameters
    ----------
    section
        Its spots are those of the prediction.
    predicted
        (n_spots, len(panel)) log expression on `scale`.
    panel
        The predicted genes; the section has them all.
    scale
        The scale of the prediction.

    Returns
    -------
    Indexed by gene: `n_spots`; `predicted_mean` and `predicted_squares`, summed around the mean; the same of the
    targets "observed" and "smoothed", with `observed_products` and `smoothed_products` of prediction and target.
    """
    counts = section.counts(panel)
    totals = scale.totals(counts, section.library())
    seen = totals > 0
    observed = replace(scale, log_base="e").transform_sparse(counts[seen], totals[seen]).tocsc()
    predicted = predicted[seen]
    smoothing = _mean_of_neighbours(section.xy[seen])
    parts = []
    for genes in _blocks(*observed.shape):
        p = predicted[:, genes] * scale.log_unit
        o = observed[:, genes].toarray().astype(np.float64)
        parts.append(_moments(p.astype(np.float64), o, smoothing @ o))
    return pd.concat(parts, ignore_index=True).set_axis(pd.Index(panel, name="gene"))


def correlations(moments: pd.DataFrame, by: Sequence[str], target: str) -> pd.Series:
    """Return Pearson correlations over all spots of the rows that have the same values in the columns `by`.

    Parameters
    ----------
    moments
        Rows of `section_moments`, of which `by` names further columns.
    by
        Columns.
    target
        "observed" or "smoothed".

    Returns
    -------
    Indexed by `by`; NaN where prediction or target is constant.
    """
    keys, n = [moments[name] for name in by], moments["n_spots"]

    def over_all(values: pd.Series) -> pd.Series:
        return values.groupby(keys, sort=False).transform("sum")

    def shift(mean: pd.Series) -> tuple[pd.Series, pd.Series]:
        pooled = over_all(n * mean) / over_all(n)
        return mean - pooled, pooled

    of_p, mean_p = shift(moments["predicted_mean"])
    of_t, mean_t = shift(moments[f"{target}_mean"])
    pooled = pd.DataFrame(
        {
            "pp": moments["predicted_squares"] + n * of_p**2,
            "tt": moments[f"{target}_squares"] + n * of_t**2,
            "pt": moments[f"{target}_products"] + n * of_p * of_t,
            "least_pp": n * (CONSTANT * mean_p) ** 2,
            "least_tt": n * (CONSTANT * mean_t) ** 2,
        }
    ).groupby(keys, sort=False)
    sums = pooled.sum()
    varies = (sums["pp"] > sums["least_pp"]) & (sums["tt"] > sums["least_tt"])
    norm = (sums["pp"] * sums["tt"]).where(varies) ** 0.5
    return (sums["pt"] / norm).clip(-1, 1).rename("value")


def _moments(predicted: np.ndarray, observed: np.ndarray, smoothed: np.ndarray) -> pd.DataFrame:
    p, mean = _centred(predicted)
    found = {"n_spots": len(p), "predicted_mean": mean, "predicted_squares": (p**2).sum(axis=0)}
    for name, values in zip(TARGETS, (observed, smoothed), strict=True):
        t, mean = _centred(values)
        found |= {f"{name}_mean": mean, f"{name}_squares": (t**2).sum(axis=0), f"{name}_products": (p * t).sum(axis=0)}
    return pd.DataFrame(found)


def _centred(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values less their mean by column, and the mean; of constant columns without rounding."""
    mean = np.where(np.ptp(values, axis=0) == 0, values[0], values.mean(axis=0))
    return values - mean, mean


def _mean_of_neighbours(xy: np.ndarray) -> sp.csr_array:
    """(n, n) weights that average over each spot and its neighbours."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(xy).query_pairs(reach(xy, 0.0), output_type="ndarray")
    n = len(xy)
    upper = sp.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    near = sp.csr_array(upper + upper.T + sp.eye_array(n))
    return sp.csr_array(sp.diags_array(1 / near.sum(axis=1)) @ near)


def _blocks(n_spots: int, n_genes: int) -> Iterator[slice]:
    """Yield some genes at a time, as many as may be dense at once."""
    step = max(1, BLOCK // max(1, n_spots))
    return (slice(start, start + step) for start in range(0, n_genes, step))
