"""The model's view of one section, read from AnnData or SpatialData and written back to them.

No other module knows what the two containers look like.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from . import _keys
from .image import SectionImage

if TYPE_CHECKING:
    from spatialdata import SpatialData

__all__ = ["Section", "gene_name_hint", "open_sections", "table_of", "write_prediction"]

logger = logging.getLogger(__name__)

SOURCE = "source"  # `image_key` of the file that `metadata.source_image_path` names
MAX_OUTSIDE = 0.1  # share of spots that may lie outside the image before its scale is taken to be wrong
CHUNK = 2**25  # values of a dense or backed matrix that are read at a time
SPACING_UM = {"visium": 100.0, "st": 200.0}  # centre to centre
MICRONS = {"um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"}
RESOLUTIONS = {"full", "fullres", "hires", "lowres"}  # as spatialdata-io names the copies of one image
COLOURS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2, "a": 3, "alpha": 3}


@dataclass(eq=False)  # arrays have no single truth value
class Section:
    """One section: spots, where they lie on the H&E image, and their counts.

    Attributes
    ----------
    name
        The section's name, unique among those opened together.
    obs_rows
        (n,) rows of `table` that are this section's spots under tissue, in the table's order.
    xy
        (n, 2) spot centres in px of the image's finest level (column, row); pixel i covers [i, i + 1).
    mpp
        um per px of the image's finest level, None where unknown.
    spot_diameter
        Diameter of a circle, side of a square, in px of the image's finest level; None where unknown.
    spot_shape
        "circle", or "square" for the bins of Visium HD.
    image_name
        Slot or file that the image is read from.
    table
        The AnnData (or the SpatialData's table) that `obs_rows` refers to.
    layer
        Layer of `table` with the raw counts; None is `X`.
    opener
        Opens the image.
    """

    name: str
    obs_rows: np.ndarray
    xy: np.ndarray
    mpp: float | None
    spot_diameter: float | None
    spot_shape: Literal["circle", "square"]
    image_name: str
    table: AnnData = field(repr=False)
    layer: str | None
    opener: Callable[[], SectionImage] = field(repr=False)

    def open_image(self) -> SectionImage:
        """Open the image; the caller closes it (`with section.open_image() as image`)."""
        return self.opener()

    @property
    def var_names(self) -> pd.Index:
        """Gene names of the table."""
        return self.table.var_names

    def counts(self, genes: Sequence[str]) -> sparse.csr_matrix:
        """Raw counts of some genes.

        Parameters
        ----------
        genes
            Names as in `var_names`, in the order wanted.

        Returns
        -------
        (n, len(genes)) float32 counts; columns are matched by name.

        Raises
        ------
        KeyError
            If a gene is not in the table, or there are no counts.
        ValueError
            If a name is there twice, or a value of these genes is no count.
        """
        columns = _columns(self.var_names, genes, f"section {self.name!r}")
        values = self._read(self.obs_rows, columns)
        self._require_counts(values)
        return sparse.csr_matrix(values, dtype=np.float32)

    def library(self) -> np.ndarray:
        """(n,) float64 counts per spot over all genes of the table.

        Raises
        ------
        KeyError
            If there are no counts.
        ValueError
            If any value is no count.
        """
        totals = []
        for values in self._chunks():
            self._require_counts(values)
            totals.append(np.asarray(values.sum(axis=1, dtype=np.float64)).ravel())
        return np.concatenate(totals)

    @property
    def has_counts(self) -> bool:
        """Whether any value of `X` (or the layer) differs from zero at the section's spots."""
        if self._matrix(self.obs_rows[:1], slice(None)) is None:
            return False
        return any(np.any(values.data if sparse.issparse(values) else values) for values in self._chunks())

    def array_xy(self) -> np.ndarray:
        """(n, 2) int64 positions on the array grid: `obs["array_col"]`, `obs["array_row"]`.

        Raises
        ------
        KeyError
            If a column is missing.
        ValueError
            If one holds something else than whole numbers.
        """
        obs = self.table.obs
        missing = [column for column in (_keys.ARRAY_COL, _keys.ARRAY_ROW) if column not in obs]
        if missing:
            raise KeyError(
                f"section {self.name!r}: obs has no column {_listed(missing)}; the array position of each "
                "spot (x as "
                f"{_keys.ARRAY_COL!r}, y as {_keys.ARRAY_ROW!r}) is needed here. Space Ranger's "
                "tissue_positions "
                "file and the spot files of Spatial Transcriptomics hold it"
            )
        columns = obs[[_keys.ARRAY_COL, _keys.ARRAY_ROW]].iloc[self.obs_rows]
        try:
            position = columns.to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            position = np.full(columns.shape, np.nan)
        if not np.array_equal(position, np.rint(position)):
            raise ValueError(
                f"section {self.name!r}: obs[{_keys.ARRAY_COL!r}] and obs[{_keys.ARRAY_ROW!r}] must be "
                "whole numbers "
                "without gaps, the spots' positions on the array grid"
            )
        return position.astype(np.int64)

    def _matrix(self, rows: np.ndarray, columns: np.ndarray | slice) -> Any:
        """Part of `X` or the layer, a dense array or sparse matrix in memory; None where there is none."""
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
            raise KeyError(
                f"section {self.name!r} has no counts: {found}. Name the layer that holds the raw counts by "
                f"`layer=`; layers here: {_listed(self.table.layers)}"
            )
        return values

    def _chunks(self) -> Iterator[Any]:
        """All genes, some rows at a time, so that a dense or backed matrix is not held twice."""
        step = max(1, CHUNK // max(1, self.table.n_vars))
        whole = (
            self.table.is_view
            if self.table.isbacked
            else sparse.issparse(self._matrix(self.obs_rows[:1], slice(None)))
        )
        if whole:
            step = len(self.obs_rows)
        for start in range(0, len(self.obs_rows), step):
            yield self._read(self.obs_rows[start : start + step], slice(None))

    def _require_counts(self, values: Any) -> None:
        """Refuse what is not raw counts."""
        data = values.data if sparse.issparse(values) else values
        problem = None
        if data.dtype.kind not in "buif":
            problem = f"values of type {data.dtype}"
        elif data.dtype.kind == "f" and not np.isfinite(data).all():
            problem = f"{np.sum(~np.isfinite(data))} NaN or infinite values"
        elif data.dtype.kind in "if" and data.size and data.min() < 0:
            problem = f"negative values ({data.min():.4g})"
        elif data.dtype.kind == "f" and np.any(fraction := data != np.rint(data)):
            problem = f"non-integer values ({data[fraction].flat[0]:.4g})"
        if problem is not None:
            slot = "X" if self.layer is None else f"layers[{self.layer!r}]"
            others = [name for name in self.table.layers if name != self.layer]
            raise ValueError(
                f"section {self.name!r}: {slot} holds {problem}, where raw counts are expected "
                "(whole "
                "numbers, 0 or more). Name the layer that holds the raw counts by `layer=`; "
                f"other layers here: {_listed(others)}"
            )


def open_sections(
    data: Any,
    *,
    library_key: str | None = None,
    library_id: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    layer: str | None = None,
    mpp: float | Mapping[str, float] | None = None,
) -> list[Section]:
    """Find the sections in AnnData and SpatialData objects.

    What is left out is inferred where one choice exists; of the resolutions of one image the finest is taken.

    Parameters
    ----------
    data
        An AnnData or SpatialData object, a list or a dict of them. Sections are named by the dict's keys
        (followed by "/" and the library or region where one object holds several), otherwise by library ids
        and region names.
    library_key
        AnnData: column of `obs` that says which library of `uns["spatial"]` a spot belongs to.
    library_id
        AnnData: the library of `uns["spatial"]` to take.
    image_key
        AnnData: key of `uns["spatial"][library_id]["images"]`, or "source" for the file that
        `metadata["source_image_path"]` names. SpatialData: name of the image. A dict chooses by section name.
    shapes_key
        SpatialData: the shapes to take, among those that the table annotates.
    table_key
        SpatialData: the table.
    coordinate_system
        SpatialData: where shapes and image meet.
    spatial_key
        AnnData: `obsm` slot of the spot centres, in full-resolution px (column, row).
    layer
        Layer with raw counts, None for `X`.
    mpp
        um per px: for AnnData of the full-resolution image (the unit of the coordinates), for SpatialData of
        the finest level of the image. A dict gives it by section name.

    Returns
    -------
    The sections, at least one, under unique names.

    Raises
    ------
    TypeError
        If `data` is or holds something else.
    KeyError
        If a named slot does not exist.
    ValueError
        If spots, coordinates or the image are missing, ambiguous, or do not fit together.
    """
    objects = _objects(data)
    _refuse_foreign_keywords(
        [item for _, item in objects],
        anndata={"library_key": library_key, "library_id": library_id},
        spatialdata={
            "shapes_key": shapes_key,
            "table_key": table_key,
            "coordinate_system": coordinate_system,
        },
    )
    sections: list[Section] = []
    for label, item in objects:
        found: list[Section]
        if isinstance(item, AnnData):
            parts = _libraries(item, library_key, library_id, spatial_key)
            names = _section_names(label, list(parts))
            found = [
                _anndata_section(
                    item,
                    name=name,
                    library=library,
                    rows=rows,
                    image_key=_chosen(image_key, name),
                    spatial_key=spatial_key,
                    layer=layer,
                    mpp=_checked_mpp(_chosen(mpp, name)),
                )
                for name, (library, rows) in zip(names, parts.items(), strict=True)
            ]
        else:
            table = table_of(item, table_key)
            parts = _regions(item, table, shapes_key)
            names = _section_names(label, list(parts))
            found = [
                _spatialdata_section(
                    item,
                    table,
                    name=name,
                    region=region,
                    rows=rows,
                    image_key=_chosen(image_key, name),
                    coordinate_system=coordinate_system,
                    layer=layer,
                    mpp=_checked_mpp(_chosen(mpp, name)),
                )
                for name, (region, rows) in zip(names, parts.items(), strict=True)
            ]
        sections.extend(found)

    opened = [section.name for section in sections]
    twice = sorted({name for name in opened if opened.count(name) > 1})
    if twice:
        raise ValueError(
            f"several sections are called {_listed(twice)}; pass a dict of name -> object to tell them apart"
        )
    for keyword, value in {"image_key": image_key, "mpp": mpp}.items():
        unknown = [name for name in value if name not in opened] if isinstance(value, Mapping) else []
        if unknown:
            raise KeyError(f"`{keyword}` names {_listed(unknown)}, but the sections are {_listed(opened)}")
    return sections


def table_of(data: Any, table_key: str | None = None) -> AnnData:
    """Table of an object: an AnnData itself, or the table of a SpatialData.

    Raises
    ------
    TypeError
        If `data` is neither.
    KeyError
        If there is no table of that name.
    ValueError
        If there is none, or several and no `table_key`.
    """
    if isinstance(data, AnnData):
        return data
    if not _is_spatialdata(data):
        raise TypeError(_not_a_container(data))
    tables = data.tables
    if table_key is not None:
        if table_key not in tables:
            raise KeyError(
                f"`table_key`: the SpatialData has no table {table_key!r}; tables: {_listed(tables)}"
            )
        return tables[table_key]
    if len(tables) == 0:
        raise ValueError("the SpatialData has no table: one that annotates the spots' shapes is needed")
    if len(tables) > 1:
        raise ValueError(f"the SpatialData has several tables: {_listed(tables)}; choose one by `table_key=`")
    return next(iter(tables.values()))


def write_prediction(
    data: Any,
    sections: Sequence[Section],
    predictions: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    genes: Sequence[str],
    key: str,
    params: Mapping[str, Any],
    table_key: str | None = None,
) -> None:
    """Write predictions of an object's sections into its table.

    Writes `layers[key]` (n_obs x n_vars float32; NaN for genes that were not predicted and for spots of no
    section), `var["{key}_predicted"]` (bool), `obsm["X_{key}"]` (float32 latent, NaN likewise) and
    `uns[key]`, replacing what was there under these names alone. If it fails, the object is as it was before.

    Parameters
    ----------
    data
        The AnnData or SpatialData that `sections` were opened from.
    sections
        Its sections.
    predictions
        Per section the expression (n, len(genes)) and the latent representation (n, d).
    genes
        Names of the predicted genes.
    key
        Name of the result.
    params
        What to keep in `uns[key]`: str, bool, int, float, arrays, lists and dicts of these; no None.
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
    table = table_of(data, table_key)
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        raise ValueError(f"the result's key must be letters, digits, '_', '-' and '.'; found {key!r}")
    if table.is_view and table.isbacked:
        raise ValueError(
            "a view of a backed AnnData cannot be written to; use `adata = adata.to_memory()` first"
        )
    columns = _predicted_columns(table.var_names, genes)
    uns = _storable(params, f"uns[{key!r}]")
    _require_memory(table)

    n_latent = {latent.shape[1] for _, latent in predictions}
    if len(sections) != len(predictions) or len(n_latent) != 1:
        raise ValueError(
            f"one prediction per section is expected, all with one latent size; found {len(sections)} "
            "sections, "
            f"{len(predictions)} predictions, latent sizes {sorted(n_latent)}"
        )
    layer = np.full(table.shape, np.nan, dtype=np.float32)
    latents = np.full((table.n_obs, n_latent.pop()), np.nan, dtype=np.float32)
    known = columns >= 0
    targets = np.flatnonzero(known)
    for section, (expression, latent) in zip(sections, predictions, strict=True):
        expected = (len(section.obs_rows), len(genes))
        if expression.shape != expected or len(latent) != expected[0]:
            raise ValueError(
                f"section {section.name!r}: expression of shape {expected} is expected, found "
                f"{expression.shape} "
                f"with {len(latent)} rows of latent"
            )
        layer[np.ix_(section.obs_rows, targets)] = expression[:, columns[known]]
        latents[section.obs_rows] = latent

    table.layers[key] = layer
    table.var[_keys.predicted(key)] = known
    table.obsm[_keys.latent(key)] = latents
    table.uns[key] = uns


def gene_name_hint(a: Sequence[str], b: Sequence[str]) -> str:
    """Sentence to append to an error where `a` are Ensembl ids and `b` are not, or the other way; else ""."""
    ensembl = [_mostly_ensembl(names) for names in (a, b)]
    if ensembl[0] == ensembl[1] or not len(a) or not len(b):
        return ""
    ids, symbols = (a, b) if ensembl[0] else (b, a)
    return (
        f" One side looks like Ensembl ids ({ids[0]}), the other like gene symbols ({symbols[0]}): bring "
        "both to "
        "one kind, for instance `adata.var_names = adata.var['gene_ids']` where that column exists."
    )


# --- what was given -----------------------------------------------------------------------------------------


def _is_spatialdata(item: Any) -> bool:
    module = sys.modules.get("spatialdata")  # an instance exists only where the library is loaded
    return module is not None and isinstance(item, module.SpatialData)


def _not_a_container(item: Any) -> str:
    found = type(item).__name__
    return f"an AnnData or SpatialData object is expected, or a list or dict of them; found {found}"


def _objects(data: Any) -> list[tuple[str | None, Any]]:
    """(name given by the caller, object) of each object."""
    pairs: list[tuple[str | None, Any]]
    if isinstance(data, AnnData) or _is_spatialdata(data):
        return [(None, data)]
    if isinstance(data, Mapping):
        pairs = [(str(key), item) for key, item in data.items()]
    elif isinstance(data, list | tuple):
        pairs = [(None, item) for item in data]
    else:
        raise TypeError(_not_a_container(data))
    if not pairs:
        raise ValueError(f"no sections: the {type(data).__name__} is empty")
    for _, item in pairs:
        if not (isinstance(item, AnnData) or _is_spatialdata(item)):
            raise TypeError(_not_a_container(item))
    return pairs


def _refuse_foreign_keywords(
    items: list[Any], *, anndata: dict[str, Any], spatialdata: dict[str, Any]
) -> None:
    """Refuse a keyword that none of the objects could use."""
    kinds = {isinstance(item, AnnData) for item in items}
    for is_anndata, keywords, kind in ((True, anndata, "AnnData"), (False, spatialdata, "SpatialData")):
        given = [f"`{keyword}`" for keyword, value in keywords.items() if value is not None]
        if given and is_anndata not in kinds:
            raise ValueError(f"{', '.join(given)} is for {kind} objects, and none was given")


def _section_names(label: str | None, found: list[str]) -> list[str]:
    if label is None:
        return found
    return [label] if len(found) == 1 else [f"{label}/{name}" for name in found]


def _chosen(option: Any, name: str) -> Any:
    return option.get(name) if isinstance(option, Mapping) else option


def _checked_mpp(mpp: Any) -> float | None:
    if mpp is None:
        return None
    if isinstance(mpp, bool) or not isinstance(mpp, int | float | np.number) or not (0 < mpp < np.inf):
        raise ValueError(f"`mpp` is um per px, a positive number; found {mpp!r}")
    return float(mpp)


def _listed(names: Any, most: int = 10) -> str:
    names = [repr(str(name)) for name in names]
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _text(value: Any) -> str | None:
    """Read a string, which may have come back from a file as bytes or as an array of one."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size == 1 else None
    if isinstance(value, bytes):
        value = value.decode()
    return str(value) if isinstance(value, str | Path) and str(value) else None


def _number(value: Any) -> float | None:
    """Read a positive number, which may have come back from a file as an array of one."""
    try:
        number = float(np.asarray(value, dtype=np.float64).reshape(()))
    except (TypeError, ValueError):
        return None
    return number if 0 < number < np.inf else None


def _entries(mapping: Any, name: str) -> Mapping[str, Any]:
    entry = mapping.get(name) if isinstance(mapping, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


# --- genes and counts ---------------------------------------------------------------------------------------


def _mostly_ensembl(names: Sequence[str]) -> bool:
    some = [str(name) for name in names[:200]]
    return sum(bool(re.match(r"ENS[A-Z]*G\d{6,}", name)) for name in some) > len(some) / 2


def _require_unique(names: pd.Index, where: str, remedy: str) -> None:
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(f"{where}: gene names occur more than once: {_listed(twice)}. {remedy}")


def _columns(var_names: pd.Index, genes: Sequence[str], where: str) -> np.ndarray:
    """Column of each gene."""
    wanted = pd.Index(genes)
    _require_unique(var_names, f"{where}, var_names", "Use `adata.var_names_make_unique()` or sum them first")
    _require_unique(wanted, "the genes asked for", "Name each once")
    columns = var_names.get_indexer(wanted)
    missing = wanted[columns < 0]
    if len(missing):
        hint = gene_name_hint(list(missing), list(var_names))
        if len(missing) == len(wanted):
            raise KeyError(
                f"{where}: no gene in common: asked for {_listed(missing, 3)}, var_names hold "
                f"{_listed(var_names, 3)}.{hint}"
            )
        raise KeyError(
            f"{where}: {len(missing)} of {len(wanted)} genes are not in var_names: {_listed(missing)}.{hint}"
        )
    return columns


def _predicted_columns(var_names: pd.Index, genes: Sequence[str]) -> np.ndarray:
    """Place of each of the table's genes in `genes`, -1 for those that are not there."""
    predicted = pd.Index(genes)
    _require_unique(var_names, "var_names", "Use `adata.var_names_make_unique()` first")
    _require_unique(predicted, "the predicted genes", "Name each once")
    columns = predicted.get_indexer(var_names)
    if not (columns >= 0).any():
        raise ValueError(
            f"no gene in common: the model predicts {_listed(predicted, 3)}, var_names hold "
            f"{_listed(var_names, 3)}." + gene_name_hint(list(predicted), list(var_names))
        )
    lost = predicted.difference(var_names, sort=False)
    if len(lost):
        logger.warning(
            "%d of the %d predicted genes are not in var_names and are left out: %s",
            len(lost),
            len(predicted),
            _listed(lost),
        )
    return columns


def _require_memory(table: AnnData) -> None:
    import psutil

    needed, available = table.n_obs * table.n_vars * 4, psutil.virtual_memory().available
    if needed > available:
        raise ValueError(
            f"a layer of {table.n_obs} x {table.n_vars} needs {needed / 2**30:.1f} GiB and "
            f"{available / 2**30:.1f} GiB "
            "are free. Keep the model's genes alone: `adata = adata[:, model.genes].copy()`"
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
    if isinstance(value, np.ndarray) and (
        value.dtype.kind in "buifU" or all(isinstance(v, str) for v in value.flat)
    ):
        return value.astype(object) if value.dtype.kind == "U" else value.copy()
    if isinstance(value, str | bool | int | float | np.number | np.bool_):
        return value
    raise TypeError(
        f"{where} is of type {type(value).__name__}, which cannot be written to h5ad and zarr files"
    )


# --- spots, the same for both containers --------------------------------------------------------------------


def _under_tissue(table: AnnData, rows: np.ndarray, name: str) -> np.ndarray:
    """Those of `rows` under tissue; all where the table does not say."""
    if _keys.IN_TISSUE in table.obs:
        column = table.obs[_keys.IN_TISSUE].iloc[rows].astype(object)
        try:
            rows = rows[pd.to_numeric(column).to_numpy(dtype=np.float64) == 1]
        except (TypeError, ValueError):
            raise ValueError(f"obs[{_keys.IN_TISSUE!r}] must hold 1 (under tissue) or 0") from None
        if not len(rows):
            raise ValueError(
                f"section {name!r} is empty: none of its spots has obs[{_keys.IN_TISSUE!r}] == 1"
            )
    return rows


def _require_good_coordinates(xy: np.ndarray, name: str, slot: str) -> None:
    unknown = np.flatnonzero(~np.isfinite(xy).all(axis=1))
    if len(unknown):
        raise ValueError(
            f"section {name!r}: {len(unknown)} of {len(xy)} spots have NaN or infinite coordinates in "
            f"{slot} (the first "
            f"is spot {unknown[0]}); leave these spots out"
        )
    duplicated = len(xy) - len(np.unique(xy, axis=0))
    if duplicated:
        raise ValueError(
            f"section {name!r}: {duplicated} of {len(xy)} spots have the coordinates of another spot in "
            f"{slot}. Leave "
            "them out; if the object holds several sections, say which spot is whose (`library_key=`)"
        )


def _require_inside(xy: np.ndarray, shape: tuple[int, int], name: str, image_name: str, hint: str) -> None:
    """Few spots outside the image are padded; many mean that coordinates and image do not belong together."""
    height, width = shape
    outside = int(np.sum(((xy < 0) | (xy > (width, height))).any(axis=1)))
    if not outside:
        return
    found = (
        f"section {name!r}: {outside} of {len(xy)} spots lie outside the image {image_name} of {width} x "
        f"{height} px "
        f"(spots: x {xy[:, 0].min():.0f}..{xy[:, 0].max():.0f}, y {xy[:, 1].min():.0f}..{xy[:, 1].max():.0f})"
    )
    if outside > MAX_OUTSIDE * len(xy):
        raise ValueError(f"{found}. {hint}")
    logger.warning("%s; what lies outside is filled with the background colour", found)


def _nearest(xy: np.ndarray) -> float | None:
    """Median distance to the nearest other spot, None for a single spot."""
    if len(xy) < 2:
        return None
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]))


def _is_hd(entry: Mapping[str, Any]) -> bool:
    metadata = _entries(entry, "metadata")
    words = f"{_text(metadata.get('technology')) or ''} {_text(metadata.get('chemistry_description')) or ''}"
    return "visium hd" in words.lower() or "bin_size_um" in _entries(entry, "scalefactors")


def _technology_spacing(entry: Mapping[str, Any]) -> float | None:
    """Distance from spot to spot in um, where the technology is named."""
    metadata = _entries(entry, "metadata")
    if _is_hd(entry):
        return _number(_entries(entry, "scalefactors").get("bin_size_um"))
    technology = (_text(metadata.get("technology")) or "").lower()
    if technology in SPACING_UM:
        return SPACING_UM[technology]
    chemistry = (_text(metadata.get("chemistry_description")) or "").lower()
    return SPACING_UM["visium"] if "visium" in chemistry or "spatial 3'" in chemistry else None


def _spacing_mpp(entry: Mapping[str, Any], xy: np.ndarray) -> float | None:
    """Scale in um per px from the spacing of the spots, where the technology is named."""
    spacing = _technology_spacing(entry)
    distance = _nearest(xy) if spacing is not None else None
    return spacing / distance if spacing is not None and distance is not None else None


def _say_unknown_scale(name: str) -> None:
    logger.warning(
        "section %r: the physical scale of the image is unknown, and is taken as equal to that of the "
        "other sections. "
        "Give it by `mpp=` (um per px)",
        name,
    )


# --- AnnData ------------------------------------------------------------------------------------------------


def _libraries(
    adata: AnnData, library_key: str | None, library_id: str | None, spatial_key: str
) -> dict[str, np.ndarray]:
    """Library id -> rows of its spots."""
    if adata.n_obs == 0:
        raise ValueError("the AnnData is empty: it has no spots")
    if spatial_key not in adata.obsm:
        raise ValueError(
            f"no coordinates: obsm[{spatial_key!r}] is missing; obsm holds {_listed(adata.obsm)}. Spot "
            "centres in "
            "full-resolution px (column, row) are expected there; `spatial_key=` names another slot"
        )
    spatial = adata.uns.get(_keys.SPATIAL)
    libraries = {str(name): entry for name, entry in spatial.items()} if isinstance(spatial, Mapping) else {}
    libraries = {
        name: entry
        for name, entry in libraries.items()
        if isinstance(entry, Mapping) and {"images", "scalefactors", "metadata"} & set(entry)
    }
    if not libraries:
        raise ValueError(
            f"no image: uns[{_keys.SPATIAL!r}] holds no library. Scanpy's layout is expected: "
            "uns['spatial'][library_id] "
            "with 'images', 'scalefactors' and 'metadata' (with 'source_image_path' for the "
            "full-resolution image)"
        )
    if library_id is not None and library_id not in libraries:
        raise KeyError(
            f"`library_id`: uns['spatial'] has no library {library_id!r}; libraries: {_listed(libraries)}"
        )

    if library_key is None:
        if library_id is None and len(libraries) > 1:
            raise ValueError(
                f"uns['spatial'] holds several libraries: {_listed(libraries)}. Name the obs column that "
                "says which "
                "spot is whose by `library_key=`, or choose one by `library_id=`"
            )
        return {library_id if library_id is not None else next(iter(libraries)): np.arange(adata.n_obs)}

    if library_key not in adata.obs:
        raise KeyError(
            f"`library_key`: obs has no column {library_key!r}; columns: {_listed(adata.obs.columns)}"
        )
    column = adata.obs[library_key]
    values = (
        column.astype(object)
        .where(column.notna(), None)
        .map(lambda value: None if value is None else str(value))
    )
    unknown = [value for value in values.dropna().unique() if value not in libraries]
    if unknown and library_id is None:
        raise ValueError(
            f"obs[{library_key!r}] holds {_listed(unknown)}, but the libraries in uns['spatial'] are "
            f"{_listed(libraries)}"
        )
    wanted = libraries if library_id is None else [library_id]
    parts = {name: np.flatnonzero((values == name).to_numpy()) for name in wanted}
    parts = {name: rows for name, rows in parts.items() if len(rows)}  # a subset keeps the libraries of all
    if not parts:
        raise ValueError(f"no spots: obs[{library_key!r}] never holds {_listed(wanted)}")
    return parts


@dataclass
class _Image:
    """An image a section could be read from."""

    name: str
    scale: float  # px of the image per unit of the coordinates
    opener: Callable[[], SectionImage]


def _anndata_image(entry: Mapping[str, Any], library: str, image_key: str | None, name: str) -> _Image:
    images, factors = _entries(entry, "images"), _entries(entry, "scalefactors")
    slot = f"uns['spatial'][{library!r}]"
    source = _text(_entries(entry, "metadata").get("source_image_path"))
    path = Path(source).expanduser() if source is not None else None

    candidates: dict[str, _Image] = {}
    if path is not None and path.is_file():
        candidates[SOURCE] = _Image(str(path), 1.0, partial(SectionImage.from_file, path))
    scales = {key: _number(factors.get(f"tissue_{key}_scalef")) for key in images}
    for key, scale in sorted(scales.items(), key=lambda item: -(item[1] or 0)):
        if scale is not None:
            where = f"{slot}['images'][{key!r}]"
            candidates[key] = _Image(where, scale, partial(SectionImage.from_array, images[key], name=where))

    if image_key is not None and image_key not in candidates:
        if image_key in images:
            raise ValueError(
                f"section {name!r}: {slot}['scalefactors'] lacks 'tissue_{image_key}_scalef', the px of this "
                "image per full-resolution px"
            )
        if image_key == SOURCE and path is not None:
            raise FileNotFoundError(
                f"section {name!r}: the image file {path} named in {slot}['metadata'] does not exist"
            )
        raise KeyError(f"`image_key`: {slot} has no image {image_key!r}; images: {_listed(candidates)}")
    if not candidates:
        missing = (
            f"the file {path} of its metadata does not exist"
            if path is not None
            else "its metadata name no file"
        )
        unscaled = (
            f"images without a scale factor 'tissue_<key>_scalef': {_listed(images)}"
            if images
            else "no 'images'"
        )
        raise ValueError(
            f"no image for section {name!r}: {slot} has {unscaled}, and {missing}. Set "
            f"{slot}['metadata']['source_image_path'] to the full-resolution image"
        )
    chosen = image_key if image_key is not None else next(iter(candidates))
    if image_key is None and path is not None and SOURCE not in candidates:
        logger.warning(
            "section %r: the image file %s does not exist; %s is used instead",
            name,
            path,
            candidates[chosen].name,
        )
    elif len(candidates) > 1:
        logger.info("section %r: of the images %s, %r is used", name, _listed(candidates), chosen)
    return candidates[chosen]


def _anndata_section(
    adata: AnnData,
    *,
    name: str,
    library: str,
    rows: np.ndarray,
    image_key: str | None,
    spatial_key: str,
    layer: str | None,
    mpp: float | None,
) -> Section:
    rows = _under_tissue(adata, rows, name)
    slot = f"obsm[{spatial_key!r}]"
    try:
        centres = np.asarray(adata.obsm[spatial_key], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{slot} must hold numbers: spot centres in full-resolution px (column, row)"
        ) from None
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ValueError(
            f"{slot} has shape {centres.shape}; (n_obs, 2) is expected: column, row in full-resolution px"
        )
    centres = centres[rows]
    _require_good_coordinates(centres, name, slot)

    entry = next(value for key, value in adata.uns[_keys.SPATIAL].items() if str(key) == library)
    factors = _entries(entry, "scalefactors")
    image = _anndata_image(entry, library, image_key, name)
    xy = centres * image.scale
    with image.opener() as opened:
        shape, own_mpp = opened.shape, opened.mpp
    _require_inside(
        xy,
        shape,
        name,
        image.name,
        f"Is {slot} in full-resolution px (column, row), and are the scale factors those of this image? "
        "`image_key=` "
        "chooses another image",
    )
    full_mpp = mpp if mpp is not None else _number(factors.get("microns_per_pixel"))
    scale = full_mpp / image.scale if full_mpp is not None else own_mpp
    if scale is None:
        scale = _spacing_mpp(entry, xy)
    if scale is None:
        _say_unknown_scale(name)
    diameter = _number(factors.get("spot_diameter_fullres"))
    return Section(
        name=name,
        obs_rows=rows,
        xy=xy,
        mpp=scale,
        spot_diameter=diameter * image.scale if diameter is not None else None,
        spot_shape="square" if _is_hd(entry) else "circle",
        image_name=image.name,
        table=adata,
        layer=layer,
        opener=image.opener,
    )


# --- SpatialData --------------------------------------------------------------------------------------------


def _regions(sdata: "SpatialData", table: AnnData, shapes_key: str | None) -> dict[str, np.ndarray]:
    """Annotated shapes -> rows of the table that annotate them."""
    if table.n_obs == 0:
        raise ValueError("the SpatialData's table is empty: it has no spots")
    attrs = _entries(table.uns, "spatialdata_attrs")
    region_key = _text(attrs.get("region_key"))
    if region_key is None or region_key not in table.obs or _text(attrs.get("instance_key")) not in table.obs:
        raise ValueError(
            "no coordinates: the table does not say which shapes it annotates (uns['spatialdata_attrs'] "
            "with region, "
            "region_key and instance_key, both columns of obs). `spatialdata.models.TableModel.parse` "
            "sets them"
        )
    column = table.obs[region_key].astype(object).to_numpy()
    annotated = attrs.get("region")
    regions = (
        [str(annotated)]
        if isinstance(annotated, str)
        else [str(r) for r in np.asarray(annotated).reshape(-1)]
    )
    if shapes_key is not None:
        if shapes_key not in regions:
            raise KeyError(
                f"`shapes_key`: the table does not annotate {shapes_key!r}; it annotates {_listed(regions)}"
            )
        regions = [shapes_key]
    parts = {region: np.flatnonzero(column == region) for region in regions}
    parts = {region: rows for region, rows in parts.items() if len(rows)}
    if not parts:
        raise ValueError(f"no spots: obs[{region_key!r}] never holds {_listed(regions)}")
    for region in parts:
        if region in sdata.labels:
            raise ValueError(
                f"the table annotates the labels {region!r}; spots are expected as shapes (circles or "
                "squares). "
                "`spatialdata.to_circles` or `to_polygons` makes shapes of labels"
            )
        if region not in sdata.shapes:
            raise ValueError(f"the table annotates {region!r}, but the shapes are {_listed(sdata.shapes)}")
    return parts


def _affine(element: Any, coordinate_system: str) -> np.ndarray:
    """(3, 3) matrix from an element's own (x, y) to a coordinate system."""
    from spatialdata.transformations import get_transformation

    axes = ("x", "y")
    return np.asarray(
        get_transformation(element, coordinate_system).to_affine_matrix(axes, axes), dtype=np.float64
    )


def _coordinate_systems(element: Any) -> list[str]:
    from spatialdata.transformations import get_transformation

    return list(get_transformation(element, get_all=True))


def _spread(matrix: np.ndarray) -> float:
    """Length of a unit after an affine transformation."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def _to_pixels(
    shapes: Any, image: Any, name: str, image_name: str, coordinate_system: str | None
) -> np.ndarray | None:
    """(3, 3) matrix from the shapes' own (x, y) to the image's finest px; None if they do not meet."""
    shared = [cs for cs in _coordinate_systems(shapes) if cs in _coordinate_systems(image)]
    if coordinate_system is not None:
        shared = [cs for cs in shared if cs == coordinate_system]
    elif "global" in shared:
        shared = ["global"]
    if not shared:
        return None
    maps = []
    for system in shared:
        matrix = _affine(image, system)
        if not (_spread(matrix) > 0 and _spread(_affine(shapes, system)) > 0):
            raise ValueError(
                f"section {name!r}: the transformation of its shapes or of the image {image_name!r} to "
                f"{system!r} cannot be inverted"
            )
        maps.append(np.linalg.solve(matrix, _affine(shapes, system)))
    if not all(np.allclose(matrix, maps[0], rtol=1e-6, atol=1e-6) for matrix in maps):
        raise ValueError(
            f"section {name!r}: its shapes and the image {image_name!r} share the coordinate systems "
            f"{_listed(shared)}, where they lie differently; choose one by `coordinate_system=`"
        )
    return maps[0]


def _resolution_family(name: str) -> tuple[str, ...]:
    """Strip an image's name of the words for its resolution."""
    return tuple(word for word in re.split(r"[^A-Za-z0-9]+", name) if word.lower() not in RESOLUTIONS)


def _spatialdata_image(
    sdata: "SpatialData", shapes: Any, name: str, image_key: str | None, coordinate_system: str | None
) -> tuple[str, np.ndarray]:
    """Name of the image and the matrix from the shapes' own (x, y) to its px."""
    if image_key is not None and image_key not in sdata.images:
        raise KeyError(
            f"`image_key`: the SpatialData has no image {image_key!r}; images: {_listed(sdata.images)}"
        )
    if len(sdata.images) == 0:
        raise ValueError(f"no image for section {name!r}: the SpatialData holds none")
    names = list(sdata.images) if image_key is None else [image_key]
    maps = {
        key: matrix
        for key in names
        if (matrix := _to_pixels(shapes, sdata.images[key], name, key, coordinate_system)) is not None
    }
    if not maps:
        systems = {key: _coordinate_systems(sdata.images[key]) for key in names}
        raise ValueError(
            f"no image for section {name!r}: none shares a coordinate system with its shapes. Shapes: "
            f"{_coordinate_systems(shapes)}; images: {systems}; `coordinate_system={coordinate_system!r}`"
        )
    finest = max(maps, key=lambda key: _spread(maps[key]))
    if len(maps) > 1:
        if len({_resolution_family(key) for key in maps}) > 1:
            raise ValueError(
                f"section {name!r}: several images could be its own: {_listed(maps)}; choose by `image_key=`"
            )
        logger.info("section %r: of the resolutions %s, %r is used", name, _listed(maps), finest)
    return finest, maps[finest]


def _image_levels(element: Any, key: str) -> list[Any]:
    """(channel, y, x) arrays of an image, finest first, channels in the order red, green, blue, alpha."""
    from xarray import DataTree

    if isinstance(element, DataTree):
        levels = [next(iter(scale.data_vars.values())) for scale in element.children.values()]
        levels.sort(key=lambda level: -level.sizes["x"])
    else:
        levels = [element]
    if tuple(levels[0].dims) != ("c", "y", "x"):
        raise ValueError(f"image {key!r} has the axes {levels[0].dims}; ('c', 'y', 'x') is expected")
    channels = (
        [str(channel) for channel in levels[0].coords["c"].to_numpy()] if "c" in levels[0].coords else []
    )
    n_channels = levels[0].sizes["c"]
    if n_channels not in (1, 3, 4):
        raise ValueError(
            f"image {key!r} has {n_channels} channels ({_listed(channels)}); an H&E image with 3 (RGB), 4 "
            "(RGBA) or 1 "
            "is expected. `image_key=` chooses another"
        )
    order = [COLOURS.get(channel.lower(), -1) for channel in channels]
    if sorted(order) == list(range(n_channels)) and order != sorted(order):
        return [level.data[np.argsort(order)] for level in levels]
    return [level.data for level in levels]


def _spatialdata_mpp(
    sdata: "SpatialData", entry: Mapping[str, Any], key: str, to_pixels: np.ndarray, xy: np.ndarray
) -> float | None:
    """Scale of the image's finest level in um per px, where it is to be found."""
    full = _number(_entries(entry, "scalefactors").get("microns_per_pixel"))
    if full is not None:
        # readers keep shapes in full-resolution px
        return full / _spread(to_pixels)
    element = sdata.images[key]
    for system in _coordinate_systems(element):
        if system.lower() in MICRONS:
            return _spread(_affine(element, system))
    return _spacing_mpp(entry, xy)


def _spatialdata_section(
    sdata: "SpatialData",
    table: AnnData,
    *,
    name: str,
    region: str,
    rows: np.ndarray,
    image_key: str | None,
    coordinate_system: str | None,
    layer: str | None,
    mpp: float | None,
) -> Section:
    import shapely

    rows = _under_tissue(table, rows, name)
    shapes = sdata.shapes[region]
    instance_key = str(_text(table.uns["spatialdata_attrs"]["instance_key"]))
    instances = table.obs[instance_key].iloc[rows].to_numpy()
    if not shapes.index.is_unique:
        raise ValueError(
            f"shapes {region!r}: the index holds an instance more than once, spots cannot be matched"
        )
    places = shapes.index.get_indexer(pd.Index(instances))
    lost = instances[places < 0]
    if len(lost):
        raise ValueError(
            f"section {name!r}: {len(lost)} of {len(rows)} instances in obs[{instance_key!r}] "
            f"({_listed(lost, 5)}) are "
            f"not in the index of shapes {region!r} ({_listed(shapes.index, 3)}, type {shapes.index.dtype})"
        )
    geometry = shapes.geometry.to_numpy()[places]
    key, to_pixels = _spatialdata_image(sdata, shapes, name, image_key, coordinate_system)
    centres = shapely.get_coordinates(shapely.centroid(geometry))
    if len(centres) != len(geometry):
        raise ValueError(f"section {name!r}: shapes {region!r} hold empty geometries")
    xy = centres @ to_pixels[:2, :2].T + to_pixels[:2, 2]
    _require_good_coordinates(xy, name, f"shapes {region!r}")

    image_name = f"images[{key!r}]"
    opener = partial(SectionImage.from_levels, _image_levels(sdata.images[key], key), name=image_name)
    with opener() as opened:
        shape = opened.shape
    _require_inside(
        xy,
        shape,
        name,
        image_name,
        f"Are the transformations of shapes {region!r} and of the image right? `image_key=` and "
        "`coordinate_system=` "
        "choose others",
    )
    kept = _entries(table.uns, _keys.SPATIAL)
    entry = _entries(kept, region) or _entries(kept, key)
    scale = mpp if mpp is not None else _spatialdata_mpp(sdata, entry, key, to_pixels, xy)
    if scale is None:
        _say_unknown_scale(name)

    circles = bool((shapely.get_type_id(geometry) == shapely.GeometryType.POINT).all())
    if circles:
        size = 2 * float(np.median(shapes["radius"].to_numpy()[places])) if "radius" in shapes else None
    else:
        size = float(np.median(np.sqrt(shapely.area(geometry))))
    return Section(
        name=name,
        obs_rows=rows,
        xy=xy,
        mpp=scale,
        spot_diameter=size * _spread(to_pixels) if size is not None else None,
        spot_shape="circle" if circles else "square",
        image_name=image_name,
        table=table,
        layer=layer,
        opener=opener,
    )
