"""How predictable each gene is: held-out predictions against the noise ceiling and a null for smooth maps.

How much was counted at a spot, its depth, is itself told by the image: dense tissue holds more RNA. And log expression
follows depth even where a gene's share of the counts is the same everywhere, as few counts have a low mean logarithm.
So what the image tells of a gene is asked for beyond what it tells of depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import special, stats

from .. import metrics
from ..section import Section
from ..section.expression import ExpressionScale
from .section_scores import combined_z, moved_log_pvalues

COLUMNS = ("pcc", "ceiling", "pcc_beyond_depth", "ceiling_beyond_depth", "share", "p", "q", "n_sections")


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far the held-out prediction of a section agrees with its counts, gene by gene.

    Attributes
    ----------
    pcc, ceiling
        (n_genes,) correlation and noise ceiling.
    pcc_beyond_depth, ceiling_beyond_depth
        (n_genes,) the same, partial: without what a polynomial in log depth tells of either map.
    log_p
        (n_genes,) logarithm of the partial correlation's two-sided p-value by the spatial null.
    n_spots
        Spots with counts, which are compared.
    """

    pcc: np.ndarray
    ceiling: np.ndarray
    pcc_beyond_depth: np.ndarray
    ceiling_beyond_depth: np.ndarray
    log_p: np.ndarray
    n_spots: int


def agreement_of(
    section: Section, predicted: np.ndarray, genes: Sequence[str], scale: ExpressionScale, seed: int
) -> Agreement:
    """Compare a prediction that was made without the section's counts, (n_spots, n_genes), with them.

    The section holds spots with counts alone. The logarithm is the natural one, as the ceiling's is.
    """
    counts = section.counts(genes)
    totals = scale.totals(counts, section.library())
    observed = replace(scale, log_base="e").transform(counts, totals).astype(np.float64)
    ceiling = metrics.noise_ceiling(counts, target_sum=scale.target_sum, library=totals, seed=seed)
    seen, told = metrics.without_depth(observed, totals), metrics.without_depth(predicted, totals)
    pcc = metrics.pearson(told, seen)
    return Agreement(
        metrics.pearson(predicted, observed),
        ceiling,
        pcc,
        metrics.ceiling_beyond_depth(ceiling, observed, totals),
        moved_log_pvalues(pcc, told, seen, section.xy, seed),
        len(totals),
    )


def over_genes(agreements: Sequence[Agreement], genes: Sequence[str]) -> pd.DataFrame:
    """Bring sections together, gene by gene.

    Returns
    -------
    Indexed by gene, most certain first: see `hggep_sc.tl.predictability`. `attrs["share_of_ceiling"]` is the mean of
    `pcc_beyond_depth` over that of `ceiling_beyond_depth`.
    """
    figures = {name: np.stack([getattr(one, name) for one in agreements]) for name in COLUMNS[:4]}
    known = np.isfinite(figures["pcc_beyond_depth"])
    log_p, n_spots = [one.log_p for one in agreements], [one.n_spots for one in agreements]
    z = combined_z(figures["pcc_beyond_depth"], log_p, n_spots)
    means = {name: pd.DataFrame(np.where(known, values, np.nan)).mean().to_numpy() for name, values in figures.items()}
    table = pd.DataFrame(
        {**means, "p": special.ndtr(-z), "n_sections": known.sum(axis=0)}, index=pd.Index(genes, name="gene")
    )
    attainable = table["ceiling_beyond_depth"]
    table["share"] = (table["pcc_beyond_depth"] / attainable).where(attainable > 0)
    tested = table["p"].notna()
    table["q"] = np.nan
    if tested.any():
        table.loc[tested, "q"] = stats.false_discovery_control(table.loc[tested, "p"])
    table = table.sort_values(["p", "pcc_beyond_depth"], ascending=[True, False], kind="stable")[list(COLUMNS)]
    reached, most = table[["pcc_beyond_depth", "ceiling_beyond_depth"]].mean()
    table.attrs["share_of_ceiling"] = float(reached / most) if most > 0 else float("nan")
    return table
