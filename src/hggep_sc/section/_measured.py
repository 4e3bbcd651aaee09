"""Which spots of a section are measured: `measured=` of `tl.predict`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_bool_dtype

from ..errors import InputError, MissingSlotError
from ..runtime.messages import listed
from ._section import Section

FORMS = "the name of a boolean column of obs, or a mask: True or False for each spot of the object"


def measured_spots(table: AnnData, measured: Any, sections: Sequence[Section]) -> list[np.ndarray]:
    """Find the measured spots of each section.

    Parameters
    ----------
    table
        The table of the sections.
    measured
        Name of a boolean column of `obs`, or a mask of `n_obs` values; a Series is matched by name.
    sections
        Those that are predicted.

    Returns
    -------
    Per section the sorted indices of its measured spots under tissue, some but not all of its spots.

    Raises
    ------
    TypeError
        If it is neither.
    MissingSlotError
        If there is no such column.
    InputError
        If the mask is of other spots, or all or none of a section's are measured.
    """
    mask, what = _mask(table, measured)
    found = [np.flatnonzero(mask[section.obs_rows]) for section in sections]
    for section, spots in zip(sections, found, strict=True):
        if len(spots) == 0:
            raise InputError(
                f"{what} is True at none of the {len(section.xy)} spots of section {section.name!r}: there is nothing "
                "to correct its prediction by. Predict it without measured="
            )
        if len(spots) == len(section.xy):
            raise InputError(
                f"{what} is True at all {len(spots)} spots of section {section.name!r}: nothing is left to predict. "
                "It must say False where the counts are to be predicted"
            )
    return found


def _mask(table: AnnData, measured: Any) -> tuple[np.ndarray, str]:
    """Return the mask over the table's spots, and what messages call it."""
    if isinstance(measured, str):
        if measured not in table.obs:
            raise MissingSlotError(
                f"measured={measured!r}: obs has no such column; columns: {listed(table.obs.columns)}. Expected is "
                f"{FORMS}"
            )
        column, what = table.obs[measured], f"measured: obs[{measured!r}]"
    elif isinstance(measured, pd.Series):
        if not (measured.index.is_unique and table.obs_names.is_unique and len(measured) == table.n_obs) or len(
            table.obs_names.difference(measured.index)
        ):
            raise InputError(
                f"measured= is a Series of {len(measured)} values that are not those of the object's {table.n_obs} "
                "spots: its index must hold each of obs_names once"
            )
        column, what = measured.reindex(table.obs_names), "measured="
    else:
        column, what = _series(measured, table.n_obs), "measured="
    if not is_bool_dtype(column) or column.isna().any():
        missing = ", some of which are missing" if column.isna().any() else ""
        raise TypeError(f"{what} holds values of type {column.dtype}{missing}; expected is {FORMS}")
    return column.to_numpy(dtype=bool), what


def _series(measured: Any, n_obs: int) -> pd.Series:
    """Return a mask without names."""
    values = np.asarray(measured if isinstance(measured, np.ndarray | list) else None)
    if values.ndim != 1 or values.dtype != bool:
        found = f"an array of {values.dtype}" if isinstance(measured, np.ndarray) else type(measured).__name__
        raise TypeError(f"measured= must be {FORMS}; found {found}")
    if len(values) != n_obs:
        raise InputError(f"measured= has {len(values)} values, and the object {n_obs} spots: expected is {FORMS}")
    return pd.Series(values)
