"""Spots and their coordinates: the checks that both containers share."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..errors import InputError, InputWarning
from ..runtime.messages import listed, warn

IN_TISSUE_WORDS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
# x and y as tools name them, the surest first
COORDINATE_COLUMNS = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("imagecol", "imagerow"),
    ("pixel_x", "pixel_y"),
    ("x_pixel", "y_pixel"),
    ("x_centroid", "y_centroid"),
    ("x", "y"),
    ("spatial_x", "spatial_y"),
    ("column", "row"),
    ("col", "row"),
)
FARTHEST = 2.0**31  # px that no image has: beyond it a coordinate is a mark or a mistake, and overflows
MAX_OUTSIDE = 0.1  # share of spots that may lie outside the image before its scale is taken to be wrong


def under_tissue(table: AnnData, rows: np.ndarray, name: str) -> np.ndarray:
    """Those of `rows` under tissue; all where the table does not say."""
    if _keys.IN_TISSUE not in table.obs:
        return rows
    column = table.obs[_keys.IN_TISSUE].iloc[rows]
    # 1, 1.0, True, "1" and "True" are written of the same; nothing means no
    words = column.astype(object).where(column.notna(), 0).map(lambda value: str(value).strip().lower())
    known = words.map(IN_TISSUE_WORDS)
    if unknown := list(words[known.isna()].unique()):
        raise InputError(
            f"section {name!r}: obs[{_keys.IN_TISSUE!r}] must hold 1 (under tissue) or 0, or True or False; found "
            f"{listed(unknown)}"
        )
    kept = rows[known.to_numpy(dtype=bool)]
    if not len(kept):
        raise InputError(f"section {name!r} is empty: none of its spots has obs[{_keys.IN_TISSUE!r}] == 1")
    return kept


def say_left_out(name: str, n_spots: int, n_under_tissue: int) -> None:
    if n_under_tissue < n_spots:
        warn(
            f"section {name!r}: {n_spots - n_under_tissue} of {n_spots} spots are left out, as "
            f"obs[{_keys.IN_TISSUE!r}] says that they are not under tissue; without that column all are taken",
            InputWarning,
        )


def named_coordinates(table: pd.DataFrame, slot: str) -> np.ndarray:
    """(n, 2) x (column) and y (row) of a table of coordinates, by the names of its columns, whatever their order."""
    names = {str(column).strip().lower(): column for column in table.columns}
    if len(names) < table.shape[1]:  # as a table joined with itself has
        raise InputError(
            f"{slot} is a table with the columns {listed(table.columns)}, some of one name: leave that with "
            "the column and that with the row of the spot centres"
        )
    for x, y in COORDINATE_COLUMNS:
        if x in names and y in names:
            return table[[names[x], names[y]]].to_numpy(dtype=np.float64)
    known = {name for pair in COORDINATE_COLUMNS for name in pair}
    if len(names) == 2 and not known & names.keys():
        return table.to_numpy(dtype=np.float64)  # "0" and "1", "spatial1" and "spatial2"
    raise InputError(
        f"{slot} is a table with the columns {listed(table.columns)}: which are the column and the row of the spot "
        "centres, in full-resolution px? Call them 'x' and 'y'"
    )


def array_places(table: AnnData, rows: np.ndarray) -> np.ndarray | None:
    """(n, 2) int64 positions on the array grid (x, y); None where a column lacks, or holds no whole numbers."""
    if not {_keys.ARRAY_COL, _keys.ARRAY_ROW} <= set(table.obs):
        return None
    try:
        places = table.obs[[_keys.ARRAY_COL, _keys.ARRAY_ROW]].iloc[rows].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return places.astype(np.int64) if np.array_equal(places, np.rint(places)) else None


def require_good_coordinates(xy: np.ndarray, name: str, slot: str) -> None:
    """Refuse NaN, what is no px of any image, and spots at the same place."""
    unknown = np.flatnonzero(~(np.abs(xy) < FARTHEST).all(axis=1))  # a NaN fails the comparison
    if len(unknown):
        seen = xy[unknown]
        raise InputError(
            f"section {name!r}: {len(unknown)} of {len(xy)} spots have "
            f"{'coordinates beyond any image' if np.isfinite(seen).all() else 'NaN or infinite coordinates'} in "
            f"{slot} (the first is spot {unknown[0]}); leave these spots out"
        )
    duplicated = len(xy) - len(np.unique(xy, axis=0))
    if duplicated:
        raise InputError(
            f"section {name!r}: {duplicated} of {len(xy)} spots have the coordinates of another spot in "
            f"{slot}. Leave them out; if the object holds several sections, say which spot is whose "
            "(`library_key=`)"
        )


def require_inside(
    xy: np.ndarray, shape: tuple[int, int], name: str, image_name: str, hint: str, way_out: Callable[[], str | None]
) -> None:
    """Few spots outside the image are padded; many mean that coordinates and image do not belong together.

    `way_out` says what the coordinates look like, where that can be told.
    """
    height, width = shape
    outside = int(np.sum(((xy < 0) | (xy > (width, height))).any(axis=1)))
    if not outside:
        return
    found = (
        f"section {name!r}: {outside} of {len(xy)} spots lie outside the image {image_name} of {width} x "
        f"{height} px (spots: x {xy[:, 0].min():.0f}..{xy[:, 0].max():.0f}, y "
        f"{xy[:, 1].min():.0f}..{xy[:, 1].max():.0f})"
    )
    if outside > MAX_OUTSIDE * len(xy):
        looks = way_out()
        raise InputError(f"{found}. " + (f"The coordinates look as if they were {looks}. " if looks else "") + hint)
    warn(f"{found}; what lies outside is filled with the background colour", InputWarning)
