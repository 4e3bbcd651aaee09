"""Spots and their coordinates: the checks that both containers share."""

import logging

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys

logger = logging.getLogger(__name__)

MAX_OUTSIDE = 0.1  # share of spots that may lie outside the image before its scale is taken to be wrong


def under_tissue(table: AnnData, rows: np.ndarray, name: str) -> np.ndarray:
    """Those of `rows` under tissue; all where the table does not say."""
    if _keys.IN_TISSUE in table.obs:
        column = table.obs[_keys.IN_TISSUE].iloc[rows].astype(object)
        try:
            rows = rows[pd.to_numeric(column).to_numpy(dtype=np.float64) == 1]
        except (TypeError, ValueError):
            raise ValueError(f"obs[{_keys.IN_TISSUE!r}] must hold 1 (under tissue) or 0") from None
        if not len(rows):
            raise ValueError(f"section {name!r} is empty: none of its spots has obs[{_keys.IN_TISSUE!r}] == 1")
    return rows


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
    """Refuse NaN, and spots at the same place."""
    unknown = np.flatnonzero(~np.isfinite(xy).all(axis=1))
    if len(unknown):
        raise ValueError(
            f"section {name!r}: {len(unknown)} of {len(xy)} spots have NaN or infinite coordinates in "
            f"{slot} (the first is spot {unknown[0]}); leave these spots out"
        )
    duplicated = len(xy) - len(np.unique(xy, axis=0))
    if duplicated:
        raise ValueError(
            f"section {name!r}: {duplicated} of {len(xy)} spots have the coordinates of another spot in "
            f"{slot}. Leave them out; if the object holds several sections, say which spot is whose "
            "(`library_key=`)"
        )


def require_inside(xy: np.ndarray, shape: tuple[int, int], name: str, image_name: str, hint: str) -> None:
    """Few spots outside the image are padded; many mean that coordinates and image do not belong together."""
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
        raise ValueError(f"{found}. {hint}")
    logger.warning("%s; what lies outside is filled with the background colour", found)
