"""AnnData and SpatialData as wholes: told apart, their table, their copies."""

import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
from anndata import AnnData

from ..errors import InputError, MissingSlotError
from ..runtime.messages import listed
from ..runtime.validators import text_or_none

if TYPE_CHECKING:
    from spatialdata import SpatialData

    Data = TypeVar("Data", AnnData, SpatialData)


def is_spatialdata(item: Any) -> bool:
    """Tell a SpatialData without loading the library."""
    module = sys.modules.get("spatialdata")  # an instance exists only where the library is loaded
    return module is not None and isinstance(item, module.SpatialData)


def read_data(path: Path) -> "AnnData | SpatialData":
    """Read an AnnData (.h5ad) or a SpatialData (.zarr).

    Raises
    ------
    ValueError
        If its name says that it is neither.
    FileNotFoundError
        If it is not there.
    """
    if path.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"{path} must be an .h5ad file (AnnData) or a .zarr store (SpatialData)")
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if path.suffix == ".h5ad":
        from anndata import read_h5ad

        return read_h5ad(path)
    from spatialdata import read_zarr

    return read_zarr(path)


def not_a_container(item: Any) -> str:
    """Message for an object that is neither."""
    return f"an AnnData or SpatialData object is expected, or a list or dict of them; found {_found(item)}"


def _found(item: Any) -> str:
    """Say what was given instead, and what makes a section of it."""
    found = type(item).__name__
    if isinstance(item, str | Path):
        reader = {".h5ad": "anndata.read_h5ad", ".zarr": "spatialdata.read_zarr"}.get(Path(item).suffix)
        path = str(item)
        if reader is not None:
            return f"the path {path!r}: read it first, by {reader}({path!r})"
        return f"the path {path!r}: spots are laid over an image by hggep_sc.pp.tile({path!r}, model=model)"
    if getattr(item, "ndim", 0) == 3:
        return f"{found}: spots are laid over an image by hggep_sc.pp.tile(image, model=model, mpp=...)"
    return found


def table_of(data: Any, table_key: str | None = None) -> AnnData:
    """Table of an object: an AnnData itself, or the table of a SpatialData.

    Raises
    ------
    TypeError
        If `data` is neither.
    MissingSlotError
        If there is no table of that name.
    InputError
        If there is none, or several and no `table_key`.
    """
    text_or_none("table_key", table_key)
    if isinstance(data, AnnData):
        return _in_memory(data)
    if not is_spatialdata(data):
        raise TypeError(f"one AnnData or SpatialData object is expected, each by itself; found {_found(data)}")
    tables = data.tables
    if table_key is not None:
        if table_key not in tables:
            raise MissingSlotError(f"`table_key`: the SpatialData has no table {table_key!r}; tables: {listed(tables)}")
        return _in_memory(tables[table_key])
    if len(tables) == 0:
        raise InputError("the SpatialData has no table: one that annotates the spots' shapes is needed")
    if len(tables) > 1:
        raise InputError(f"the SpatialData has several tables: {listed(tables)}; choose one by `table_key=`")
    return _in_memory(next(iter(tables.values())))


def _in_memory(table: AnnData) -> AnnData:
    """Refuse a table whose `obs` or `var` is no pandas table."""
    if not all(isinstance(frame, pd.DataFrame) for frame in (table.obs, table.var)):
        raise TypeError(
            "the AnnData was read lazily (anndata.experimental.read_lazy), and its obs and var are not in memory: read "
            "it by `adata = adata.to_memory()` first. A file that is larger than memory is opened by "
            "`anndata.read_h5ad(..., backed='r')`"
        )
    return table


def section_column(table: AnnData, library_key: str | None) -> str | None:
    """Column of `obs` that tells the sections of a table apart: the one named, else a SpatialData's region key."""
    return library_key or table.uns.get("spatialdata_attrs", {}).get("region_key")


def copy_of(data: "Data") -> "Data":
    """Copy an object so that writing to the copy's table leaves the original as it is.

    A SpatialData's images, labels, shapes and points, and the reader of a slide, are shared, not copied; a backed
    AnnData is read into memory.

    Raises
    ------
    TypeError
        If `data` is neither an AnnData nor a SpatialData.
    """
    if isinstance(data, AnnData):
        return data.to_memory() if data.isbacked else data.copy()
    if not is_spatialdata(data):
        raise TypeError(not_a_container(data))
    from spatialdata import SpatialData

    # made anew as a SpatialData, so that what a subclass has besides, such as the reader of a slide, stays
    twin = copy.copy(data)
    SpatialData.__init__(
        twin,
        images=dict(data.images),
        labels=dict(data.labels),
        shapes=dict(data.shapes),
        points=dict(data.points),
        tables={name: copy_of(table) for name, table in data.tables.items()},
        attrs=copy.deepcopy(data.attrs),
    )
    return twin
