"""Scores of a section's prediction, gene by gene, and of several sections together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import special

from .. import _keys, metrics
from ..errors import MissingSlotError, ResultWarning
from ..runtime.messages import warn
from ..section import array_places, coordinates_of, layer_values, observed_counts, unmeasured
from ..section.expression import ExpressionScale
from .spatial_null import moved_maps

if TYPE_CHECKING:
    from anndata import AnnData

FIGURES = _keys.METRICS
MEANS = [name for name in FIGURES if name not in ("pcc_pval", "pcc_padj", "pcc_neg_log10_p")]  # a mean p says nothing
COLUMNS = ["fold", "section", "method", "seed", "gene", "metric", "value"]
N_MAPS = 199  # motions of the spatial null: the smallest p-value is 1 / 200

Null = Literal["independent", "spatial"]


def section_scores(
    table: "AnnData",
    rows: np.ndarray,
    predicted: np.ndarray,
    panel: Sequence[str],
    scale: ExpressionScale | None,
    *,
    layer: str | None = None,
    null: Null = "independent",
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the prediction of one section with what was observed, gene by gene.

    Parameters
    ----------
    table
        Where the counts are, and in `obs` the spots' places on the array.
    rows
        The section's spots.
    predicted
        (len(rows), len(panel)) log expression on the scale of the prediction.
    panel
        The predicted genes.
    scale
        The scale of the prediction, to which the counts are brought; figures are in natural log units. None: the layer
        and the prediction are compared as they are.
    layer
        Layer with raw counts, or without a scale with any values; None for `X`.
    null
        What p-values are by: "independent" spots (t-test), or "spatial", the predicted map moved over the section.
    seed
        Determines the splits of the noise ceiling, and the motions of the spatial null.

    Returns
    -------
    Indexed by gene, a column for each of `FIGURES`: see `hggep_sc.tl.evaluate`. Spots without counts, or without a
    scale those with NaN, are left out; `attrs["n_spots"]` says how many are compared. `ssim` is NaN where the places on
    the array are not known, Moran's I where coordinates are not either, the ceilings and what is beyond depth
    without a scale.

    Raises
    ------
    KeyError
        If a gene or the layer is not in the table.
    ValueError
        If there are no counts, fewer than two spots have any, or `null` is unknown.
    """
    if null not in ("independent", "spatial"):
        raise ValueError(f"null={null!r} must be 'independent' or 'spatial'")
    unknown = np.full(len(panel), np.nan)
    ceiling = beyond = ceiling_beyond = unknown
    observed: metrics.Matrix
    if scale is None:
        observed = layer_values(table, rows, panel, layer)
        seen = np.isfinite(observed).all(axis=1)
        _require_two(seen)
        observed, predicted = observed[seen], predicted[seen]
    else:
        counts, library = observed_counts(table, rows, list(panel), layer)
        totals = scale.totals(counts, library)
        seen = totals > 0
        _require_two(seen)
        counts, totals = counts[seen], totals[seen]
        observed = replace(scale, log_base="e").transform_sparse(counts, totals)
        predicted = predicted[seen] * scale.log_unit
        ceiling = metrics.noise_ceiling(counts, target_sum=scale.target_sum, library=totals, seed=seed)
        beyond = metrics.pearson_beyond_depth(predicted, observed, totals)
        ceiling_beyond = metrics.ceiling_beyond_depth(ceiling, observed, totals)
    rows = rows[seen]
    array_xy = _array_xy(table, rows)
    xy = _coordinates(table, rows, array_xy)
    if array_xy is None:
        _say_left_out("SSIM is" if xy is not None else "SSIM and Moran's I are")

    pcc = metrics.pearson(predicted, observed)
    if null == "independent":
        log_p = metrics.pearson_log_pvalues(pcc, len(rows))
    elif xy is not None:
        log_p = moved_log_pvalues(pcc, predicted, observed, xy, seed)
    else:
        raise MissingSlotError(
            f"null='spatial' needs to know where spots lie: obsm[{_keys.SPATIAL!r}] with finite numbers, or without it "
            f"obs[{_keys.ARRAY_COL!r}] and obs[{_keys.ARRAY_ROW!r}]"
        )
    scores = {
        "pcc": pcc,
        **_significance(log_p),
        "spearman": metrics.spearman(predicted, observed),
        "rmse": metrics.rmse(predicted, observed),
        "ssim": unknown if array_xy is None else metrics.ssim(predicted, observed, array_xy),
        "ceiling": ceiling,
        "pcc_beyond_depth": beyond,
        "ceiling_beyond_depth": ceiling_beyond,
        "moran_observed": unknown if xy is None else metrics.morans_i(observed, xy),
        "moran_predicted": unknown if xy is None else metrics.morans_i(predicted, xy),
    }
    result = pd.DataFrame(scores, index=pd.Index(panel, name="gene"), columns=FIGURES)
    result.attrs["n_spots"] = len(rows)
    return result


def _require_two(seen: np.ndarray) -> None:
    if seen.sum() < 2:
        raise ValueError(f"a correlation needs two predicted spots with counts; found {seen.sum()}")


def layer_scores(
    table: "AnnData",
    rows: np.ndarray,
    predicted_layer: str,
    panel: Sequence[str],
    scale: ExpressionScale | None,
    *,
    layer: str | None = None,
    null: Null = "independent",
    seed: int = 0,
) -> pd.DataFrame:
    """Compare a layer that any tool predicted, as `section_scores` does; genes without a prediction have NaN.

    Spots where another gene's prediction is NaN are left out, as are spots outside the tissue in ours.

    Raises
    ------
    KeyError, ValueError
        As `section_scores`; also if the layer holds no values there.
    """
    spots, predicted, names = predicted_part(table, rows, panel, predicted_layer)
    scores = section_scores(table, rows[spots], predicted, names, scale, layer=layer, null=null, seed=seed)
    whole = scores.reindex(pd.Index(panel, name="gene"))
    whole.attrs.update(scores.attrs)
    return whole


def predicted_part(
    table: "AnnData", rows: np.ndarray, panel: Sequence[str], layer: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return which spots a layer predicts (bool), its values there, (n, n_genes), and the genes that it predicts.

    Spots whose own counts corrected the prediction, by `hggep_sc.tl.predict(measured=)`, are left out.

    Raises
    ------
    KeyError
        If a gene or the layer is not in the table, or the column that tells measured spots.
    ValueError
        If there is no such spot with a value for all these genes.
    """
    predicted = layer_values(table, rows, panel, layer)
    genes = np.isfinite(predicted).any(axis=0)
    spots = np.isfinite(predicted[:, genes]).all(axis=1)
    if isinstance(record := table.uns.get(layer), Mapping):  # of tl.predict, perhaps corrected by measured spots
        spots &= unmeasured(table, record, layer)[rows]
    if not genes.any() or not spots.any():
        raise ValueError(
            f"layers[{layer!r}] predicts nothing to compare: of the {len(rows)} spots and {len(panel)} genes "
            "asked for, no spot that is not measured has a value for all the genes that are predicted"
        )
    names = [gene for gene, there in zip(panel, genes, strict=True) if there]
    return spots, predicted[np.ix_(spots, genes)], names


def over_sections(scores: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Bring the scores of sections together: the mean of every figure over the sections where it is defined.

    p-values are combined as a meta-analysis of Fisher's z does it: every section's two-sided p-value becomes a z
    with the correlation's sign, and these are averaged with the weight of Fisher's z, the root of n_spots - 3.

    Parameters
    ----------
    scores
        Tables of `section_scores`, of sections with the same genes.
    """
    if len(scores) == 1:
        return scores[0]
    log_p = np.stack([-np.log(10) * table["pcc_neg_log10_p"].to_numpy() for table in scores])
    combined = combined_z([table["pcc"] for table in scores], log_p, [table.attrs["n_spots"] for table in scores])
    mean = pd.concat(scores).groupby(level="gene", sort=False).mean()
    return mean.assign(**_significance(np.minimum(np.log(2) + special.log_ndtr(-np.abs(combined)), 0)))


def combined_z(pcc: Any, log_p: Any, n_spots: Sequence[int]) -> np.ndarray:
    """Combine sections' two-sided p-values to a z with a sign, as a meta-analysis of Fisher's z does.

    Parameters
    ----------
    pcc, log_p
        (n_sections, n_genes) correlations, and natural logarithms of their p-values.
    n_spots
        Of each section.

    Returns
    -------
    (n_genes,) standard normal where nothing is predicted, positive where correlations are; NaN for genes without any.
    """
    sign = np.sign(np.asarray(pcc, dtype=np.float64))
    weight = np.sqrt(np.maximum(np.asarray(n_spots)[:, None] - 3, 0)) * np.isfinite(sign)
    z = -sign * special.ndtri_exp(np.asarray(log_p) - np.log(2))
    with np.errstate(invalid="ignore"):  # 0 / 0 of a gene that is constant everywhere
        return np.nansum(weight * z, axis=0) / np.sqrt((weight**2).sum(axis=0))


def tidy(scores: pd.DataFrame, *, fold: str, section: str, method: str, seed: int) -> pd.DataFrame:
    """Turn a table of scores into one with a row per gene and metric.

    Parameters
    ----------
    scores
        What `section_scores` returned.
    fold, section, method, seed
        What the scores are of.

    Returns
    -------
    Columns fold, section, method, seed, gene, metric, value.
    """
    figures = scores[list(FIGURES)].rename_axis("gene").reset_index()
    long = figures.melt("gene", var_name="metric", value_name="value")
    return long.assign(fold=fold, section=section, method=method, seed=seed)[COLUMNS]


def _significance(log_p: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of the table from the p-values' logarithms."""
    return {
        "pcc_pval": np.exp(log_p),
        "pcc_padj": np.exp(metrics.benjamini_hochberg(log_p)),
        "pcc_neg_log10_p": np.abs(log_p) / np.log(10),
    }


def moved_log_pvalues(
    r: np.ndarray, predicted: np.ndarray, observed: metrics.Matrix, xy: np.ndarray, seed: int
) -> np.ndarray:
    """Logarithm of the share of motions of the predicted map after which it agrees with the observed as well.

    Motions after which a gene is constant on the spots that are covered say nothing of it, and are not counted.
    """
    as_good, compared = np.zeros(len(r)), np.zeros(len(r))
    for moved in moved_maps(xy, N_MAPS, seed=seed):
        covered = moved >= 0
        by_chance = np.abs(metrics.pearson(predicted[moved[covered]], observed[covered]))
        as_good += by_chance >= np.abs(r)
        compared += np.isfinite(by_chance)
    return np.where(np.isnan(r), np.nan, np.log((1 + as_good) / (1 + compared)))


def _array_xy(table: "AnnData", rows: np.ndarray) -> np.ndarray | None:
    """Places of spots on the array, (n, 2) int64; None where they are not known."""
    places = array_places(table, rows)
    return places if places is not None and len(np.unique(places, axis=0)) == len(places) else None


def _coordinates(table: "AnnData", rows: np.ndarray, array_xy: np.ndarray | None) -> np.ndarray | None:
    """Where spots lie, (n, 2) in any unit; None where it is not known."""
    if _keys.SPATIAL in table.obsm:
        xy = coordinates_of(table, _keys.SPATIAL)[rows]
        return xy if np.isfinite(xy).all() else None
    if array_xy is None:
        return None
    return array_xy * (0.5, np.sqrt(0.75)) if metrics.is_hexagonal(array_xy) else array_xy.astype(np.float64)


def _say_left_out(figures: str) -> None:
    warn(
        f"{figures} left out: SSIM takes each spot's place on the array, whole numbers in obs[{_keys.ARRAY_COL!r}] (x) "
        f"and obs[{_keys.ARRAY_ROW!r}] (y), no two alike; Moran's I takes these, or finite coordinates in "
        f"obsm[{_keys.SPATIAL!r}]",
        ResultWarning,
    )
