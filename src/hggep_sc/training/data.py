"""Training data: patches or features and targets of every section, held once and handed out as batches."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from scipy import sparse

from .._settings import settings
from ..nn import Batch
from ..section.expression import ExpressionScale

if TYPE_CHECKING:
    from ..section import Section

logger = logging.getLogger(__name__)


@dataclass
class SectionData:
    """What training holds of one section; `observed` marks the spots whose counts are used."""

    name: str
    xy: np.ndarray
    seen: np.ndarray  # uint8 patches (n, fields, 3, S, S), or float32 features (n, views, fields, D)
    positions: np.ndarray
    expression: np.ndarray
    counts: np.ndarray
    totals: np.ndarray  # counts per spot that expression is relative to
    size_factors: np.ndarray
    observed: np.ndarray
    linear: np.ndarray | None = None  # features of the linear path, (n, n_features)
    group: str | None = None

    @property
    def holds_features(self) -> bool:
        """Whether a frozen encoder's features are held instead of patches."""
        return self.seen.dtype != np.uint8

    def batch(self, spots: np.ndarray) -> Batch:
        """Return some of the spots as tensors."""
        seen = torch.from_numpy(np.ascontiguousarray(self.seen[spots]))
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


@contextmanager
def array_store(shapes: Sequence[tuple[int, ...]], dtype: type[np.generic]) -> Iterator[list[np.ndarray]]:
    """Give uninitialised arrays: in memory up to `settings.patch_memory`, else in a temporary file.

    Raises
    ------
    OSError
        If there is no room for them on disk.
    """
    total = sum(int(np.prod(shape)) for shape in shapes) * np.dtype(dtype).itemsize
    if total <= settings.patch_memory:
        yield [np.empty(shape, dtype=dtype) for shape in shapes]
        return
    logger.info("training patches or their features take %.1f GiB: kept in a temporary file", total / 2**30)
    with tempfile.TemporaryDirectory(prefix="hggep_patches_", ignore_cleanup_errors=True) as folder:
        try:
            stores: list[np.ndarray] = [
                _on_disk(Path(folder) / f"{i}.array", dtype, shape) for i, shape in enumerate(shapes)
            ]
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: training patches or their features take {total / 2**30:.1f} GiB in "
                f"{tempfile.gettempdir()}; set TMPDIR to a folder with room, or hold them in memory "
                "(hggep_sc.settings.patch_memory)",
            ) from error
        yield stores


def _on_disk(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """Make an array in a file that has its room on disk: a mapped file without ends Python by SIGBUS."""
    with path.open("wb") as file:
        _reserve(file, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _reserve(file: BinaryIO, size: int) -> None:
    """Take so many bytes of the disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(2**24)
    for start in range(0, size, len(zeros)):  # macOS and Windows have no such call
        file.write(zeros[: size - start])


def counts_to_learn(
    section: "Section", genes: Sequence[str], scale: ExpressionScale
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return a section's counts and the total of each spot, 0 where nothing was counted, which teaches nothing."""
    counts = section.counts(genes)
    totals = scale.totals(counts, section.library())
    observed = totals > 0
    if not observed.any() or counts.nnz == 0:
        raise ValueError(f"section {section.name!r}: no spot has a count in the {len(genes)} genes to be predicted")
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
