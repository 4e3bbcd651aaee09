"""How predictable each gene is: held-out predictions against the noise ceiling and a null for smooth maps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import special, stats

from .. import metrics
from ..section import Section
from ..section.expression import ExpressionScale
from .section_scores import combined_z, moved_log_pvalues

COLUMNS = ("pcc", "ceiling", "share", "p", "q", "n_sections")


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far the held-out prediction of a section agrees with its counts, gene by gene.

    Attributes
    ----------
    pcc, ceiling, log_p
        (n_genes,) correlation, noise ceiling, and logarithm of the two-sided p-value by the spatial null.
    n_spots
        Spots with counts, which are compared.
    """

    pcc: np.ndarray
    ceiling: np.ndarray
    log_p: np.ndarray
    n_spots: int


def agreement_of(
    section: Section, predicted: np.ndarray, genes: Sequence[str], scale: ExpressionScale, seed: int
) -> Agreement:
    """Compare a prediction that was made without the section's counts, (n_spots, n_genes), with them.

    The logarithm is the natural one on both sides of the comparison, as the ceiling's is.
    """
    counts = section.counts(genes)
    totals = scale.totals(counts, section.library())
    seen = totals > 0
    counts, totals, predicted = counts[seen], totals[seen], predicted[seen]
    observed = replace(scale, log_base="e").transform_sparse(counts, totals)
    pcc = metrics.pearson(predicted, observed)
    log_p = moved_log_pvalues(pcc, predicted, observed, section.xy[seen], seed)
    ceiling = metrics.noise_ceiling(counts, target_sum=scale.target_sum, library=totals, seed=seed)
    return Agreement(pcc, ceiling, log_p, int(seen.sum()))


def over_genes(agreements: Sequence[Agreement], genes: Sequence[str]) -> pd.DataFrame:
    """Bring sections together, gene by gene.

    Returns
    -------
    Indexed by gene, most certain first: see `hggep_sc.tl.predictability`. `attrs["share_of_ceiling"]` is the mean
    correlation over the mean ceiling.
    """
    pcc = np.stack([one.pcc for one in agreements])
    ceiling = np.where(np.isfinite(pcc), [one.ceiling for one in agreements], np.nan)
    n_sections = np.isfinite(pcc).sum(axis=0)
    z = combined_z(pcc, [one.log_p for one in agreements], [one.n_spots for one in agreements])
    table = pd.DataFrame(
        {"pcc": _mean(pcc), "ceiling": _mean(ceiling), "p": special.ndtr(-z), "n_sections": n_sections},
        index=pd.Index(genes, name="gene"),
    )
    table["share"] = (table["pcc"] / table["ceiling"]).where(table["ceiling"] > 0)
    tested = table["p"].notna()
    table["q"] = np.nan
    if tested.any():
        table.loc[tested, "q"] = stats.false_discovery_control(table.loc[tested, "p"])
    both = table.loc[tested, ["pcc", "ceiling"]].mean()
    table = table.sort_values(["p", "pcc"], ascending=[True, False], kind="stable")[list(COLUMNS)]
    table.attrs["share_of_ceiling"] = float(both["pcc"] / both["ceiling"]) if both["ceiling"] > 0 else float("nan")
    return table


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the sections where a gene has a value; NaN where none has."""
    known = np.isfinite(values)
    return np.divide(
        np.where(known, values, 0).sum(axis=0),
        known.sum(axis=0),
        out=np.full(values.shape[1], np.nan),
        where=known.any(axis=0),
    )
