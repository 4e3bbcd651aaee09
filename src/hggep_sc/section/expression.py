"""The expression scale: how raw counts become the log expression that a model predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from ..config import Normalize
from . import observed_counts

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class ExpressionScale:
    """Log of 1 + counts scaled to a common total per spot.

    Parameters
    ----------
    normalize
        What a spot's counts are divided by: its full library, or its total over the panel of predicted genes.
    target_sum
        Counts per spot after scaling.
    log_base
        "e" (natural, the default of every method here) or "10" (the published code).
    """

    normalize: Normalize = "library"
    target_sum: float = 1e4
    log_base: Literal["e", "10"] = "e"

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "ExpressionScale":
        """Return the scale that `tl.predict` noted in `uns[key]`."""
        return cls(record["normalize"], float(record["target_sum"]), record["log_base"])

    def totals(self, panel_counts: sp.csr_matrix, library: np.ndarray) -> np.ndarray:
        """Return what each spot's counts are divided by, (n_spots,); 0 where nothing was counted."""
        if self.normalize == "panel":
            return np.asarray(panel_counts.sum(axis=1), dtype=np.float64).ravel()
        return np.asarray(library, dtype=np.float64)

    def transform(self, panel_counts: sp.csr_matrix, totals: np.ndarray) -> np.ndarray:
        """Return log expression, float32 (n_spots, n_genes); rows without a total are zero."""
        return self.transform_sparse(panel_counts, totals).toarray()

    def transform_sparse(self, panel_counts: sp.csr_matrix, totals: np.ndarray) -> sp.csr_matrix:
        """Return the same as `transform`, sparse as the counts are."""
        factor = np.divide(self.target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
        scaled = sp.csr_matrix(sp.diags(factor) @ panel_counts)
        scaled.data = np.log1p(scaled.data) / self.log_unit
        return scaled.astype(np.float32)

    def of_shares(self, shares: np.ndarray) -> np.ndarray:
        """Return log expression of spots of which each gene has such a share of the total, float32."""
        return (np.log1p(self.target_sum * shares) / self.log_unit).astype(np.float32)

    @property
    def log_unit(self) -> float:
        """Natural logarithm of the base: multiply by it to bring values to the natural scale."""
        return float(np.log(10.0)) if self.log_base == "10" else 1.0

    def __str__(self) -> str:
        log = "ln" if self.log_base == "e" else "log10"
        return f"{log}(1 + {self.target_sum:g} * counts / {self.normalize} total)"


def observed_expression(
    table: "AnnData",
    rows: np.ndarray,
    panel: Sequence[str],
    scale: ExpressionScale,
    *,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
) -> np.ndarray:
    """Bring observed counts to the scale of a prediction, in natural log units.

    Parameters
    ----------
    table
        Where the counts are.
    rows
        Its spots.
    panel
        The predicted genes, over which a scale with `normalize="panel"` takes its totals.
    scale
        The scale of the prediction.
    genes
        Those of the panel to return; None for all.
    layer
        Layer with raw counts; None for `X`.

    Returns
    -------
    float32 (len(rows), len(genes)); NaN for spots where nothing was counted.
    """
    counts, library = observed_counts(table, rows, list(panel), layer)
    totals = scale.totals(counts, library)
    if genes is not None:
        column = {gene: j for j, gene in enumerate(panel)}
        counts = counts[:, [column[gene] for gene in genes]]
    expression = scale.transform(counts, totals) * scale.log_unit
    expression[totals <= 0] = np.nan
    return expression
