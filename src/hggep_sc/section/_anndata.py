"""Sections of an AnnData in Scanpy's layout: `obsm["spatial"]` and `uns["spatial"][library_id]`."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..errors import ImageWarning, InputError, MissingSlotError
from ..image import SectionImage
from ..runtime.messages import listed, warn
from ..storage.paths import expanded, why_absent
from ._belonging import Belonging, View, compared, say_reduced, scaled
from ._one_section import require_one_section
from ._scale import Told, given, of_scalefactors, scale_of_section, settled, spot_grid
from ._section import Section
from ._spots import named_coordinates, require_good_coordinates, require_inside, say_left_out, under_tissue
from ._values import entries, number, text

logger = logging.getLogger(__name__)

NAMELESS = "section"  # the only section of an object that names none
SOURCE = "source"  # `image_key` of the file that `metadata.source_image_path` names
REDUCED = ("hires", "lowres")  # Space Ranger's copies of the image that coordinates refer to


def libraries_of(
    adata: AnnData, library_key: str | None, library_id: str | None, spatial_key: str, *, looks: bool = True
) -> dict[str, np.ndarray]:
    """Library id -> rows of its spots; where nobody `looks`, no library is needed."""
    if adata.n_obs == 0:
        raise InputError("the AnnData is empty: it has no spots")
    if spatial_key not in adata.obsm:
        raise InputError(
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
    if not looks and library_key in adata.obs:
        libraries = {value: {} for value in adata.obs[library_key].dropna().astype(str)} | libraries
    elif not looks and not libraries and library_key is None:
        libraries = {NAMELESS: {}}
    if not libraries:
        raise InputError(
            f"no image: uns[{_keys.SPATIAL!r}] holds no library. Scanpy's layout is expected: "
            "uns['spatial'][library_id] with 'images', 'scalefactors' and 'metadata' (with "
            "'source_image_path' for the full-resolution image)"
        )
    if library_id is not None and library_id not in libraries:
        raise MissingSlotError(
            f"`library_id`: uns['spatial'] has no library {library_id!r}; libraries: {listed(libraries)}"
        )

    if library_key is None:
        if library_id is None and len(libraries) > 1:
            raise InputError(
                f"uns['spatial'] holds several libraries: {listed(libraries)}. Name the obs column that "
                "says which spot is whose by `library_key=`, or choose one by `library_id=`"
            )
        return {library_id if library_id is not None else next(iter(libraries)): np.arange(adata.n_obs)}

    if library_key not in adata.obs:
        raise MissingSlotError(
            f"`library_key`: obs has no column {library_key!r}; columns: {listed(adata.obs.columns)}"
        )
    column = adata.obs[library_key]
    values = column.astype(object).where(column.notna(), None).map(lambda value: None if value is None else str(value))
    unknown = [value for value in values.dropna().unique() if value not in libraries]
    if unknown and library_id is None:
        raise InputError(
            f"obs[{library_key!r}] holds {listed(unknown)}, but the libraries in uns['spatial'] are {listed(libraries)}"
        )
    wanted = libraries if library_id is None else [library_id]
    parts = {name: np.flatnonzero((values == name).to_numpy()) for name in wanted}
    parts = {name: rows for name, rows in parts.items() if len(rows)}  # a subset keeps the libraries of all
    if not parts:
        raise InputError(f"no spots: obs[{library_key!r}] never holds {listed(wanted)}")
    return parts


def anndata_section(
    adata: AnnData,
    *,
    name: str,
    library: str,
    rows: np.ndarray,
    library_key: str | None,
    image_key: str | None,
    spatial_key: str,
    layer: str | None,
    mpp: float | None,
    check: bool,
    noted: float | None = None,
    with_image: bool = True,
) -> Section:
    kept = under_tissue(adata, rows, name)
    if check:
        say_left_out(name, len(rows), len(kept))
    rows = kept
    require_one_section(adata, rows, name, library_key, list(map(str, entries(adata.uns, _keys.SPATIAL))))
    slot = f"obsm[{spatial_key!r}]"
    centres = coordinates_of(adata, spatial_key)[rows]
    require_good_coordinates(centres, name, slot)
    if not with_image:
        return _without_image(adata, name, library, rows, centres, layer, mpp)

    entry = _library(adata, library)
    factors = entries(entry, "scalefactors")
    view, views = find_image(adata, library, image_key, name)
    xy = centres * view.scale
    diameter = number(factors.get("spot_diameter_fullres"))
    grid = spot_grid(entry, centres, adata, rows, called=[library], side=diameter)
    with view.opener() as opened:
        of_file = None if opened.mpp is None else Told(opened.mpp * view.scale, "file", f"the image file {view.name}")
        sources = [told for told in (*given(mpp), *of_scalefactors(entry), of_file, grid.told) if told is not None]
        belonging = Belonging(name, view, opened, views, slot, sources[0].mpp / view.scale if sources else None)
        alike = True
        if check and (spatial_key == _keys.SPATIAL or _keys.SPATIAL not in adata.obsm):
            others = compared(view, views, named=image_key is not None)
            belonging.require_agreement(others, _remedy(adata, view, views, spatial_key))
        elif check and (copies := [other for other in views if other.reduced and other is not view]):
            usual = coordinates_of(adata, _keys.SPATIAL)[rows] * copies[0].scale
            alike = belonging.same_colours(xy, copies[0], usual)
        require_inside(
            xy,
            opened.shape,
            name,
            view.name,
            f"Is {slot} in full-resolution px (column, row), and are the scale factors those of this image? "
            "`image_key=` chooses another image",
            lambda: belonging.way_out(xy),
        )
        if check and alike:
            belonging.require_on_tissue(xy, said=_keys.IN_TISSUE in adata.obs)
        # last, as coordinates of another image tell another scale
        found = scale_of_section(sources, name, noted=noted, aspect=opened.aspect)
    return Section(
        name=name,
        obs_rows=rows,
        xy=xy,
        mpp=None if found is None else found.mpp / view.scale,
        spot_diameter=diameter * view.scale if diameter is not None else None,
        spot_shape="square" if grid.squares else "circle",
        image_name=view.name,
        table=adata,
        layer=layer,
        opener=view.opener,
        mpp_source="unknown" if found is None else found.by,
        reduction=1 / view.scale,
        spacing=None if grid.spacing is None else grid.spacing * view.scale,
    )


def _without_image(
    adata: AnnData, name: str, library: str, rows: np.ndarray, xy: np.ndarray, layer: str | None, mpp: float | None
) -> Section:
    """Return a section that nobody will look at, its spots in full-resolution px."""
    entry = entries(adata.uns.get(_keys.SPATIAL), library)
    grid = spot_grid(entry, xy, adata, rows, called=[library])
    found = settled([*given(mpp), *of_scalefactors(entry), grid.told], f"section {name!r}")
    return Section(
        name=name,
        obs_rows=rows,
        xy=xy,
        mpp=None if found is None else found.mpp,
        spot_diameter=None,
        spot_shape="square" if grid.squares else "circle",
        image_name="",
        table=adata,
        layer=layer,
        opener=None,
        mpp_source="unknown" if found is None else found.by,
        spacing=grid.spacing,
    )


def coordinates_of(adata: AnnData, spatial_key: str) -> np.ndarray:
    """(n_obs, 2) float64 spot centres in full-resolution px (column, row); those of a table by its columns' names."""
    slot, found = f"obsm[{spatial_key!r}]", adata.obsm[spatial_key]
    try:
        if isinstance(found, pd.DataFrame):
            return named_coordinates(found, slot)
        centres = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(found, pd.DataFrame) and slot in str(error):
            raise
        raise InputError(f"{slot} must hold numbers: spot centres in full-resolution px (column, row)") from None
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise InputError(f"{slot} has shape {centres.shape}; (n_obs, 2) is expected: column, row in full-resolution px")
    return centres


def _remedy(adata: AnnData, chosen: View, views: Sequence[View], spatial_key: str) -> str:
    """Say what to do where images contradict each other."""
    remedies = [f"take one by `image_key=` ({listed(view.key for view in views)})"]
    if chosen.key == SOURCE:
        remedies.insert(0, "give the file that the coordinates refer to as 'source_image_path'")
    own = [
        key
        for key, slot in adata.obsm.items()
        if key.startswith(f"{_keys.SPATIAL}_") and getattr(slot, "shape", ())[1:] == (2,) and key != spatial_key
    ]
    if own and not chosen.reduced:
        remedies.append(f"with its own coordinates by `spatial_key=` ({listed(own)})")
    text = ", or ".join(remedies[:2]) + "".join(f", {more}" for more in remedies[2:])
    return text[0].upper() + text[1:]


def _library(adata: AnnData, library: str) -> Mapping[str, Any]:
    return next(value for key, value in adata.uns[_keys.SPATIAL].items() if str(key) == library)


def find_image(adata: AnnData, library: str, image_key: str | None, name: str) -> tuple[View, list[View]]:
    """Find the image named by `image_key`, else the finest of the library's, and all that there are."""
    entry = _library(adata, library)
    images, factors = entries(entry, "images"), entries(entry, "scalefactors")
    slot = f"uns['spatial'][{library!r}]"
    source = text(entries(entry, "metadata").get("source_image_path"))
    path = expanded(source) if source is not None else None

    candidates: dict[str, View] = {}
    absent = why_absent(path) if path is not None else None
    if path is not None and absent is None:  # an OME-Zarr is a folder
        opener = partial(SectionImage.from_file, path, warned=set())
        candidates[SOURCE] = View(SOURCE, str(path), scaled(1.0), opener)
    scales = {key: number(factors.get(f"tissue_{key}_scalef")) for key in images}
    for key, scale in sorted(scales.items(), key=lambda item: -(item[1] or 0)):
        if scale is not None:
            where = f"{slot}['images'][{key!r}]"
            opener = partial(SectionImage.from_array, images[key], name=where, warned=set())
            candidates[key] = View(key, where, scaled(scale), opener, reduced=key in REDUCED)

    if image_key is not None and image_key not in candidates:
        if image_key in images:
            raise InputError(
                f"section {name!r}: {slot}['scalefactors'] lacks 'tissue_{image_key}_scalef', the px of "
                "this image per full-resolution px"
            )
        if image_key == SOURCE and path is not None:
            raise FileNotFoundError(f"section {name!r}: the image file {path} named in {slot}['metadata'] {absent}")
        raise MissingSlotError(f"`image_key`: {slot} has no image {image_key!r}; images: {listed(candidates)}")
    if not candidates:
        missing = f"the file {path} of its metadata {absent}" if path is not None else "its metadata name no file"
        unscaled = f"images without a scale factor 'tissue_<key>_scalef': {listed(images)}" if images else "no 'images'"
        raise InputError(
            f"no image for section {name!r}: {slot} has {unscaled}, and {missing}. Set "
            f"{slot}['metadata']['source_image_path'] to the full-resolution image"
        )
    chosen = candidates[image_key if image_key is not None else next(iter(candidates))]
    if image_key is None and path is not None and SOURCE not in candidates:
        warn(f"section {name!r}: the image file {path} {absent}; {chosen.name} is used instead", ImageWarning)
    elif image_key is None and chosen.reduced and chosen.scale < 1:
        say_reduced(name, chosen)
    elif len(candidates) > 1:
        logger.info("section %r: of the images %s, %r is used", name, listed(candidates), chosen.key)
    return chosen, list(candidates.values())
