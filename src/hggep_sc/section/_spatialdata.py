"""Sections of a SpatialData: shapes that the table annotates, and the image they share a space with."""

import logging
import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..image import SectionImage, in_colour_order
from ._scale import Told, given, of_scalefactors, scale_of_section, spot_grid
from ._section import Section
from ._spots import require_good_coordinates, require_inside, under_tissue
from ._values import entries, listed, text

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

MICRONS = {"um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"}
REDUCED = {"hires", "lowres"}  # as spatialdata-io names the copies of one image
RESOLUTIONS = {"full", "fullres"} | REDUCED


def regions_of(sdata: "SpatialData", table: AnnData, shapes_key: str | None) -> dict[str, np.ndarray]:
    """Annotated shapes -> rows of the table that annotate them."""
    if table.n_obs == 0:
        raise ValueError("the SpatialData's table is empty: it has no spots")
    attrs = entries(table.uns, "spatialdata_attrs")
    region_key = text(attrs.get("region_key"))
    if region_key is None or region_key not in table.obs or text(attrs.get("instance_key")) not in table.obs:
        raise ValueError(
            "no coordinates: the table does not say which shapes it annotates (uns['spatialdata_attrs'] "
            "with region, region_key and instance_key, both columns of obs). "
            "`spatialdata.models.TableModel.parse` sets them"
        )
    column = table.obs[region_key].astype(object).to_numpy()
    annotated = attrs.get("region")
    regions = [str(annotated)] if isinstance(annotated, str) else [str(r) for r in np.asarray(annotated).reshape(-1)]
    if shapes_key is not None:
        if shapes_key not in regions:
            raise KeyError(f"`shapes_key`: the table does not annotate {shapes_key!r}; it annotates {listed(regions)}")
        regions = [shapes_key]
    parts = {region: np.flatnonzero(column == region) for region in regions}
    parts = {region: rows for region, rows in parts.items() if len(rows)}
    if not parts:
        raise ValueError(f"no spots: obs[{region_key!r}] never holds {listed(regions)}")
    for region in parts:
        if region in sdata.labels:
            raise ValueError(
                f"the table annotates the labels {region!r}; spots are expected as shapes (circles or "
                "squares). `spatialdata.to_circles` or `to_polygons` makes shapes of labels"
            )
        if region not in sdata.shapes:
            raise ValueError(f"the table annotates {region!r}, but the shapes are {listed(sdata.shapes)}")
    return parts


def spatialdata_section(
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
    noted: float | None = None,
) -> Section:
    import shapely

    rows = under_tissue(table, rows, name)
    shapes = sdata.shapes[region]
    instance_key = str(text(table.uns["spatialdata_attrs"]["instance_key"]))
    instances = table.obs[instance_key].iloc[rows].to_numpy()
    if not shapes.index.is_unique:
        raise ValueError(f"shapes {region!r}: the index holds an instance more than once, spots cannot be matched")
    places = shapes.index.get_indexer(pd.Index(instances))
    lost = instances[places < 0]
    if len(lost):
        raise ValueError(
            f"section {name!r}: {len(lost)} of {len(rows)} instances in obs[{instance_key!r}] "
            f"({listed(lost, 5)}) are not in the index of shapes {region!r} ({listed(shapes.index, 3)}, "
            f"type {shapes.index.dtype})"
        )
    geometry = shapes.geometry.to_numpy()[places]
    key, to_pixels = _spatialdata_image(sdata, shapes, name, image_key, coordinate_system)
    centres = shapely.get_coordinates(shapely.centroid(geometry))
    if len(centres) != len(geometry):
        raise ValueError(f"section {name!r}: shapes {region!r} hold empty geometries")
    xy = centres @ to_pixels[:2, :2].T + to_pixels[:2, 2]
    require_good_coordinates(xy, name, f"shapes {region!r}")

    image_name = f"images[{key!r}]"
    opener = partial(SectionImage.from_levels, image_levels(sdata.images[key], key), name=image_name, warned=set())
    with opener() as opened:
        shape = opened.shape
    require_inside(
        xy,
        shape,
        name,
        image_name,
        f"Are the transformations of shapes {region!r} and of the image right? `image_key=` and "
        "`coordinate_system=` choose others",
    )
    circles = bool((shapely.get_type_id(geometry) == shapely.GeometryType.POINT).all())
    if circles:
        size = 2 * float(np.median(shapes["radius"].to_numpy()[places])) if "radius" in shapes else None
    else:
        size = float(np.median(np.sqrt(shapely.area(geometry))))
    diameter = size * _spread(to_pixels) if size is not None else None
    kept = entries(table.uns, _keys.SPATIAL)
    entry = entries(kept, region) or entries(kept, key)
    grid = spot_grid(
        entry, xy, table, rows, called=[region], reader=text(sdata.attrs.get("spatialdata_io_reader")), side=diameter
    )
    # readers keep shapes in full-resolution px
    of_factors = [replace(told, mpp=told.mpp / _spread(to_pixels)) for told in of_scalefactors(entry)]
    reduction = 1 / _spread(to_pixels) if _is_reduced(key) else 1.0
    found = scale_of_section(
        [*given(mpp), *of_factors, micron_scale(sdata.images[key]), grid.told],
        name,
        noted=None if noted is None else noted * reduction,
        reduction=reduction,
    )
    return Section(
        name=name,
        obs_rows=rows,
        xy=xy,
        mpp=None if found is None else found.mpp,
        spot_diameter=diameter,
        spot_shape="circle" if circles else "square",
        image_name=image_name,
        table=table,
        layer=layer,
        opener=opener,
        mpp_source="unknown" if found is None else found.by,
        reduction=reduction,
        spacing=grid.spacing,
    )


def _spatialdata_image(
    sdata: "SpatialData", shapes: Any, name: str, image_key: str | None, coordinate_system: str | None
) -> tuple[str, np.ndarray]:
    """Name of the image and the matrix from the shapes' own (x, y) to its px."""
    if image_key is not None and image_key not in sdata.images:
        raise KeyError(f"`image_key`: the SpatialData has no image {image_key!r}; images: {listed(sdata.images)}")
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
                f"section {name!r}: several images could be its own: {listed(maps)}; choose by `image_key=`"
            )
        logger.info("section %r: of the resolutions %s, %r is used", name, listed(maps), finest)
    return finest, maps[finest]


def _to_pixels(shapes: Any, image: Any, name: str, image_name: str, coordinate_system: str | None) -> np.ndarray | None:
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
            f"{listed(shared)}, where they lie differently; choose one by `coordinate_system=`"
        )
    return maps[0]


def _affine(element: Any, coordinate_system: str) -> np.ndarray:
    """(3, 3) matrix from an element's own (x, y) to a coordinate system."""
    from spatialdata.transformations import get_transformation

    axes = ("x", "y")
    return np.asarray(get_transformation(element, coordinate_system).to_affine_matrix(axes, axes), dtype=np.float64)


def _coordinate_systems(element: Any) -> list[str]:
    from spatialdata.transformations import get_transformation

    return list(get_transformation(element, get_all=True))


def _spread(matrix: np.ndarray) -> float:
    """Length of a unit after an affine transformation."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def _resolution_family(name: str) -> tuple[str, ...]:
    """Strip an image's name of the words for its resolution."""
    return tuple(word for word in _words(name) if word.lower() not in RESOLUTIONS)


def _is_reduced(name: str) -> bool:
    """Whether an image is one of the reduced copies that readers name so."""
    return bool(REDUCED & {word.lower() for word in _words(name)})


def _words(name: str) -> list[str]:
    return re.split(r"[^A-Za-z0-9]+", name)


def image_levels(element: Any, key: str) -> list[Any]:
    """(channel, y, x) arrays of an image, finest first, channels in the order red, green, blue, alpha."""
    from xarray import DataTree

    if isinstance(element, DataTree):
        levels = [next(iter(scale.data_vars.values())) for scale in element.children.values()]
        levels.sort(key=lambda level: -level.sizes["x"])
    else:
        levels = [element]
    if tuple(levels[0].dims) != ("c", "y", "x"):
        raise ValueError(f"image {key!r} has the axes {levels[0].dims}; ('c', 'y', 'x') is expected")
    channels = [str(channel) for channel in levels[0].coords["c"].to_numpy()] if "c" in levels[0].coords else []
    n_channels = levels[0].sizes["c"]
    if n_channels not in (1, 3, 4):
        raise ValueError(
            f"image {key!r} has {n_channels} channels ({listed(channels)}); an H&E image with 3 (RGB), 4 "
            "(RGBA) or 1 is expected. `image_key=` chooses another"
        )
    return in_colour_order([level.data for level in levels], channels, 0, f"images[{key!r}]")


def micron_scale(image: Any) -> Told | None:
    """Return um per px of the finest level, where a coordinate system of the image is named for micrometres."""
    for system in _coordinate_systems(image):
        if system.lower() in MICRONS:
            return Told(_spread(_affine(image, system)), "coordinate system", f"the coordinate system {system!r}")
    return None
