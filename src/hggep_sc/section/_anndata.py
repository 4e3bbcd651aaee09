"""Sections of an AnnData in Scanpy's layout: `obsm["spatial"]` and `uns["spatial"][library_id]`."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData

from .. import _keys
from .._paths import expanded, why_absent
from ..image import SectionImage
from ._scale import Told, given, of_scalefactors, scale_of_section, spot_grid
from ._section import Section
from ._spots import require_good_coordinates, require_inside, under_tissue
from ._values import entries, listed, number, text

logger = logging.getLogger(__name__)

SOURCE = "source"  # `image_key` of the file that `metadata.source_image_path` names


def libraries_of(
    adata: AnnData, library_key: str | None, library_id: str | None, spatial_key: str
) -> dict[str, np.ndarray]:
    """Library id -> rows of its spots."""
    if adata.n_obs == 0:
        raise ValueError("the AnnData is empty: it has no spots")
    if spatial_key not in adata.obsm:
        raise ValueError(
            f"no coordinates: obsm[{spatial_key!r}] is missing; obsm holds {listed(adata.obsm)}. Spot "
            "centres in full-resolution px (column, row) are expected there; `spatial_key=` names another "
            "slot"
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
            "uns['spatial'][library_id] with 'images', 'scalefactors' and 'metadata' (with "
            "'source_image_path' for the full-resolution image)"
        )
    if library_id is not None and library_id not in libraries:
        raise KeyError(f"`library_id`: uns['spatial'] has no library {library_id!r}; libraries: {listed(libraries)}")

    if library_key is None:
        if library_id is None and len(libraries) > 1:
            raise ValueError(
                f"uns['spatial'] holds several libraries: {listed(libraries)}. Name the obs column that "
                "says which spot is whose by `library_key=`, or choose one by `library_id=`"
            )
        return {library_id if library_id is not None else next(iter(libraries)): np.arange(adata.n_obs)}

    if library_key not in adata.obs:
        raise KeyError(f"`library_key`: obs has no column {library_key!r}; columns: {listed(adata.obs.columns)}")
    column = adata.obs[library_key]
    values = column.astype(object).where(column.notna(), None).map(lambda value: None if value is None else str(value))
    unknown = [value for value in values.dropna().unique() if value not in libraries]
    if unknown and library_id is None:
        raise ValueError(
            f"obs[{library_key!r}] holds {listed(unknown)}, but the libraries in uns['spatial'] are {listed(libraries)}"
        )
    wanted = libraries if library_id is None else [library_id]
    parts = {name: np.flatnonzero((values == name).to_numpy()) for name in wanted}
    parts = {name: rows for name, rows in parts.items() if len(rows)}  # a subset keeps the libraries of all
    if not parts:
        raise ValueError(f"no spots: obs[{library_key!r}] never holds {listed(wanted)}")
    return parts


def anndata_section(
    adata: AnnData,
    *,
    name: str,
    library: str,
    rows: np.ndarray,
    image_key: str | None,
    spatial_key: str,
    layer: str | None,
    mpp: float | None,
    noted: float | None = None,
) -> Section:
    rows = under_tissue(adata, rows, name)
    slot = f"obsm[{spatial_key!r}]"
    try:
        centres = np.asarray(adata.obsm[spatial_key], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{slot} must hold numbers: spot centres in full-resolution px (column, row)") from None
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ValueError(f"{slot} has shape {centres.shape}; (n_obs, 2) is expected: column, row in full-resolution px")
    centres = centres[rows]
    require_good_coordinates(centres, name, slot)

    entry = _library(adata, library)
    factors = entries(entry, "scalefactors")
    image = find_image(adata, library, image_key, name)
    xy = centres * image.scale
    with image.opener() as opened:
        shape, own_mpp, aspect = opened.shape, opened.mpp, opened.aspect
    require_inside(
        xy,
        shape,
        name,
        image.name,
        f"Is {slot} in full-resolution px (column, row), and are the scale factors those of this image? "
        "`image_key=` chooses another image",
    )
    diameter = number(factors.get("spot_diameter_fullres"))
    grid = spot_grid(entry, centres, adata, rows, called=[library], side=diameter)
    of_file = None if own_mpp is None else Told(own_mpp * image.scale, "file", f"the image file {image.name}")
    found = scale_of_section(
        [*given(mpp), *of_scalefactors(entry), of_file, grid.told], name, noted=noted, aspect=aspect
    )
    return Section(
        name=name,
        obs_rows=rows,
        xy=xy,
        mpp=None if found is None else found.mpp / image.scale,
        spot_diameter=diameter * image.scale if diameter is not None else None,
        spot_shape="square" if grid.squares else "circle",
        image_name=image.name,
        table=adata,
        layer=layer,
        opener=image.opener,
        mpp_source="unknown" if found is None else found.by,
        reduction=1 / image.scale,
        spacing=None if grid.spacing is None else grid.spacing * image.scale,
    )


@dataclass
class _Image:
    """An image a section could be read from."""

    name: str
    scale: float  # px of the image per unit of the coordinates
    opener: Callable[[], SectionImage]


def _library(adata: AnnData, library: str) -> Mapping[str, Any]:
    return next(value for key, value in adata.uns[_keys.SPATIAL].items() if str(key) == library)


def find_image(adata: AnnData, library: str, image_key: str | None, name: str) -> _Image:
    """Find the image named by `image_key`, else the finest of the library's."""
    entry = _library(adata, library)
    images, factors = entries(entry, "images"), entries(entry, "scalefactors")
    slot = f"uns['spatial'][{library!r}]"
    source = text(entries(entry, "metadata").get("source_image_path"))
    path = expanded(source) if source is not None else None

    candidates: dict[str, _Image] = {}
    absent = why_absent(path) if path is not None else None
    if path is not None and absent is None:  # an OME-Zarr is a folder
        candidates[SOURCE] = _Image(path, 1.0, partial(SectionImage.from_file, path, warned=set()))
    scales = {key: number(factors.get(f"tissue_{key}_scalef")) for key in images}
    for key, scale in sorted(scales.items(), key=lambda item: -(item[1] or 0)):
        if scale is not None:
            where = f"{slot}['images'][{key!r}]"
            candidates[key] = _Image(
                where, scale, partial(SectionImage.from_array, images[key], name=where, warned=set())
            )

    if image_key is not None and image_key not in candidates:
        if image_key in images:
            raise ValueError(
                f"section {name!r}: {slot}['scalefactors'] lacks 'tissue_{image_key}_scalef', the px of "
                "this image per full-resolution px"
            )
        if image_key == SOURCE and path is not None:
            raise FileNotFoundError(f"section {name!r}: the image file {path} named in {slot}['metadata'] {absent}")
        raise KeyError(f"`image_key`: {slot} has no image {image_key!r}; images: {listed(candidates)}")
    if not candidates:
        missing = f"the file {path} of its metadata {absent}" if path is not None else "its metadata name no file"
        unscaled = f"images without a scale factor 'tissue_<key>_scalef': {listed(images)}" if images else "no 'images'"
        raise ValueError(
            f"no image for section {name!r}: {slot} has {unscaled}, and {missing}. Set "
            f"{slot}['metadata']['source_image_path'] to the full-resolution image"
        )
    chosen = image_key if image_key is not None else next(iter(candidates))
    if image_key is None and path is not None and SOURCE not in candidates:
        logger.warning(
            "section %r: the image file %s %s; %s is used instead",
            name,
            path,
            absent,
            candidates[chosen].name,
        )
    elif len(candidates) > 1:
        logger.info("section %r: of the images %s, %r is used", name, listed(candidates), chosen)
    return candidates[chosen]
