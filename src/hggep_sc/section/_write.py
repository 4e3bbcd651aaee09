"""Predictions written into the table, and read back from it."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ._containers import table_of
from ._genes import gene_name_hint, predicted_columns
from ._section import Section
from ._values import listed

logger = logging.getLogger(__name__)


def require_writable(data: Any, genes: Sequence[str], *, key: str, table_key: str | None = None) -> None:
    """Check that `write_prediction` will be able to write, before the work of predicting.

    Parameters
    ----------
    data
        The AnnData or SpatialData to write to.
    genes
        Names of the genes to be predicted.
    key
        Name of the result.
    table_key
        SpatialData: the table.

    Raises
    ------
    ValueError
        If the key is no name, names are ambiguous, no gene is in the table, the layer does not fit in memory,
        or the table is a view of a file.
    """
    table = table_of(data, table_key)
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        raise ValueError(f"the result's key must be letters, digits, '_', '-' and '.'; found {key!r}")
    require_no_backed_view(table)
    predicted_columns(table.var_names, genes)
    _require_memory(table)


def require_no_backed_view(table: AnnData) -> None:
    """Refuse a table that nothing can be written to."""
    if table.is_view and table.isbacked:
        raise ValueError("a view of a backed AnnData cannot be written to; use `adata = adata.to_memory()` first")


def write_prediction(
    data: Any,
    sections: Sequence[Section],
    predictions: Sequence[tuple[np.ndarray, np.ndarray | None]],
    *,
    genes: Sequence[str],
    key: str,
    params: Mapping[str, Any],
    reliability: np.ndarray | None = None,
    uncertainties: Sequence[np.ndarray] | None = None,
    table_key: str | None = None,
) -> None:
    """Write predictions of an object's sections into its table.

    Writes `layers[key]` (n_obs x n_vars float32; NaN for genes that were not predicted and for spots of no
    section), `var["{key}_predicted"]` (bool), `obsm["X_{key}"]` (float32 latent, NaN likewise; removed where there
    is none), `var["{key}_reliability"]` and `obs["{key}_uncertainty"]` (float32, likewise) and `uns[key]`, replacing
    what was there under these names alone. If it fails, the object is as it was.

    Parameters
    ----------
    data
        The AnnData or SpatialData that `sections` were opened from.
    sections
        Its sections.
    predictions
        Per section the expression (n, len(genes)) and the latent representation (n, d), or None in all.
    genes
        Names of the predicted genes.
    key
        Name of the result.
    params
        What to keep in `uns[key]`: str, bool, int, float, arrays, lists and dicts of these; no None.
    reliability
        (len(genes),), or None.
    uncertainties
        Per section (n,), or None.
    table_key
        SpatialData: the table.

    Raises
    ------
    TypeError
        If `params` holds something that h5ad and zarr files cannot.
    ValueError
        If shapes do not agree, names are ambiguous, no gene is in the table, the layer does not fit in
        memory, or the table is a view of a file.
    """
    require_writable(data, genes, key=key, table_key=table_key)
    table = table_of(data, table_key)
    columns = predicted_columns(table.var_names, genes)
    uns = _storable(params, f"uns[{key!r}]")
    sizes = {None if latent is None else latent.shape[1] for _, latent in predictions}
    if len(sections) != len(predictions) or len(sizes) != 1:
        raise ValueError(
            f"one prediction per section is expected, all with one latent size; found {len(sections)} "
            f"sections, {len(predictions)} predictions, latent sizes {sorted(map(str, sizes))}"
        )
    n_latent = sizes.pop()
    known = columns >= 0
    targets = np.flatnonzero(known)
    for section, (expression, latent) in zip(sections, predictions, strict=True):
        expected = (len(section.obs_rows), len(genes))
        if expression.shape != expected or (latent is not None and len(latent) != expected[0]):
            raise ValueError(
                f"section {section.name!r}: expression of shape {expected} is expected, with as many rows of "
                f"latent; found {expression.shape} and {None if latent is None else latent.shape}"
            )
    rows = [section.obs_rows for section in sections]
    layer = _in_the_tables_order(table.shape, rows, [expression for expression, _ in predictions], columns)
    latents = None
    if n_latent is not None:
        found = [latent for _, latent in predictions if latent is not None]
        latents = _in_the_tables_order((table.n_obs, n_latent), rows, found, np.arange(n_latent))

    lost = pd.Index(genes).difference(table.var_names, sort=False)
    if len(lost):
        logger.warning(
            "%d of the %d predicted genes are not in var_names and are left out: %s.%s",
            len(lost),
            len(genes),
            listed(lost),
            gene_name_hint(list(lost), list(table.var_names)),
        )
    for name in _keys.METRICS:  # of an earlier prediction
        table.var.drop(columns=_keys.metric(key, name), errors="ignore", inplace=True)
    table.var.drop(columns=_keys.reliability(key), errors="ignore", inplace=True)
    table.obs.drop(columns=_keys.uncertainty(key), errors="ignore", inplace=True)
    table.layers[key] = layer
    if reliability is not None:
        of_gene = np.full(table.n_vars, np.nan, dtype=np.float32)
        of_gene[targets] = reliability[columns[known]]
        table.var[_keys.reliability(key)] = of_gene
    if uncertainties is not None:
        of_spot = np.full(table.n_obs, np.nan, dtype=np.float32)
        for section, values in zip(sections, uncertainties, strict=True):
            of_spot[section.obs_rows] = values
        table.obs[_keys.uncertainty(key)] = of_spot
    table.var[_keys.predicted(key)] = known
    if latents is not None:
        table.obsm[_keys.latent(key)] = latents
    elif _keys.latent(key) in table.obsm:  # of an earlier prediction
        del table.obsm[_keys.latent(key)]
    table.uns[key] = uns


def _in_the_tables_order(
    shape: tuple[int, int], rows: Sequence[np.ndarray], predictions: Sequence[np.ndarray], columns: np.ndarray
) -> np.ndarray:
    """Return predictions in a table's shape, NaN where there is none; of a single one that is in order the very array.

    `rows` are those of the table that each is of; `columns` are those of the predictions, below 0 for none.
    """
    n_rows, n_columns = shape
    in_order = np.array_equal(np.concatenate(rows), np.arange(n_rows)) and np.array_equal(columns, np.arange(n_columns))
    if in_order and [values.shape for values in predictions] == [shape]:
        return np.asarray(predictions[0], dtype=np.float32)  # of a slide it is too large to be there twice
    known = columns >= 0
    placed = np.full(shape, np.nan, dtype=np.float32)
    for of_section, values in zip(rows, predictions, strict=True):
        placed[np.ix_(of_section, np.flatnonzero(known))] = values[:, columns[known]]
    return placed


def read_prediction(table: AnnData, key: str) -> tuple[dict[str, Any], np.ndarray]:
    """Find what `write_prediction` wrote under a key.

    Parameters
    ----------
    table
        The table.
    key
        Name of the result.

    Returns
    -------
    A copy of `uns[key]` (shallow), and the columns of the predicted genes.

    Raises
    ------
    KeyError
        If `layers[key]`, `uns[key]` or the column of `var` is not there.
    """
    slots = {
        f"layers[{key!r}]": key in table.layers,
        f"uns[{key!r}]": isinstance(table.uns.get(key), Mapping),
        f"var[{_keys.predicted(key)!r}]": _keys.predicted(key) in table.var,
    }
    missing = [slot for slot, there in slots.items() if not there]
    if missing:
        raise KeyError(
            f"no prediction {key!r}: {', '.join(missing)} missing; run hggep_sc.tl.predict first, or name "
            f"another result. Layers here: {listed(table.layers)}"
        )
    return dict(table.uns[key]), np.flatnonzero(table.var[_keys.predicted(key)].to_numpy())


def _require_memory(table: AnnData) -> None:
    import psutil

    needed, available = table.n_obs * table.n_vars * 4, psutil.virtual_memory().available
    if needed > available:
        raise ValueError(
            f"a layer of {table.n_obs} x {table.n_vars} needs {needed / 2**30:.1f} GiB and "
            f"{available / 2**30:.1f} GiB are free. Keep the model's genes alone: "
            "`adata = adata[:, model.genes].copy()`"
        )


def _storable(value: Any, where: str) -> Any:
    """Copy of `value`, made of what h5ad and zarr files can hold."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or not name or "/" in name:
                raise TypeError(f"{where} has the key {name!r}: keys must be str without '/'")
        return {name: _storable(item, f"{where}[{name!r}]") for name, item in value.items()}
    if isinstance(value, list | tuple):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and (value.dtype.kind in "buifU" or all(isinstance(v, str) for v in value.flat)):
        return value.astype(object) if value.dtype.kind == "U" else value.copy()
    if isinstance(value, str | bool | int | float | np.number | np.bool_):
        return value
    raise TypeError(f"{where} is of type {type(value).__name__}, which cannot be written to h5ad and zarr files")
