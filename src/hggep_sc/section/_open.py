"""Find the sections in what the user gave, and name them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anndata import AnnData

from .. import _keys
from ..errors import InputError, MissingSlotError
from ..runtime.messages import listed
from ..runtime.validators import by_name, text, text_or_none, values_by_name
from ._anndata import anndata_section, libraries_of
from ._containers import is_spatialdata, not_a_container, table_of
from ._scale import checked_mpp, noted_scale
from ._section import Section
from ._spatialdata import regions_of, spatialdata_section


def open_sections(
    data: Any,
    *,
    library_key: str | None = None,
    library_id: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    layer: str | None = None,
    mpp: float | Mapping[str, float] | None = None,
    noted: str | Sequence[str] = (),
    looks: bool = True,
    check: bool = True,
) -> list[Section]:
    """Find the sections in AnnData and SpatialData objects.

    What is left out is inferred where one choice exists; of the resolutions of one image the finest is taken.

    Parameters
    ----------
    data
        An AnnData or SpatialData object, a list or a dict of them. Sections are named by the dict's keys
        (followed by "/" and the library or region where one object holds several), otherwise by library ids
        and region names.
    library_key
        AnnData: column of `obs` that says which library of `uns["spatial"]` a spot belongs to.
    library_id
        AnnData: the library of `uns["spatial"]` to take.
    image_key
        AnnData: key of `uns["spatial"][library_id]["images"]`, or "source" for the file that
        `metadata["source_image_path"]` names. SpatialData: name of the image. A dict chooses by section name.
    shapes_key
        SpatialData: the shapes to take, among those that the table annotates.
    table_key
        SpatialData: the table.
    coordinate_system
        SpatialData: where shapes and image meet.
    spatial_key
        AnnData: `obsm` slot of the spot centres, in full-resolution px (column, row).
    layer
        Layer with raw counts, None for `X`.
    mpp
        um per px: for AnnData of the full-resolution image (the unit of the coordinates), for SpatialData of
        the finest level of the image. A dict gives it by section name.
    noted
        Keys of predictions: where `mpp` does not say it, the scale is the one that the first of them noted.
    looks
        Whether somebody will look at the image. Otherwise a section whose image is missing, or does not fit, is opened
        without one.
    check
        Look at pixels to find out whether image, copies of it and coordinates belong together; False for what has been
        looked at, such as in a plot of a prediction.

    Returns
    -------
    The sections, at least one, under unique names.

    Raises
    ------
    TypeError
        If `data` is or holds something else.
    MissingSlotError
        If a named slot does not exist.
    InputError
        If spots, coordinates or the image are missing, ambiguous, or do not fit together.
    """
    objects = _objects(data)
    image_key, mpp = values_by_name("image_key", image_key), values_by_name("mpp", mpp)
    if not isinstance(image_key, Mapping):
        text_or_none("image_key", image_key)
    text("spatial_key", spatial_key)
    named = {"library_key": library_key, "library_id": library_id, "layer": layer, "shapes_key": shapes_key}
    for keyword, slot in (named | {"table_key": table_key, "coordinate_system": coordinate_system}).items():
        text_or_none(keyword, slot)
    _refuse_foreign_keywords(
        [item for _, item in objects],
        anndata={"library_key": library_key, "library_id": library_id},
        spatialdata={
            "shapes_key": shapes_key,
            "table_key": table_key,
            "coordinate_system": coordinate_system,
        },
    )
    sections: list[Section] = []
    for label, item in objects:
        found: list[Section]
        table = table_of(item, table_key)
        _require_layer(table, layer)
        if isinstance(item, AnnData):
            parts = libraries_of(item, library_key, library_id, spatial_key, looks=looks)
            names = _section_names(label, list(parts))
            found = [
                _opened(
                    anndata_section,
                    looks,
                    item,
                    name=name,
                    library=library,
                    rows=rows,
                    library_key=library_key,
                    image_key=_chosen(image_key, name),
                    spatial_key=spatial_key,
                    layer=layer,
                    mpp=checked_mpp(_chosen(mpp, name)),
                    noted=noted_scale(table, noted, library) if _chosen(mpp, name) is None else None,
                    check=check and looks,
                )
                for name, (library, rows) in zip(names, parts.items(), strict=True)
            ]
        else:
            parts = regions_of(item, table, shapes_key)
            names = _section_names(label, list(parts))
            found = [
                _opened(
                    spatialdata_section,
                    looks,
                    item,
                    table,
                    name=name,
                    region=region,
                    rows=rows,
                    image_key=_chosen(image_key, name),
                    coordinate_system=coordinate_system,
                    layer=layer,
                    mpp=checked_mpp(_chosen(mpp, name)),
                    noted=noted_scale(table, noted, region) if _chosen(mpp, name) is None else None,
                    check=check and looks,
                )
                for name, (region, rows) in zip(names, parts.items(), strict=True)
            ]
        sections.extend(found)

    opened = [section.name for section in sections]
    twice = sorted({name for name in opened if opened.count(name) > 1})
    if twice:
        raise InputError(
            f"several sections are called {listed(twice)}; pass a dict of name -> object to tell them apart"
        )
    for keyword, value in {"image_key": image_key, "mpp": mpp}.items():
        unknown = [name for name in value if name not in opened] if isinstance(value, Mapping) else []
        if unknown:
            raise KeyError(f"`{keyword}` names {listed(unknown)}, but the sections are {listed(opened)}")
    return sections


def _opened(open_section: Callable[..., Section], looks: bool, *data: Any, **how: Any) -> Section:
    """Open a section, without its image where that does not serve and nobody looks."""
    try:
        return open_section(*data, **how)
    except (ValueError, KeyError, OSError):
        if looks:
            raise
        return open_section(*data, **how, with_image=False)


def _objects(data: Any) -> list[tuple[str | None, Any]]:
    """(name given by the caller, object) of each object."""
    pairs: list[tuple[str | None, Any]]
    if isinstance(data, AnnData) or is_spatialdata(data):
        return [(None, data)]
    if isinstance(data, Mapping):
        pairs = list(by_name("data", data).items())
    elif isinstance(data, list | tuple):
        pairs = [(None, item) for item in data]
    else:
        raise TypeError(not_a_container(data))
    if not pairs:
        raise ValueError(f"no sections: the {type(data).__name__} is empty")
    for _, item in pairs:
        if not (isinstance(item, AnnData) or is_spatialdata(item)):
            raise TypeError(not_a_container(item))
    return pairs


def _refuse_foreign_keywords(items: list[Any], *, anndata: dict[str, Any], spatialdata: dict[str, Any]) -> None:
    """Refuse a keyword that none of the objects could use."""
    kinds = {isinstance(item, AnnData) for item in items}
    for is_anndata, keywords, kind in ((True, anndata, "AnnData"), (False, spatialdata, "SpatialData")):
        given = [f"`{keyword}`" for keyword, value in keywords.items() if value is not None]
        if given and is_anndata not in kinds:
            raise ValueError(f"{', '.join(given)} is for {kind} objects, and none was given")


def _section_names(label: str | None, found: list[str]) -> list[str]:
    if label is None:
        return found
    return [label] if len(found) == 1 else [f"{label}/{name}" for name in found]


def _chosen(option: Any, name: str) -> Any:
    return option.get(name) if isinstance(option, Mapping) else option


def _require_layer(table: AnnData, layer: str | None) -> None:
    if layer is not None and layer not in table.layers:
        raise MissingSlotError(f"`layer`: there is no layer {layer!r}; layers: {listed(table.layers)}")
