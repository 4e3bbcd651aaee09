"""Figures of merit per gene: arrays in, arrays out.

Matrices are (n_spots, n_genes), dense or scipy-sparse, and are worked on some genes at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from scipy import special
from scipy.spatial import cKDTree
from scipy.stats import poisson, rankdata

from .runtime.imports import within_squidpy
from .runtime.validators import array, matrix, number, seed_of, whole

Matrix: TypeAlias = Any  # numpy array or scipy sparse matrix or array

BLOCK = 2**22  # values held dense at once
NEIGHBOURS = 6  # nearest spots that `morans_i` compares a spot with
AT_ONCE = 2**24  # spots times genes whose Moran's I is computed at a time
WINDOW = 7  # spots, side of the window of `ssim`: scikit-image's default
K1, K2 = 0.01, 0.03  # constants of `ssim`, as in Wang et al. 2004 and scikit-image
LARGEST = 30  # count of a half from which on doubling the depth no longer changes the expected logarithm
ROUNDING = 1e-14  # of values in single precision, squared
DEGREE = 2  # of the polynomial in log depth that `without_depth` takes out
RIDGE = 30.0  # weight of the variance against the squared bias in `_doubling`, over the number of spots


def pearson(predicted: Matrix, observed: Matrix) -> np.ndarray:
    """Pearson correlation of each gene across spots.

    Parameters
    ----------
    predicted, observed
        (n_spots, n_genes).

    Returns
    -------
    (n_genes,) float64; NaN where either is constant, or with fewer than two spots.
    """
    return _per_gene(predicted, observed, _correlation)


def without_depth(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Take a quadratic function of log depth, fitted by least squares, out of each gene's values.

    Log expression follows how much was counted at a spot even where a gene's share of the counts is the same
    everywhere, and an image shows where tissue is dense: see docs/predictability.md.

    Parameters
    ----------
    values
        (n_spots, n_genes), dense.
    totals
        (n_spots,) counts of each spot, above 0: those that expression was scaled by.

    Returns
    -------
    (n_spots, n_genes) float64; 0 for genes that depth explains but for rounding.

    Raises
    ------
    ValueError
        If there is not a total above 0 for each spot.
    """
    values = matrix("values", values, "n_spots", "n_genes").astype(np.float64)
    totals = array("totals", totals).astype(np.float64)
    if totals.shape != values.shape[:1] or not (np.isfinite(totals) & (totals > 0)).all():
        raise ValueError(f"totals must hold numbers above 0 of shape {values.shape[:1]}, one for each spot")
    if not len(values):
        return values
    depth = np.log(totals)
    spread = depth.std()
    basis = np.vander((depth - depth.mean()) / (spread if spread > 0 else 1), DEGREE + 1)
    left = values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]
    left[:, (left**2).sum(axis=0) < ROUNDING * (values**2).sum(axis=0)] = 0
    return left


def pearson_beyond_depth(predicted: Matrix, observed: Matrix, totals: np.ndarray) -> np.ndarray:
    """Pearson correlation of each gene across spots beyond what depth tells: of both `without_depth`.

    Parameters
    ----------
    predicted, observed
        (n_spots, n_genes).
    totals
        (n_spots,) counts of each spot, above 0.

    Returns
    -------
    (n_genes,) float64; NaN where either is a function of depth alone, as any is of three spots.

    Raises
    ------
    ValueError
        If shapes do not fit, or there is not a total above 0 for each spot.
    """
    return _per_gene(predicted, observed, lambda p, o: _correlation(without_depth(p, totals), without_depth(o, totals)))


def ceiling_beyond_depth(ceiling: np.ndarray, observed: Matrix, totals: np.ndarray) -> np.ndarray:
    """Noise ceiling of `pearson_beyond_depth`, from that of `pearson`.

    A gene's reliability R = ceiling^2 is the share of its variance that is signal. Depth tells a share D of the
    variance, so that (R - D) / (1 - D) is the reliability beyond depth.

    Parameters
    ----------
    ceiling
        (n_genes,) of `noise_ceiling`.
    observed
        (n_spots, n_genes) log expression.
    totals
        (n_spots,) counts of each spot, above 0.

    Returns
    -------
    (n_genes,) float64 within 0..1; NaN for genes that are constant, or a function of depth alone.

    Raises
    ------
    ValueError
        If shapes do not fit, or there is not a total above 0 for each spot.
    """
    ceiling = array("ceiling", ceiling, ndim=1)
    if ceiling.shape != observed.shape[1:]:
        raise ValueError(f"ceiling {ceiling.shape} must have a value for each gene of observed {observed.shape}")
    left = _per_gene(observed, observed, lambda _, o: without_depth(o, totals).var(axis=0))
    whole_variance = _per_gene(observed, observed, lambda _, o: o.var(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):  # of a constant gene, or one that depth tells all of
        by_depth = 1 - left / whole_variance
        return np.sqrt(np.clip((ceiling**2 - by_depth) / (1 - by_depth), 0, 1))


def spearman(predicted: Matrix, observed: Matrix) -> np.ndarray:
    """Spearman correlation of each gene across spots: Pearson's of the ranks, ties sharing their mean rank.

    Parameters
    ----------
    predicted, observed
        (n_spots, n_genes).

    Returns
    -------
    (n_genes,) float64; NaN where either is constant, or with fewer than two spots.
    """
    return _per_gene(predicted, observed, lambda p, o: _correlation(rankdata(p, axis=0), rankdata(o, axis=0)))


def rmse(predicted: Matrix, observed: Matrix) -> np.ndarray:
    """Root mean squared error of each gene across spots, (n_genes,) float64, in units of the input."""
    predicted, observed = _pair(predicted, observed)
    if not predicted.shape[0]:
        return np.full(predicted.shape[1], np.nan)
    return _per_gene(predicted, observed, lambda p, o: np.sqrt(np.mean((p - o) ** 2, axis=0)))


def ssim(predicted: Matrix, observed: Matrix, array_xy: np.ndarray) -> np.ndarray:
    """Structural similarity of each gene's two maps (equation 20 of the paper; Wang et al. 2004).

    Around every spot, means, variances and covariance are those of the spots present in a window of 7 x 7 places of
    the array (uniform weights, sample variances); K1 = 0.01, K2 = 0.03, and the data range is that of the observed
    gene. The value is the mean over the windows of two or more spots. On a full grid and away from its border, it
    is scikit-image's `structural_similarity` with its defaults.

    Parameters
    ----------
    predicted, observed
        (n_spots, n_genes).
    array_xy
        (n_spots, 2) whole numbers, the spots' places on the array: column, row. Grids that are counted in steps of
        two or more are brought to steps of one; hexagonal ones, where column + row is always even or always odd
        (Visium), become rows of which every other is offset by half a spot.

    Returns
    -------
    (n_genes,) float64; NaN where the observed gene is constant, or no window holds two spots.

    Raises
    ------
    ValueError
        If shapes do not fit, places are no whole numbers, or two spots are in one place.
    """
    predicted, observed = _pair(predicted, observed)
    array_xy = array("array_xy", array_xy)
    if array_xy.shape != (predicted.shape[0], 2):
        raise ValueError(f"array_xy must have shape {(predicted.shape[0], 2)}, a place per spot: {array_xy.shape}")
    array_xy = _whole_places(array_xy)
    similarity = np.full(predicted.shape[1], np.nan)
    if not len(array_xy):
        return similarity
    near = _windows(_grid(array_xy))
    n = np.asarray(near.sum(axis=1)).reshape(-1, 1)
    near, n, several = near[n.ravel() > 1], n[n > 1][:, None], bool((n > 1).any())
    for genes, p, o in _blocks(predicted, observed):
        data_range = np.ptp(o, axis=0)
        c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
        mean_p, mean_o = near @ p / n, near @ o / n
        squares = mean_p**2 + mean_o**2
        variances = (near @ (p**2 + o**2) / n - squares) * n / (n - 1)
        covariance = (near @ (p * o) / n - mean_p * mean_o) * n / (n - 1)
        defined = several & (data_range > 0)
        with np.errstate(invalid="ignore"):  # 0 / 0 of constant genes
            local = (2 * mean_p * mean_o + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
        similarity[genes] = np.where(defined, local.sum(axis=0) / max(len(n), 1), np.nan)
    return similarity


def pearson_log_pvalues(r: np.ndarray, n: int) -> np.ndarray:
    """Natural logarithm of the two-sided p-value of Pearson correlations, without underflow.

    p is the incomplete beta function I_x(a, 1/2) at x = 1 - r^2, a = (n - 2) / 2: Student's t-test with n - 2
    degrees of freedom. Where it underflows, its integral is taken by Gauss-Laguerre quadrature, in logarithms.
    It assumes spots that are independent of each other, which neighbouring ones are not: see docs/evaluation.md.

    Parameters
    ----------
    r
        Correlations, any shape.
    n
        Number of spots.

    Returns
    -------
    Logarithms, shape of `r`; NaN where `r` is, or with fewer than three spots.

    Raises
    ------
    ValueError
        For correlations outside of -1..1, or a number of spots that is none.
    """
    r, n = array("r", r).astype(np.float64), whole("n", n, least=0)
    if (np.abs(r) > 1).any():
        raise ValueError(f"r must hold correlations, from -1 to 1; found {np.nanmin(r):g} to {np.nanmax(r):g}")
    if n < 3:
        return np.full(r.shape, np.nan)
    a = (n - 2) / 2
    p = special.betaincc(0.5, a, r**2)
    # I_x(a, b) = x^a / (a B(a, b)) * int_0^inf exp(-v) (1 - x exp(-v / a))^(b - 1) dv
    nodes, weights = special.roots_laguerre(30)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inner = 1 + (1 / r**2 - 1)[..., None] * -np.expm1(-nodes / a)
        tail = a * np.log1p(-(r**2)) - np.log(a) - special.betaln(a, 0.5) - np.log(np.abs(r))
        tail = tail + np.log(inner**-0.5 @ weights)
        return np.where(p < 1e-290, tail, np.log(p))


def benjamini_hochberg(log_pvalues: np.ndarray) -> np.ndarray:
    """Adjust p-values for their number (false discovery rate, Benjamini and Hochberg 1995), all in logarithms.

    Parameters
    ----------
    log_pvalues
        (n,) natural logarithms; NaN are left out of the number, and stay NaN.

    Returns
    -------
    (n,) natural logarithms of the adjusted p-values, at most 0.

    Raises
    ------
    ValueError
        For logarithms above 0.
    """
    log_pvalues = array("log_pvalues", log_pvalues, ndim=1).astype(np.float64)
    if (log_pvalues > 0).any():
        raise ValueError(f"log_pvalues must hold logarithms of p-values, 0 or less; found {np.nanmax(log_pvalues):g}")
    places = np.flatnonzero(~np.isnan(log_pvalues))
    order = places[np.argsort(log_pvalues[places])]
    n = len(order)
    steps = log_pvalues[order] + np.log(n / np.arange(1, n + 1))
    adjusted = np.full(log_pvalues.shape, np.nan)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 0)
    return adjusted


def noise_ceiling(
    counts: Matrix,
    *,
    n_splits: int = 10,
    target_sum: float = 1e4,
    library: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Correlation that a perfect predictor of the underlying expression could reach, given how few the counts are.

    That is corr(E[y | rate], y) with y = log(1 + target_sum * counts / total), the square root of y's reliability
    var(E[y | rate]) / var(y). Every count is split at random into two halves (binomial, 1/2), which are independent
    given the rate and each scaled by its own total, and so the covariance of the halves is free of noise. The step
    from half to full depth is Spearman's and Brown's for values linear in the counts. The logarithm is not: its
    halves, after that correction, promise too much where counts are low. So a half's counts first become values whose
    expectation, whatever the rate, is that of y at full depth; then the reliability is the halves' covariance over
    the variance of y. Where the logarithm is nearly linear this is the correction of Spearman and Brown.

    Parameters
    ----------
    counts
        (n_spots, n_genes) raw counts, dense or sparse; sparse ones stay sparse.
    n_splits
        Random splits to average over.
    target_sum
        Counts per spot after scaling.
    library
        (n_spots,) total counts of each spot, where they are over more genes than these; None: the sums of `counts`.
    seed
        Determines the splits.

    Returns
    -------
    (n_genes,) float64 within 0..1; 0 where the halves do not agree at all, NaN for genes that are constant. Spots
    without counts are left out.

    Raises
    ------
    ValueError
        If counts are not whole numbers of 0 or more, a library is smaller than the counts, or `n_splits` is not
        positive.
    """
    n_splits, seed = whole("n_splits", n_splits), seed_of("seed", seed)
    target_sum = number("target_sum", target_sum, above=0)
    counts = sp.csc_array(matrix("counts", counts, "n_spots", "n_genes"))
    raw = np.isfinite(counts.data) & (counts.data >= 0) & (counts.data == np.rint(counts.data))
    if not raw.all():
        raise ValueError("counts must be raw counts: whole numbers, 0 or more")
    of_panel = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    total = of_panel if library is None else array("library", library).astype(np.float64)
    if total.shape != of_panel.shape or not (np.isfinite(total) & (total >= of_panel)).all():
        raise ValueError(
            f"library must have shape {of_panel.shape}, each spot's total at least that of its counts; found "
            f"{total.shape}" + (f", {np.sum(total < of_panel)} too small" if total.shape == of_panel.shape else "")
        )
    seen = total > 0
    counts, total = sp.csc_array(counts.tocsr()[seen]), total[seen]
    of_others = np.rint(total - of_panel[seen]).astype(np.int64)
    counted = counts.data.astype(np.int64)
    rng = np.random.default_rng(seed)

    doubling = _doubling(max(len(total), 1))
    covariance = np.zeros(counts.shape[1])
    for _ in range(n_splits):
        part, others = rng.binomial(counted, 0.5), rng.binomial(of_others, 0.5)
        halves = [
            _Half(counts, part, others, target_sum, doubling),
            _Half(counts, counted - part, of_others - others, target_sum, doubling),
        ]
        for genes, entries in _sparse_blocks(counts):
            first, second = (half.values(entries) for half in halves)
            covariance[genes] += _covariance(counts[:, genes], first, second) / n_splits
    variance = np.empty_like(covariance)
    for genes, entries in _sparse_blocks(counts):
        y = np.log1p(target_sum * counted[entries] / total[counts.indices[entries]])
        variance[genes] = _covariance(counts[:, genes], y, y)
    with np.errstate(invalid="ignore"):
        reliability = np.where(variance > 1e-12, covariance, np.nan) / variance  # below lies rounding
    return np.sqrt(np.clip(reliability, 0, 1))


class _Half:
    """One half of all counts, as values that stand for log expression at full depth."""

    def __init__(
        self,
        like: sp.csc_array,
        counted: np.ndarray,
        others: np.ndarray,
        target_sum: float,
        doubling: np.ndarray,
    ) -> None:
        self.counted, self.spot = counted, like.indices
        total = others + np.bincount(self.spot, counted, minlength=like.shape[0])
        # a count of the half is worth two of full depth; a half without counts holds zeros alone
        self.worth = target_sum / np.maximum(2 * total, 1)
        full_depth = np.arange(1, doubling.shape[1] + 1)
        table = np.zeros((len(total), LARGEST + 1))
        step = max(1, BLOCK // len(full_depth))
        for start in range(0, len(total), step):
            spots = slice(start, start + step)
            table[spots, 1:] = np.log1p(self.worth[spots, None] * full_depth) @ doubling.T
        self.table = table

    def values(self, entries: slice) -> np.ndarray:
        counted, spot = self.counted[entries], self.spot[entries]
        values = self.table[spot, np.minimum(counted, LARGEST)]
        many = np.flatnonzero(counted > LARGEST)
        values[many] = np.log1p(2 * self.worth[spot[many]] * counted[many])
        return values


def _doubling(n_spots: int) -> np.ndarray:
    """(LARGEST, j) weights by which f(1), f(2), ..., f(j) at full depth become values h(1), ..., h(LARGEST) of a half.

    Sought is h with E h(half count) = E f(count) for Poisson counts of every rate. The exact solution exists
    (h(k) = sum_j C(k, j) (-1)^(k - j) 2^j f(j)) but alternates in sign and is noisy; here h(k) = f(2 k) plus the
    correction that minimises its mean square, which adds to the variance, and the squared bias over rates: the more
    spots there are, the less bias is left.
    """
    rate = np.geomspace(0.02, 2 * LARGEST, 100)[:, None]
    half, full = np.arange(1, LARGEST + 1), np.arange(1, 5 * LARGEST + 1)
    of_half = poisson.pmf(half, rate / 2)
    missing = poisson.pmf(full, rate)  # E f(count) - E f(2 half count), as weights on f
    missing[:, 1::2] -= poisson.pmf(full[1::2] // 2, rate / 2)
    ridge = RIDGE / n_spots * np.diag(of_half.sum(axis=0))
    weights = np.linalg.solve(of_half.T @ of_half + ridge, of_half.T @ missing)
    weights[half - 1, 2 * half - 1] += 1
    return weights


def _covariance(like: sp.csc_array, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Covariance of two sparse matrices' columns, given by their entries in the places of a third's."""

    def mean(entries: np.ndarray) -> np.ndarray:
        total = sp.csc_array((entries, like.indices, like.indptr), shape=like.shape).sum(axis=0)
        return np.asarray(total) / like.shape[0]

    return mean(x * y) - mean(x) * mean(y)


def morans_i(values: Matrix, xy: np.ndarray) -> np.ndarray:
    """Moran's I of each gene: how alike neighbouring spots are (`squidpy.gr.spatial_autocorr`).

    Neighbours are the six nearest spots of each, all of the same weight. The order of the spots does not matter, where
    several are equally near neither: they are sorted by their coordinates first.

    Parameters
    ----------
    values
        (n_spots, n_genes); sparse ones stay sparse.
    xy
        (n_spots, 2) coordinates, in any unit.

    Returns
    -------
    (n_genes,) float64: near 1 for a smooth map, -1 / (n_spots - 1) on average for values that are strewn at random; NaN
    for constant genes, and where all spots are neighbours of all, with seven spots or fewer.

    Raises
    ------
    ValueError
        If there is not a finite place for each spot.
    """
    values = matrix("values", values, "n_spots", "n_genes")
    xy = array("xy", xy).astype(np.float64)
    if xy.shape != (values.shape[0], 2) or not np.isfinite(xy).all():
        raise ValueError(f"xy must hold finite numbers of shape {(values.shape[0], 2)}, a place per spot: {xy.shape}")
    found = np.full(values.shape[1], np.nan)
    if len(xy) <= NEIGHBOURS + 1:
        return found
    order = np.lexsort((xy[:, 1], xy[:, 0]))
    values = sp.csr_matrix(values)[order].tocsc() if sp.issparse(values) else values[order]
    step = max(1, AT_ONCE // len(xy))
    with within_squidpy():
        from anndata import AnnData
        from squidpy.gr import spatial_autocorr
        from squidpy.gr.neighbors import KNNBuilder

        graph, _ = KNNBuilder(n_neighs=NEIGHBOURS).build(xy[order])
        how: dict[str, Any] = {"corr_method": None, "n_jobs": 1, "show_progress_bar": False}
        for start in range(0, len(found), step):
            table = AnnData(values[:, start : start + step], obsp={"spatial_connectivities": graph})
            of_gene = spatial_autocorr(table, mode="moran", copy=True, **how)
            # by name, as the table comes back in another order
            found[start : start + step] = of_gene["I"].reindex(table.var_names)
    return found


def is_hexagonal(array_xy: np.ndarray) -> bool:
    """Whether places on an array are those of a hexagonal one: column + row of one parity.

    Parameters
    ----------
    array_xy
        (n_spots, 2) whole numbers: column, row.

    Returns
    -------
    Whether they are.

    Raises
    ------
    ValueError
        For another shape, or places that are no whole numbers.
    """
    array_xy = _whole_places(array("array_xy", array_xy, ndim=2))
    if array_xy.shape[1] != 2 or not len(array_xy):
        raise ValueError(f"array_xy must have shape (n_spots, 2), a place per spot: {array_xy.shape}")
    parity = array_xy.sum(axis=1) % 2
    odd_steps = (np.gcd.reduce(array_xy - array_xy.min(axis=0), axis=0) % 2 == 1).all()
    return bool(odd_steps and (parity == parity[0]).all())


def _whole_places(array_xy: np.ndarray) -> np.ndarray:
    """Refuse places on the array that are no whole numbers."""
    if not (np.isfinite(array_xy) & (array_xy == np.rint(array_xy))).all():
        raise ValueError("array_xy must hold whole numbers: column and row on the array, not coordinates in px")
    return array_xy.astype(np.int64)


def _grid(array_xy: np.ndarray) -> np.ndarray:
    """Places on the array, (n, 2), in steps of one; see `ssim`."""
    places = array_xy - array_xy.min(axis=0)
    places = places // np.maximum(np.gcd.reduce(places, axis=0), 1)
    if is_hexagonal(places):
        places[:, 0] //= 2
    if len(np.unique(places, axis=0)) < len(places):
        raise ValueError("two spots are in one place of the array: give one section at a time")
    return places


def _windows(places: np.ndarray) -> sp.csr_array:
    """(n, n) ones where a spot lies in the window around another."""
    pairs = cKDTree(places).query_pairs(WINDOW // 2 + 0.5, p=np.inf, output_type="ndarray")
    n = len(places)
    upper = sp.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return sp.csr_array(upper + upper.T + sp.eye_array(n))


def _correlation(p: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Pearson correlation of columns; both are overwritten."""
    if len(p) < 2:
        return np.full(p.shape[1], np.nan)
    constant = (np.ptp(p, axis=0) == 0) | (np.ptp(o, axis=0) == 0)
    p -= p.mean(0)
    o -= o.mean(0)
    norm = np.sqrt((p**2).sum(0) * (o**2).sum(0))
    r = np.divide((p * o).sum(0), norm, out=np.full(p.shape[1], np.nan), where=~constant & (norm > 0))
    return np.clip(r, -1.0, 1.0)


def _per_gene(
    predicted: Matrix, observed: Matrix, figure: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """One figure of every gene, (n_genes,), from dense blocks that it may overwrite."""
    predicted, observed = _pair(predicted, observed)
    values = np.full(predicted.shape[1], np.nan)
    for genes, p, o in _blocks(predicted, observed):
        values[genes] = figure(p, o)
    return values


def _pair(predicted: Matrix, observed: Matrix) -> tuple[Matrix, Matrix]:
    """Refuse what are no two matrices of one shape."""
    predicted, observed = (
        matrix(name, given, "n_spots", "n_genes")
        for name, given in {"predicted": predicted, "observed": observed}.items()
    )
    if predicted.shape != observed.shape:
        raise ValueError(f"predicted {predicted.shape} and observed {observed.shape} must have the same shape")
    return predicted, observed


def _blocks(predicted: Matrix, observed: Matrix) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield some genes at a time: which, and their values as new dense float64 arrays."""
    matrices = [m.tocsc() if sp.issparse(m) else m for m in (predicted, observed)]
    n_spots, n_genes = predicted.shape
    step = max(1, BLOCK // max(1, n_spots))
    for start in range(0, n_genes, step):
        genes = slice(start, start + step)
        p, o = (m[:, genes].toarray() if sp.issparse(m) else m[:, genes] for m in matrices)
        yield genes, p.astype(np.float64), o.astype(np.float64)


def _sparse_blocks(matrix: sp.csc_array) -> Iterator[tuple[slice, slice]]:
    """Yield some genes at a time: which, and the places of their entries; a gene at least."""
    start, n_genes = 0, matrix.shape[1]
    while start < n_genes:
        stop = int(np.searchsorted(matrix.indptr, matrix.indptr[start] + BLOCK, side="right")) - 1
        stop = min(max(stop, start + 1), n_genes)
        yield slice(start, stop), slice(int(matrix.indptr[start]), int(matrix.indptr[stop]))
        start = stop
