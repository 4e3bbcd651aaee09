"""Sections of a SpatialData: shapes that the table annotates, and the image they share a space with."""

import logging
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..errors import ImageError, InputError, MissingSlotError
from ..image import SectionImage, in_colour_order
from ..runtime.messages import listed
from ._belonging import Belonging, View, compared, moved, say_reduced, spread
from ._features import tables_beside
from ._labels import instances_of
from ._one_section import require_one_section
from ._scale import Told, cell_scale, given, of_scalefactors, scale_of_section, settled, spot_grid
from ._section import Section
from ._slide import slide_of
from ._spots import require_good_coordinates, require_inside, say_left_out, under_tissue
from ._values import entries, text

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

MICRONS = {"um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"}
SLIDE_SYSTEM = "global"  # where a WSIData's coordinates are px of the slide
REDUCED = {"hires", "lowres"}  # as spatialdata-io names the copies of one image
THUMBNAIL = re.compile(r"(?i)thumb|overview|preview|macro")  # an image that stands for a slide, by its name
RESOLUTIONS = {"full", "fullres"} | REDUCED


def regions_of(sdata: "SpatialData", table: AnnData, shapes_key: str | None) -> dict[str, np.ndarray]:
    """Annotated shapes -> rows of the table that annotate them."""
    if table.n_obs == 0:
        raise InputError("the SpatialData's table is empty: it has no spots")
    attrs = entries(table.uns, "spatialdata_attrs")
    region_key = text(attrs.get("region_key"))
    if region_key is None or region_key not in table.obs or text(attrs.get("instance_key")) not in table.obs:
        raise InputError(
            "no coordinates: the table does not say which shapes it annotates (uns['spatialdata_attrs'] "
            "with region, region_key and instance_key, both columns of obs). "
            "`spatialdata.models.TableModel.parse` sets them"
        )
    column = table.obs[region_key].astype(object).to_numpy()
    annotated = attrs.get("region")
    regions = [str(annotated)] if isinstance(annotated, str) else [str(r) for r in np.asarray(annotated).reshape(-1)]
    if shapes_key is not None:
        if shapes_key not in regions:
            raise MissingSlotError(
                f"`shapes_key`: the table does not annotate {shapes_key!r}; it annotates {listed(regions)}"
            )
        regions = [shapes_key]
    parts = {region: np.flatnonzero(column == region) for region in regions}
    parts = {region: rows for region, rows in parts.items() if len(rows)}
    if not parts:
        raise InputError(f"no spots: obs[{region_key!r}] never holds {listed(regions)}")
    for region in parts:
        if region not in sdata.shapes and region not in sdata.labels:
            raise InputError(
                f"the table annotates {region!r}, but the shapes are {listed(sdata.shapes)} and the labels "
                f"{listed(sdata.labels)}. `sdata.set_table_annotates_spatialelement` links it to one of them"
            )
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
    check: bool,
    noted: float | None = None,
    with_image: bool = True,
) -> Section:
    kept = under_tissue(table, rows, name)
    if check:
        say_left_out(name, len(rows), len(kept))
    rows = kept
    require_one_section(table, rows, name, None, [])
    instance_key = str(text(table.uns["spatialdata_attrs"]["instance_key"]))
    spots = _spots(sdata, region, table.obs[instance_key].iloc[rows].to_numpy(), name, instance_key)
    slot = f"{spots.slot} {region!r}"
    kept_entry = entries(table.uns, _keys.SPATIAL)
    reader = text(sdata.attrs.get("spatialdata_io_reader"))
    if not with_image:
        require_good_coordinates(spots.centres, name, slot)
        section = _without_image(table, name, region, rows, spots, layer, mpp, reader)
        return replace(section, region=region, beside=tables_beside(sdata, table, region))
    view, views, others, slide_mpp = _views(sdata, spots.element, name, image_key, coordinate_system)
    xy = moved(spots.centres, view.to_px)
    require_good_coordinates(xy, name, slot)

    entry = entries(kept_entry, region) or entries(kept_entry, view.key)
    diameter = spots.size * view.scale if spots.size is not None else None
    grid = spot_grid(entry, xy, table, rows, called=[region], reader=reader, side=diameter)
    of_slide = None if slide_mpp is None else Told(slide_mpp, "slide", "the reader of the slide")
    # readers keep shapes in full-resolution px
    of_factors = [replace(told, mpp=told.mpp / view.scale) for told in of_scalefactors(entry)]
    microns = micron_scale(sdata.images[view.key]) if view.key in sdata.images else None
    reduction = 1 / view.scale if view.reduced else 1.0
    with view.opener() as opened:
        of_file = None if opened.mpp is None else Told(opened.mpp, "file", f"the image file {view.name}")
        of_cells = cell_scale(reader, table, rows, xy)
        told = (*given(mpp), of_slide, *of_factors, microns, of_file, of_cells, grid.told)
        sources = [source for source in told if source is not None]
        belonging = Belonging(name, view, opened, views, slot, sources[0].mpp if sources else None)
        if check:
            remedy = (
                "Correct its transformation to the coordinate system, or take one by `image_key=` "
                f"({listed(other.key for other in views)})"
            )
            belonging.require_agreement(compared(view, views, named=image_key is not None), remedy)
            belonging.warn_of_turned(others, remedy)
        require_inside(
            xy,
            opened.shape,
            name,
            view.name,
            f"Are the transformations of {slot} and of the image right? `image_key=` and `coordinate_system=` choose "
            "others",
            lambda: belonging.way_out(xy),
        )
        if check:
            belonging.require_on_tissue(xy, said=_keys.IN_TISSUE in table.obs)
        # last, as coordinates of another image tell another scale
        found = scale_of_section(
            sources,
            name,
            noted=None if noted is None else noted * reduction,
            reduction=reduction,
            aspect=opened.aspect,
        )
    return Section(
        name=name,
        obs_rows=rows,
        xy=xy,
        mpp=None if found is None else found.mpp,
        spot_diameter=diameter,
        spot_shape=spots.shape,
        image_name=view.name,
        table=table,
        layer=layer,
        opener=view.opener,
        mpp_source="unknown" if found is None else found.by,
        reduction=reduction,
        spacing=grid.spacing,
        region=region,
        beside=tables_beside(sdata, table, region),
    )


def _without_image(
    table: AnnData,
    name: str,
    region: str,
    rows: np.ndarray,
    spots: "_Spots",
    layer: str | None,
    mpp: float | None,
    reader: str | None,
) -> Section:
    """Return a section that nobody will look at, its spots in the unit of the shapes."""
    entry = entries(entries(table.uns, _keys.SPATIAL), region)
    grid = spot_grid(entry, spots.centres, table, rows, called=[region], reader=reader)
    of_cells = cell_scale(reader, table, rows, spots.centres)
    found = settled([*given(mpp), *of_scalefactors(entry), of_cells, grid.told], f"section {name!r}")
    return Section(
        name=name,
        obs_rows=rows,
        xy=spots.centres,
        mpp=None if found is None else found.mpp,
        spot_diameter=None,
        spot_shape=spots.shape,
        image_name="",
        table=table,
        layer=layer,
        opener=None,
        mpp_source="unknown" if found is None else found.by,
        spacing=grid.spacing,
    )


class _Spots(NamedTuple):
    """Shapes or labels that rows of a table annotate, in the units of the element."""

    element: Any
    slot: str
    centres: np.ndarray  # (n, 2)
    size: float | None  # diameter, or side
    shape: Literal["circle", "square"]


def _spots(sdata: "SpatialData", region: str, instances: np.ndarray, name: str, instance_key: str) -> _Spots:
    """Find the instances of a region, in the order asked for."""
    if region in sdata.labels:
        element, slot = sdata.labels[region], "labels"
        labels, centres, areas = instances_of(element, region)
        index = pd.Index(labels)
    else:
        element, slot = sdata.shapes[region], "shapes"
        index = element.index
    if not index.is_unique:
        raise InputError(f"{slot} {region!r}: the index holds an instance more than once, spots cannot be matched")
    places = index.get_indexer(pd.Index(instances))
    lost = instances[places < 0]
    if len(lost):
        raise InputError(
            f"section {name!r}: {len(lost)} of {len(instances)} instances in obs[{instance_key!r}] "
            f"({listed(lost, 5)}) are not in the index of {slot} {region!r} ({listed(index, 3)}, "
            f"type {index.dtype})"
        )
    if slot == "labels":
        # bins of an array are drawn as a px each, by spatialdata.rasterize_bins with its corner on the bin's centre
        bins = bool((areas == 1).all())
        if bins and instance_key.startswith("relabeled_"):
            centres = centres - 0.5
        size = float(np.median(np.sqrt(areas[places]) if bins else 2 * np.sqrt(areas[places] / np.pi)))
        return _Spots(element, slot, centres[places], size, "square" if bins else "circle")
    import shapely

    geometry = element.geometry.to_numpy()[places]
    centres = shapely.get_coordinates(shapely.centroid(geometry))
    if len(centres) != len(geometry):
        raise InputError(f"section {name!r}: shapes {region!r} hold empty geometries")
    if bool((shapely.get_type_id(geometry) == shapely.GeometryType.POINT).all()):
        radius = 2 * float(np.median(element["radius"].to_numpy()[places])) if "radius" in element else None
        return _Spots(element, slot, centres, radius, "circle")
    return _Spots(element, slot, centres, float(np.median(np.sqrt(shapely.area(geometry)))), "square")


def _views(
    sdata: "SpatialData", spots: Any, name: str, image_key: str | None, coordinate_system: str | None
) -> tuple[View, list[View], list[View], float | None]:
    """Find the image, it and its copies, other images there, and um per px where a slide's reader tells it."""
    slide = slide_of(sdata, image_key)
    if slide is not None:
        if coordinate_system not in (None, SLIDE_SYSTEM) or SLIDE_SYSTEM not in _coordinate_systems(spots):
            raise InputError(
                f"section {name!r}: the slide lies in the coordinate system {SLIDE_SYSTEM!r}, its spots in "
                f"{_coordinate_systems(spots)}; `coordinate_system={coordinate_system!r}`"
            )
        view = View(str(slide.path), str(slide.path), _affine(spots, SLIDE_SYSTEM), slide.opener)
        return view, [view], [], slide.mpp
    if image_key is not None and image_key not in sdata.images:
        raise MissingSlotError(
            f"`image_key`: the SpatialData has no image {image_key!r}; images: {listed(sdata.images)}"
        )
    if len(sdata.images) == 0:
        raise InputError(f"no image for section {name!r}: the SpatialData holds none")
    names = list(sdata.images) if image_key is None else [image_key]
    maps = {
        key: matrix
        for key in names
        if (matrix := _to_pixels(spots, sdata.images[key], name, key, coordinate_system)) is not None
    }
    if not maps:
        found = {key: _coordinate_systems(sdata.images[key]) for key in names}
        raise InputError(
            f"no image for section {name!r}: none shares a coordinate system with its spots. Spots: "
            f"{_coordinate_systems(spots)}; images: {found}; `coordinate_system={coordinate_system!r}`"
        )
    finest = max(maps, key=lambda key: spread(maps[key]))
    if len({_resolution_family(key) for key in maps}) > 1:
        raise InputError(f"section {name!r}: several images could be its own: {listed(maps)}; choose by `image_key=`")
    views = {key: _view(sdata, key, matrix) for key, matrix in maps.items()}
    others: dict[str, View] = {}
    for key in sdata.images:
        if key not in views:  # where one is named
            with suppress(ValueError):  # no image as one is expected, such as one of many channels
                matrix = _to_pixels(spots, sdata.images[key], name, key, coordinate_system)
                if matrix is not None:
                    alike = _resolution_family(key) == _resolution_family(finest)
                    (views if alike else others)[key] = _view(sdata, key, matrix)
    chosen = views[finest]
    if image_key is None and (chosen.reduced or THUMBNAIL.search(finest)):
        say_reduced(name, chosen)
    elif image_key is None and len(maps) > 1:
        logger.info("section %r: of the resolutions %s, %r is used", name, listed(maps), finest)
    return chosen, list(views.values()), list(others.values()), None


def _view(sdata: "SpatialData", key: str, to_px: np.ndarray) -> View:
    name = f"images[{key!r}]"
    levels = image_levels(sdata.images[key], key)
    opener = partial(SectionImage.from_levels, levels, name=name, warned=set())
    return View(key, name, to_px, opener, reduced=any(word in REDUCED for word in _words(key)))


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
        if not (spread(matrix) > 0 and spread(_affine(shapes, system)) > 0):
            raise InputError(
                f"section {name!r}: the transformation of its shapes or of the image {image_name!r} to "
                f"{system!r} cannot be inverted"
            )
        maps.append(np.linalg.solve(matrix, _affine(shapes, system)))
    if not all(np.allclose(matrix, maps[0], rtol=1e-6, atol=1e-6) for matrix in maps):
        raise InputError(
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


def _resolution_family(name: str) -> tuple[str, ...]:
    """Strip an image's name of the words for its resolution."""
    return tuple(word for word in _words(name) if word not in RESOLUTIONS)


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.lower())


def image_levels(element: Any, key: str) -> list[Any]:
    """(channel, y, x) arrays of an image, finest first, channels in the order red, green, blue, alpha."""
    from xarray import DataTree

    if isinstance(element, DataTree):
        levels = [next(iter(scale.data_vars.values())) for scale in element.children.values()]
        levels.sort(key=lambda level: -level.sizes["x"])
    else:
        levels = [element]
    if tuple(levels[0].dims) != ("c", "y", "x"):
        raise ImageError(f"image {key!r} has the axes {levels[0].dims}; ('c', 'y', 'x') is expected")
    channels = [str(channel) for channel in levels[0].coords["c"].to_numpy()] if "c" in levels[0].coords else []
    n_channels = levels[0].sizes["c"]
    if n_channels not in (1, 3, 4):
        raise ImageError(
            f"image {key!r} has {n_channels} channels ({listed(channels)}); an H&E image with 3 (RGB), 4 "
            "(RGBA) or 1 is expected. `image_key=` chooses another"
        )
    return in_colour_order(_known([level.data for level in levels]), channels, 0, f"images[{key!r}]")


def _known(levels: list[Any]) -> list[Any]:
    """Leave out coarser levels that would be computed from the finest, which is read anyway, by another filter."""
    finest, *coarser = (set(level.dask.layers) if hasattr(level, "dask") else set() for level in levels)
    stored = [not finest or not finest <= steps for steps in coarser]
    return [levels[0], *compress(levels[1:], stored)]


def micron_scale(image: Any) -> Told | None:
    """Return um per px of the finest level, where a coordinate system of the image is named for micrometres."""
    for system in _coordinate_systems(image):
        if system.lower() in MICRONS:
            return Told(spread(_affine(image, system)), "coordinate system", f"the coordinate system {system!r}")
    return None
