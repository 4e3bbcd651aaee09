"""Raw counts of a table: read a part at a time, and refused where they are something else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from .. import _keys
from ..errors import InputError, MissingSlotError
from ..runtime.messages import listed
from ._genes import columns_of

MOST = 2**31  # that a count has to stay below: sums and logarithms of larger ones overflow
CHUNK = 2**25  # values of a dense or backed matrix that are read at a time


@dataclass(frozen=True, eq=False)
class CountMatrix:
    """`X` or a layer of a table, as raw counts.

    `name` is whose counts messages say they are, `keyword` what the caller's user names the layer by.
    """

    table: AnnData
    layer: str | None
    name: str
    keyword: str = "layer"

    @property
    def slot(self) -> str:
        """The matrix's place in the table."""
        return "X" if self.layer is None else f"layers[{self.layer!r}]"

    def counts(self, rows: np.ndarray, genes: Sequence[str]) -> sparse.csr_matrix:
        """(len(rows), len(genes)) float32 counts; columns are matched by name."""
        values = self._read(rows, columns_of(self.table.var_names, genes, self.name))
        self._require_counts(values)
        return sparse.csr_matrix(values, dtype=np.float32)

    def library(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) float64 counts over all genes of the table."""
        totals = []
        for values in self.chunks(rows):
            self._require_counts(values)
            totals.append(np.asarray(values.sum(axis=1, dtype=np.float64)).ravel())
        return np.concatenate(totals) if totals else np.empty(0)

    def values(self, rows: np.ndarray) -> sparse.csr_matrix:
        """(len(rows), all genes) values, as they are."""
        return sparse.vstack([sparse.csr_matrix(values) for values in self.chunks(rows)], format="csr")

    def as_it_is(self, rows: np.ndarray, genes: Sequence[str]) -> np.ndarray:
        """(len(rows), len(genes)) values, floating and dense, whatever they are; columns are matched by name."""
        values = self._read(rows, columns_of(self.table.var_names, genes, self.name))
        values = values.toarray() if sparse.issparse(values) else values
        return values.astype(np.promote_types(values.dtype, np.float32), copy=False)

    def any(self, rows: np.ndarray) -> bool:
        """Whether there is a matrix, and any value of it differs from zero."""
        if self._matrix(rows[:1], slice(None)) is None:
            return False
        return any(np.any(values.data if sparse.issparse(values) else values) for values in self.chunks(rows))

    def chunks(self, rows: np.ndarray) -> Iterator[Any]:
        """All genes, some rows at a time, so that a dense or backed matrix is not held twice."""
        step = max(1, CHUNK // max(1, self.table.n_vars))
        whole = self.table.is_view if self.table.isbacked else sparse.issparse(self._matrix(rows[:1], slice(None)))
        if whole:
            step = max(1, len(rows))
        for start in range(0, len(rows), step):
            yield self._read(rows[start : start + step], slice(None))

    def _matrix(self, rows: np.ndarray, columns: np.ndarray | slice) -> Any:
        """Part of the matrix in memory, dense or sparse; None where there is none."""
        # anndata makes no view of a view of a file: such a one is read first
        from_view = self.table.isbacked and self.table.is_view
        part = self.table if from_view else self.table[rows, columns]
        try:
            values = part.X if self.layer is None else part.layers.get(self.layer)
        except KeyError:  # a backed object whose file holds no X
            values = None
        if from_view and values is not None:
            values = values[rows][:, columns]
        if hasattr(values, "compute"):  # dask
            values = values.compute()
        return values if values is None or sparse.issparse(values) else np.asarray(values)

    def _read(self, rows: np.ndarray, columns: np.ndarray | slice) -> Any:
        values = self._matrix(rows, columns)
        if values is None:
            found = "X is empty" if self.layer is None else f"there is no layer {self.layer!r}"
            raise MissingSlotError(
                f"{self.name} has no counts: {found}. Name the layer that holds the raw counts by "
                f"`{self.keyword}=`; layers here: {listed(self._others())}"
            )
        return values

    def _others(self) -> list[str]:
        """Layers that could be the one with the counts: no predictions."""
        predictions = {name for name in self.table.layers if _keys.predicted(name) in self.table.var}
        return [name for name in self.table.layers if name != self.layer and name not in predictions]

    def _require_counts(self, values: Any) -> None:
        data = values.data if sparse.issparse(values) else values
        problem = None
        if data.dtype.kind not in "buif":
            problem = f"values of type {data.dtype}"
        elif data.dtype.kind == "f" and not np.isfinite(data).all():
            problem = f"{np.sum(~np.isfinite(data))} NaN or infinite values"
        elif data.dtype.kind in "if" and data.size and data.min() < 0:
            problem = f"negative values ({data.min():.4g})"
        elif data.size and data.max() >= MOST:
            problem = f"values as large as {data.max():.4g}"
        elif data.dtype.kind == "f" and np.any(fraction := data != np.rint(data)):
            problem = f"non-integer values ({data[fraction].flat[0]:.4g})"
        if problem is not None:
            raise InputError(
                f"{self.name}: {self.slot} holds {problem}, where raw counts are expected (whole numbers, 0 "
                f"or more). Name the layer that holds the raw counts by `{self.keyword}=`; other layers "
                f"here: {listed(self._others())}{self._in_raw()}"
            )

    def _in_raw(self) -> str:
        """Sentence on `raw`, where it holds what looks like counts."""
        raw = self.table.raw
        if raw is None:
            return ""
        some = raw.X[: min(100, raw.shape[0])]
        some = some.compute() if hasattr(some, "compute") else some
        values = some.data if sparse.issparse(some) else np.asarray(some)
        if not values.size or (values != np.rint(values)).any() or values.min() < 0:
            return ""
        return ". The raw counts seem to lie in adata.raw: `adata = adata.raw.to_adata()` makes them X"


def observed_counts(
    table: AnnData, rows: np.ndarray, genes: Sequence[str], layer: str | None
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Raw counts to compare a prediction with.

    Parameters
    ----------
    table
        The table.
    rows
        (n,) rows of it.
    genes
        Names as in its `var_names`.
    layer
        Layer with raw counts; None for `X`.

    Returns
    -------
    (n, len(genes)) float32 counts, and (n,) float64 counts over all genes of the table.

    Raises
    ------
    MissingSlotError
        If a gene is not in the table, or the matrix is not.
    InputError
        If a value is no count, or all are zero.
    """
    matrix = CountMatrix(table, layer, "the table", keyword="observed_layer")
    counts, library = matrix.counts(rows, genes), matrix.library(rows)
    if not library.any():
        raise InputError(
            f"no counts: {matrix.slot} holds none at the {len(rows)} spots asked for. A prediction is compared with "
            f"what was measured there: name the layer that holds the raw counts by `{matrix.keyword}=`; layers here "
            f"that are no predictions: {listed(matrix._others())}"
        )
    return counts, library


def without_counts(table: AnnData, rows: np.ndarray) -> bool:
    """Whether nothing was counted at these rows, as on a slide of `pp.tile`: no layer or `raw` could hold it either."""
    matrix = CountMatrix(table, None, "the table")
    return table.raw is None and not matrix._others() and not matrix.any(rows)


def layer_values(table: AnnData, rows: np.ndarray, genes: Sequence[str], layer: str | None) -> np.ndarray:
    """Values of `X` or a layer as they are, whatever they are: (len(rows), len(genes)), floating.

    Raises
    ------
    MissingSlotError
        If a gene is not in the table, or the matrix is not.
    """
    return CountMatrix(table, layer, "the table", keyword="layer").as_it_is(rows, genes)
