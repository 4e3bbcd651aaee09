"""Predictions written into the table, and read back from it."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_bool_dtype
from scipy import sparse

from .. import _keys
from ..errors import InputError, MissingSlotError, OverwriteWarning, ResultWarning
from ..runtime.messages import listed, warn
from ..runtime.validators import flag
from ._containers import table_of
from ._genes import gene_name_hint, predicted_columns
from ._section import Section

Slot = tuple[str, str]  # of an AnnData: attribute and name

LONGEST_KEY = 200  # letters: a file's name has 255, and slots are called by the key and more
# names that have a meaning of their own, whether they are there or not
RESERVED: frozenset[Slot] = frozenset(
    {
        ("uns", _keys.SPATIAL),
        ("uns", "spatialdata_attrs"),
        ("uns", _keys.SLIDE),
        ("obsm", _keys.SPATIAL),
        ("obs", _keys.IN_TISSUE),
        ("obs", _keys.ARRAY_COL),
        ("obs", _keys.ARRAY_ROW),
        ("layers", "X"),
    }
)


def require_key(key: Any, argument: str = "key_added") -> None:
    """Refuse a name of a result that files cannot hold.

    Raises
    ------
    ValueError
        If it is no name.
    """
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        raise ValueError(f"{argument}={key!r}: the result's key must be letters, digits, '_', '-' and '.'")
    # zarr keeps each slot in a folder of its name, beside the files that it describes folders by
    if key in (".", "..") or key.startswith((".z", "zarr.json")) or len(key) > LONGEST_KEY:
        raise ValueError(
            f"{argument}={key[:LONGEST_KEY]!r}: zarr files cannot hold a result of that name: choose another, of "
            f"{LONGEST_KEY} letters at most"
        )


def require_free(
    table: AnnData,
    slots: Collection[Slot],
    *,
    owned: Collection[Slot],
    overwrite: bool,
    reads: Collection[Slot] = (),
    argument: str = "key_added",
) -> list[str]:
    """Refuse to write over what is not ours.

    Parameters
    ----------
    table
        What is to be written to.
    slots
        That are to be written.
    owned
        Those that hold an earlier result of the same kind.
    overwrite
        Whether others may be replaced too, but for those that the object cannot do without.
    reads
        That the call reads, and that are never replaced either.
    argument
        By which the caller names the result.

    Returns
    -------
    Slots that are replaced because of `overwrite`, as a user would write them.

    Raises
    ------
    ValueError
        If a slot is in the way.
    """
    flag("overwrite", overwrite)
    attrs = table.uns.get("spatialdata_attrs")
    keys = [attrs.get(name) for name in ("region_key", "instance_key")] if isinstance(attrs, Mapping) else []
    kept = RESERVED | {("obs", key) for key in keys if isinstance(key, str)} | set(reads)
    if never := [slot for slot in slots if slot in kept]:
        raise ValueError(
            f"{argument}= would replace {_named(never)}, which the object, or this call, cannot do without: choose "
            f"another {argument}="
        )
    taken = [slot for slot in slots if slot not in owned and slot[1] in getattr(table, slot[0])]
    if taken and not overwrite:
        raise ValueError(
            f"{argument}= would replace {_named(taken)}, which is no earlier result of this function: choose another "
            f"{argument}=, or pass overwrite=True to lose what is there"
        )
    return [_named([slot]) for slot in taken]


def warn_of_replaced(slots: Sequence[str]) -> None:
    """Say what is lost, by what `require_free` returned: before it is."""
    if slots:
        warn(f"replaced, as overwrite=True says: {', '.join(slots)}", OverwriteWarning)


def _named(slots: Collection[Slot]) -> str:
    return ", ".join(f"{attribute}[{name!r}]" for attribute, name in slots)


def _slots(key: str) -> list[Slot]:
    """All that a prediction may write."""
    return [
        ("layers", key),
        ("uns", key),
        ("var", _keys.predicted(key)),
        ("var", _keys.reliability(key)),
        ("obs", _keys.uncertainty(key)),
        ("obs", _keys.measured(key)),
        ("obsm", _keys.latent(key)),
    ]


def _owned(table: AnnData, key: str) -> list[Slot]:
    """Slots of an earlier prediction under a key; none where there is no record of it."""
    record = table.uns.get(key)
    if not isinstance(record, Mapping):
        return []
    if isinstance(written := record.get("slots"), np.ndarray | list):
        return [slot for slot in _slots(key) if _named([slot]) in list(written)]
    # earlier versions did not note them
    return _slots(key) if {"hggep_sc", "genes", "sections"} <= set(record) else []


def require_writable(
    data: Any,
    genes: Sequence[str],
    *,
    key: str,
    table_key: str | None = None,
    overwrite: bool = False,
    reads: Collection[Slot] = (),
) -> list[str]:
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
    overwrite, reads
        As in `require_free`.

    Returns
    -------
    What is replaced because of `overwrite`.

    Raises
    ------
    ValueError
        If the key is no name, a slot holds something else than an earlier prediction, names are ambiguous, no gene is
        in the table, the layer does not fit in memory, or the table is a view of a file.
    """
    table = table_of(data, table_key)
    require_key(key)
    require_no_backed_view(table)
    replaced = require_free(table, _slots(key), owned=_owned(table, key), overwrite=overwrite, reads=reads)
    predicted_columns(table.var_names, genes)
    _require_memory(table)
    return replaced


def require_no_backed_view(table: AnnData) -> None:
    """Refuse a table that nothing can be written to."""
    if table.is_view and table.isbacked:
        raise InputError("a view of a backed AnnData cannot be written to; use `adata = adata.to_memory()` first")


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
    measured: Sequence[np.ndarray] | None = None,
    table_key: str | None = None,
    overwrite: bool = False,
    reads: Collection[Slot] = (),
) -> None:
    """Write predictions of an object's sections into its table.

    Writes `layers[key]` (n_obs x n_vars float32; NaN for genes that were not predicted and for spots of no
    section), `var["{key}_predicted"]` (bool), `obsm["X_{key}"]` (float32 latent, NaN likewise; removed where there
    is none), `var["{key}_reliability"]` and `obs["{key}_uncertainty"]` (float32, likewise), `obs["{key}_measured"]`
    (bool) and `uns[key]`, which also lists them ("slots"): they replace those of an earlier prediction alone. If it
    fails, the object is as it was.

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
    measured
        Per section the indices of the spots whose counts corrected the prediction, or None.
    table_key
        SpatialData: the table.
    overwrite, reads
        As in `require_free`.

    Raises
    ------
    TypeError
        If `params` holds something that h5ad and zarr files cannot.
    ValueError
        If shapes do not agree, a slot holds something else than an earlier prediction, names are ambiguous, no gene is
        in the table, the layer does not fit in memory, or the table is a view of a file.
    """
    replaced = require_writable(data, genes, key=key, table_key=table_key, overwrite=overwrite, reads=reads)
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
        hint = gene_name_hint(list(lost), list(table.var_names))
        warn(
            f"{len(lost)} of the {len(genes)} predicted genes are not in var_names and are left out: "
            f"{listed(lost)}.{hint}",
            ResultWarning,
        )
    warn_of_replaced(replaced)
    if _owned(table, key) and "metrics" in table.uns[key]:  # of an earlier prediction
        for name in _keys.METRICS:
            table.var.drop(columns=_keys.metric(key, name), errors="ignore", inplace=True)
    table.var.drop(columns=_keys.reliability(key), errors="ignore", inplace=True)
    table.obs.drop(columns=[_keys.uncertainty(key), _keys.measured(key)], errors="ignore", inplace=True)
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
    if measured is not None:
        is_measured = np.zeros(table.n_obs, dtype=bool)
        for section, spots in zip(sections, measured, strict=True):
            is_measured[section.obs_rows[spots]] = True
        table.obs[_keys.measured(key)] = is_measured
    table.var[_keys.predicted(key)] = known
    if latents is not None:
        table.obsm[_keys.latent(key)] = latents
    elif _keys.latent(key) in table.obsm:  # of an earlier prediction
        del table.obsm[_keys.latent(key)]
    written = [
        _named([(slot, name)])
        for slot, name in _slots(key)
        if (slot, name) == ("uns", key) or name in getattr(table, slot)
    ]
    table.uns[key] = {**uns, "slots": np.array(written, dtype=object)}


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
    MissingSlotError
        If `layers[key]`, `uns[key]` or the column of `var` is not there.
    TypeError, ValueError, InputError
        If the key is no name, what is there is not what was written, or none of the predicted genes is left.
    """
    require_key(key, "key")
    slots = {
        f"layers[{key!r}]": key in table.layers,
        f"uns[{key!r}]": isinstance(table.uns.get(key), Mapping),
        f"var[{_keys.predicted(key)!r}]": _keys.predicted(key) in table.var,
    }
    missing = [slot for slot, there in slots.items() if not there]
    if missing:
        raise MissingSlotError(
            f"no prediction {key!r}: {', '.join(missing)} missing; run hggep_sc.tl.predict first, or name "
            f"another result. Layers here: {listed(table.layers)}"
        )
    record, known = dict(table.uns[key]), table.var[_keys.predicted(key)]
    if not is_bool_dtype(known) or known.isna().any():
        raise TypeError(
            f"var[{known.name!r}] holds values of type {known.dtype}, where True and False say which genes are "
            "predicted: predict again, or bring it back to them"
        )
    if not known.any():
        raise InputError(
            f"none of the object's {table.n_vars} genes is predicted in layers[{key!r}]: take more of them"
        )
    layer = table.layers[key]
    if sparse.issparse(layer) or layer.dtype.kind not in "buif":
        raise TypeError(
            f"layers[{key!r}] is {type(layer).__name__} of {layer.dtype}, where tl.predict wrote a dense array of "
            "numbers: predict again"
        )
    return record, np.flatnonzero(known.to_numpy(dtype=bool))


def unmeasured(table: AnnData, record: Mapping[str, Any], key: str) -> np.ndarray:
    """Return at which spots a prediction was made without their own counts, (n_obs,) bool: there it can be scored.

    Parameters
    ----------
    table
        The table.
    record
        Of the prediction, by `read_prediction`.
    key
        Its name.

    Raises
    ------
    MissingSlotError
        If the prediction was corrected by measured spots, and the column that tells them is not there.
    """
    if "measured" not in record:
        return np.ones(table.n_obs, dtype=bool)
    column = _keys.measured(key)
    if column not in table.obs:
        raise MissingSlotError(
            f"prediction {key!r} was corrected by the counts of {len(record['measured'])} spots, which would be scored "
            f"against themselves: obs[{column!r}], which tells them from the others, is missing. Their names are in "
            f"uns[{key!r}]['measured']"
        )
    return ~table.obs[column].eq(True).to_numpy(dtype=bool)


def predicted_sections(record: Mapping[str, Any], key: str) -> list[str]:
    """Names of a prediction's sections, by its record.

    Raises
    ------
    InputError
        If the record does not say.
    """
    if "name" not in record.get("sections", {}):
        raise InputError(
            f"uns[{key!r}] does not say which sections were predicted, as after anndata.concat(uns_merge='same'): "
            "go on with each section apart, or predict the joined object"
        )
    return [str(name) for name in record["sections"]["name"]]


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
