"""Embeddings of spots: in a slot of their table, or in another table of the same shapes, as LazySlide keeps them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ..errors import InputError
from ..runtime.messages import listed
from ._values import entries, text

if TYPE_CHECKING:
    from spatialdata import SpatialData


def tables_beside(sdata: "SpatialData", table: AnnData, region: str) -> dict[str, AnnData]:
    """Return the other tables that annotate a region, by name."""
    found = {name: other for name, other in sdata.tables.items() if other is not table}
    return {name: other for name, other in found.items() if _annotated(other, region).any()}


def rows_beside(other: AnnData, slot: str, region: str, table: AnnData, rows: np.ndarray, name: str) -> np.ndarray:
    """Return which rows of another table are of the same instances as rows of a section's table.

    Raises
    ------
    InputError
        If it lacks an instance, or has one twice.
    """
    wanted = _instances(table)[rows]
    there = np.flatnonzero(_annotated(other, region))
    index = pd.Index(_instances(other)[there])
    if not index.is_unique:
        raise InputError(f"section {name!r}: {slot} holds an instance of {region!r} more than once")
    places = index.get_indexer(pd.Index(wanted))
    if len(lost := wanted[places < 0]):
        raise InputError(
            f"section {name!r}: {slot} has no row for {len(lost)} of {len(wanted)} instances of {region!r} "
            f"({listed(lost, 5)})"
        )
    return there[places]


def _annotated(table: AnnData, region: str) -> np.ndarray:
    """(n_obs,) whether a row annotates a region."""
    key = text(_attrs(table).get("region_key"))
    return (table.obs[key].astype(object) == region).to_numpy() if key in table.obs else np.zeros(table.n_obs, bool)


def _instances(table: AnnData) -> np.ndarray:
    return table.obs[str(text(_attrs(table)["instance_key"]))].to_numpy()


def _attrs(table: AnnData) -> Mapping[str, Any]:
    return entries(table.uns, "spatialdata_attrs")
