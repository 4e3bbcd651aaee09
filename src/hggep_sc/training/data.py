"""Training data: patches or features and targets of every section, held once and handed out as batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from ..errors import InputError
from ..nn import Batch
from ..prediction.linear import LinearFeatures
from ..section.expression import ExpressionScale
from ..storage.arrays import let_go

if TYPE_CHECKING:
    from ..section import Section

logger = logging.getLogger(__name__)


@dataclass
class SectionData:
    """What training holds of one section; `observed` marks the spots whose counts are used."""

    name: str
    xy: np.ndarray
    seen: np.ndarray  # uint8 patches (n, fields, 3, S, S), or float32 features (n, fields, D)
    positions: np.ndarray
    expression: np.ndarray
    counts: np.ndarray
    totals: np.ndarray  # counts per spot that expression is relative to
    size_factors: np.ndarray
    observed: np.ndarray
    linear: LinearFeatures | None = None  # what the linear path sees
    group: str | None = None

    @property
    def holds_features(self) -> bool:
        """Whether a frozen encoder's features are held instead of patches."""
        return self.seen.dtype != np.uint8

    def batch(self, spots: np.ndarray) -> Batch:
        """Return some of the spots as tensors."""
        seen = torch.from_numpy(np.ascontiguousarray(self.seen[spots]))
        let_go(self.seen)
        return Batch(
            patches=None if self.holds_features else seen,
            features=seen if self.holds_features else None,
            positions=torch.from_numpy(self.positions[spots]),
            expression=torch.from_numpy(self.expression[spots]),
            counts=torch.from_numpy(self.counts[spots]),
            size_factors=torch.from_numpy(self.size_factors[spots]),
            observed=torch.from_numpy(np.flatnonzero(self.observed[spots])),
            section=self.name,
        )


def parted(data: Sequence[SectionData], held_out: Sequence[np.ndarray]) -> tuple[list[SectionData], list[SectionData]]:
    """Return the same sections with the spots that are learnt from, and with those that are held out (bool masks)."""
    learnt = [replace(part, observed=part.observed & ~mask) for part, mask in zip(data, held_out, strict=True)]
    others = [replace(part, observed=part.observed & mask) for part, mask in zip(data, held_out, strict=True)]
    return [part for part in learnt if part.observed.any()], [part for part in others if part.observed.any()]


def counts_to_learn(
    section: "Section", genes: Sequence[str], scale: ExpressionScale
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return a section's counts and the total of each spot, 0 where nothing was counted, which teaches nothing."""
    counts = section.counts(genes)
    totals = scale.totals(counts, section.library())
    observed = totals > 0
    if not observed.any() or counts.nnz == 0:
        raise InputError(f"section {section.name!r}: no spot has a count in the {len(genes)} genes to be predicted")
    if not observed.all():
        logger.info("section %r: %d spots without counts are left out of training", section.name, (~observed).sum())
    return counts, totals


def section_data(
    section: "Section",
    genes: Sequence[str],
    scale: ExpressionScale,
    seen: np.ndarray,
    positions: np.ndarray,
    held_out: np.ndarray | None = None,
) -> SectionData:
    """Bring one section's counts to the model's scale; no figure is taken over `held_out` spots, where given."""
    counts, totals = counts_to_learn(section, genes, scale)
    observed = totals > 0
    typical = np.median(totals[observed if held_out is None or held_out.all() else observed & ~held_out])
    return SectionData(
        name=section.name,
        xy=section.xy,
        seen=seen,
        positions=positions.astype(np.float32 if positions.dtype.kind == "f" else positions.dtype),
        expression=scale.transform(counts, totals),
        counts=counts.toarray().astype(np.float32),
        totals=totals,
        size_factors=(totals / typical).astype(np.float32),
        observed=observed,
        group=section.group,
    )
