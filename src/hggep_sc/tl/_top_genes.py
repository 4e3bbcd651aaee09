from typing import Any

import pandas as pd

from ..evaluation.scores import By, rank_genes


def top_genes(
    scores: Any,
    *,
    by: By = "pval",
    alpha: float = 0.05,
    method: str | None = None,
    min_sections: int | None = None,
) -> pd.DataFrame:
    """Rank genes by how well they are predicted across sections (Figures 5 and S4 of the paper).

    A section's value is the mean over its seeds, of the adjusted p-value too. Each gene's means are over all
    sections in which its correlation is defined, not over those where it does well. There is none where the gene's
    counts or predictions are constant, or where it was not predicted, as where folds chose their own genes. So that a
    gene of one section is not ranked against genes of many, those that lack a section are left out, and their number
    is logged, unless `min_sections` allows them.

    Parameters
    ----------
    scores
        What `hggep_sc.tl.cross_validate` returned, or its `table`; or a dict: section to the table that
        `hggep_sc.tl.evaluate` returned.
    by
        "pval": by mean -log10 p, which weighs sections with many spots more; "pcc": by mean Pearson correlation.
    alpha
        Level of significance, of the p-values adjusted within each section (Benjamini-Hochberg).
    method
        Which of the table's methods; None where there is one alone. Tables of `hggep_sc.tl.evaluate` are called
        "prediction", and "goodness of fit" where the section was in training.
    min_sections
        In how many sections a gene's correlation must be defined; None for all in which any gene's is.

    Returns
    -------
    Table with a row per gene, the best first: `mean_pcc`, `mean_neg_log10_p`, `n_sections` (where the correlation is
    defined), `n_significant` (sections with a positive mean correlation and a mean adjusted p below `alpha`, the
    means over seeds), `rank_pcc` and `rank_p` (from 1, equals share the better rank).

    Raises
    ------
    TypeError
        If `scores` is none of these.
    ValueError
        If columns or metrics are missing, there are several methods and none is chosen, `by` is unknown, `alpha`
        is not between 0 and 1, or no gene has a correlation in enough sections.
    """
    return rank_genes(scores, by=by, alpha=alpha, method=method, min_sections=min_sections)
