import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _keys
from ..errors import InputError, MissingSlotError
from ..pl._style import colour
from ..runtime.messages import listed
from ..runtime.validators import flag, text, text_or_none
from ..section import spot_spacing, table_of
from ..storage.replace import replacing
from ._files import one_section, place_for

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

REACH = 0.75  # spot spacings to which a spot's surroundings are its domain's: all of a tile, whose corner is at 0.71
PRECISION = 0.1  # px


def to_qupath(
    data: "AnnData | SpatialData",
    path: str | Path,
    *,
    column: str = _keys.DOMAIN,
    section: str | None = None,
    library_key: str | None = None,
    table_key: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write domains, or the categories of any column, as annotations that QuPath opens on the slide.

    A domain is the area that is nearer to its spots than to those of others, up to 0.75 spot spacings from a spot.

    Parameters
    ----------
    data
        One section or several, with the image.
    path
        File to write, `.geojson`.
    column
        Column of `obs`. Spots where it is missing belong to no domain.
    section
        Which of several sections.
    library_key
        AnnData of several sections: column of `obs` that tells them apart.
    table_key
        SpatialData: which of several tables.
    overwrite
        Replace a GeoJSON file.

    Returns
    -------
    None. Written is a GeoJSON FeatureCollection: an annotation for each category, in full-resolution px (level 0 of the
    slide, column and row from the upper left corner), classified by the category's name, with the colour of
    `uns[f"{column}_colors"]`, which `pl.domains` and Scanpy's plots write, else those of `pl.domains`.

    Raises
    ------
    MissingSlotError
        If there is no such column.
    InputError
        If no spot has a category, or there are several sections and none is named.
    FileExistsError
        If `path` is there, unless `overwrite`.
    OSError
        If it cannot be written; what was there is as it was.
    """
    flag("overwrite", overwrite)
    text("column", column), text_or_none("section", section), text_or_none("library_key", library_key)
    table = table_of(data, table_key)
    if column not in table.obs:
        raise MissingSlotError(f"`column`: obs has no column {column!r}; columns: {listed(table.obs.columns)}")
    found = one_section(data, section, library_key=library_key, table_key=table_key, noted=list(table.layers))
    target = place_for(path, overwrite, lambda there: there.suffix in (".geojson", ".json"))
    categories = table.obs[column].astype("category")
    codes = categories.cat.codes.to_numpy()[found.obs_rows]
    if not (codes >= 0).any():
        raise InputError(f"obs[{column!r}] is empty at the {len(codes)} spots of section {found.name!r}: no domains")
    names, colours = list(map(str, categories.cat.categories)), _colours(table, column, categories)
    regions = _regions(found.xy * found.reduction, codes)
    features = [_feature(region, names[code], colours[code]) for code, region in regions.items()]
    with replacing(target) as file:
        file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def _colours(table: "AnnData", column: str, categories: pd.Series) -> list[list[int]]:
    """Red, green and blue, 0 to 255, of each category."""
    from matplotlib.colors import to_rgb

    n = len(categories.cat.categories)
    kept = list(table.uns.get(f"{column}_colors", ()))
    colours = kept[:n] if len(kept) >= n else map(colour, range(n))
    return [[round(255 * part) for part in to_rgb(each)] for each in colours]


def _regions(xy: np.ndarray, codes: np.ndarray) -> dict[int, Any]:
    """Area of each code that occurs, in the unit of `xy`; -1 is none's, but takes its share."""
    import shapely

    points = shapely.points(xy)
    reach = REACH * (spot_spacing(xy) or 1.0)
    around = shapely.union_all(shapely.buffer(points, reach))
    cells = np.array([around])
    if len(xy) > 1:
        cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(points), extend_to=around.envelope))
    spot, cell = shapely.STRtree(cells).query(points, predicate="intersects")
    of_cell = np.full(len(cells), -1)
    of_cell[cell] = codes[spot]
    regions = {}
    for code in np.unique(codes[codes >= 0]).tolist():
        area = shapely.union_all(cells[of_cell == code])
        regions[code] = shapely.set_precision(shapely.intersection(area, around), PRECISION)
    return regions


def _feature(region: Any, name: str, rgb: list[int]) -> dict[str, Any]:
    import shapely

    return {
        "type": "Feature",
        "geometry": json.loads(shapely.to_geojson(region)),
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": name, "color": rgb},
            "isLocked": False,
        },
    }
