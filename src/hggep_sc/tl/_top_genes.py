from typing import Any

import pandas as pd

from ..scores import By, rank_genes


def top_genes(scores: Any, *, by: By = "pval", alpha: float = 0.05, method: str | None = None) -> pd.DataFrame:
    """Rank genes by how well they are predicted across sections (Figures 5 and S4 of the paper).

    A section's value is the mean over its seeds. Each gene's means are over all sections in which its correlation
    is defined, not over those where it does well; a section where the gene's counts or predictions are constant has
    none, and is left out of `n_sections`.

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
        Which of the table's methods; None where there is one alone.

    Returns
    -------
    Table with a row per gene, the best first: `mean_pcc`, `mean_neg_log10_p`, `n_sections`, `n_significant`
    (sections with a positive correlation and an adjusted p below `alpha`), `rank_pcc` and `rank_p` (from 1, equals
    share the better rank). Genes that are constant in every section come last, with NaN.

    Raises
    ------
    TypeError
        If `scores` is none of these.
    ValueError
        If columns or metrics are missing, there are several methods and none is chosen, `by` is unknown or `alpha`
        is not between 0 and 1.
    """
    return rank_genes(scores, by=by, alpha=alpha, method=method)
