"""The expression scale: how raw counts become the log expression that a model predicts."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

from .config import Normalize


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

    def totals(self, panel_counts: sp.csr_matrix, library: np.ndarray) -> np.ndarray:
        """Return what each spot's counts are divided by, (n_spots,); 0 where nothing was counted."""
        if self.normalize == "panel":
            return np.asarray(panel_counts.sum(axis=1), dtype=np.float64).ravel()
        return np.asarray(library, dtype=np.float64)

    def transform(self, panel_counts: sp.csr_matrix, totals: np.ndarray) -> np.ndarray:
        """Return log expression, float32 (n_spots, n_genes); rows without a total are zero."""
        factor = np.divide(self.target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
        scaled = sp.diags(factor) @ panel_counts
        log = np.log1p(scaled.toarray())
        return (log / self.log_unit).astype(np.float32)

    @property
    def log_unit(self) -> float:
        """Natural logarithm of the base: multiply by it to bring values to the natural scale."""
        return float(np.log(10.0)) if self.log_base == "10" else 1.0

    def __str__(self) -> str:
        log = "ln" if self.log_base == "e" else "log10"
        return f"{log}(1 + {self.target_sum:g} * counts / {self.normalize} total)"
