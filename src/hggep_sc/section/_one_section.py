"""Whether what is taken for one section is one: nothing of an array may be there twice."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..runtime.checks import is_on, refuse
from ..runtime.messages import listed
from ._spots import array_places

ONE = "one_section"
# what tells the spots of one array apart, whatever was appended to keep the names of several sections apart:
# nucleotides, and the positions of Visium HD's bins
BARCODE = re.compile(r"(?<![A-Za-z])[ACGTN]{12,}(?![A-Za-z])|s_\d{3}um_\d{5}_\d{5}")
# columns of obs that commonly hold it, looked at first
SECTION_COLUMNS = ("library_id", "sample", "sample_id", "section", "section_id", "slide", "batch", "library")


def require_one_section(
    table: AnnData, rows: np.ndarray, name: str, library_key: str | None, libraries: Sequence[str]
) -> None:
    """Refuse a section in which a name, a barcode or an array position occurs twice.

    Parameters
    ----------
    table
        The table.
    rows
        (n,) rows of it that are taken for one section.
    name
        Name of the section.
    library_key
        The column that was to tell sections apart.
    libraries
        Names of the libraries in `uns["spatial"]`; none for a SpatialData.

    Raises
    ------
    InputError
        If something occurs twice.
    """
    if not is_on(ONE):
        return
    for what, values in _identities(table, rows).items():
        twice = values.duplicated()
        if twice.any():
            refuse(
                ONE,
                f"section {name!r}: {twice.sum()} of {len(rows)} spots have the {what} of another spot (such as "
                f"{values[twice.to_numpy()].iloc[0]}): several sections seem to be taken for one, all on one image. "
                + _remedy(table, rows, values, library_key, libraries),
            )


def _identities(table: AnnData, rows: np.ndarray) -> dict[str, pd.Series]:
    """Read what no two spots of a section share, where the table has it."""
    names = pd.Series(table.obs_names[rows].astype(str))
    found = {"name": names}
    barcodes = names.map(lambda name: match[0] if (match := BARCODE.search(name)) else None)
    if barcodes.notna().all():
        found["barcode"] = barcodes
    places = array_places(table, rows)
    if places is not None and (places != places[:1]).any():  # a column of zeros holds no positions
        found["array position"] = pd.Series([f"{_keys.ARRAY_COL} {x}, {_keys.ARRAY_ROW} {y}" for x, y in places])
    return found


def _remedy(
    table: AnnData, rows: np.ndarray, values: pd.Series, library_key: str | None, libraries: Sequence[str]
) -> str:
    column = _column_that_tells_apart(table.obs.iloc[rows], values)
    apart = f"obs[{column!r}] tells them apart" if column else "No column of obs tells them apart: add one"
    if not libraries:
        return f"{apart}. Give each section shapes of its own, and name them in the table's region"
    key = column or library_key or "section"
    sections = sorted(map(str, table.obs[column].iloc[rows].unique())) if column else []
    if column and set(sections) <= set(libraries):
        return f"{apart}: say so by `library_key={key!r}`"
    return (
        f"{apart}. Give each section its own library and image in uns['spatial'], under the names in that column"
        + (f" ({listed(sections, 5)}; there is {listed(libraries, 5)})" if sections else "")
        + f", and say so by `library_key={key!r}`"
    )


def _column_that_tells_apart(obs: pd.DataFrame, values: pd.Series) -> str | None:
    """Column within whose values nothing occurs twice, that common names it first."""
    columns = sorted(
        map(str, obs.columns),
        key=lambda column: SECTION_COLUMNS.index(column) if column in SECTION_COLUMNS else len(SECTION_COLUMNS),
    )
    for column in columns:
        labels = obs[column].astype(object) if column in obs else None
        # a section has many spots, and each has one
        if labels is None or labels.isna().any() or not 2 <= labels.nunique() <= max(2, len(obs) / 10):
            continue
        if not pd.DataFrame({"label": labels.to_numpy(), "value": values.to_numpy()}).duplicated().any():
            return column
    return None
