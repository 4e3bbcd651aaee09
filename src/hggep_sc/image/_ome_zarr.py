"""OME-Zarr folders (0.4 and 0.5): levels and physical scale."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ImageError
from ._errors import damaged, require_memory
from ._units import UM_PER_UNIT, PixelSize, pixel_size

VERSIONS = ("0.4", "0.5")


def ome_zarr_image(path: Path) -> tuple[list[Any], PixelSize | None, list[str]]:
    """Levels of the image in an OME-Zarr folder, the size of its px, and the names of its channels where it has any.

    Of a folder with several images, as bioformats2raw writes it, the first is taken: the slide, before its label.
    """
    try:
        return _read(path)
    except ImageError:
        raise
    except Exception as error:  # damaged metadata make zarr raise anything
        raise damaged(path, error) from error


def _read(path: Path) -> tuple[list[Any], PixelSize | None, list[str]]:
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
    except FileNotFoundError:
        raise ImageError(f"{path} is a folder, not an image file: give a TIFF, SVS, PNG, JPEG or OME-Zarr") from None
    image = _multiscale(group)
    if image is None and "0" in group:
        group = zarr.open_group(path / "0", mode="r")
        image = _multiscale(group)
    if image is None:
        raise ImageError(
            f"{path} is a Zarr folder without an OME-Zarr image (multiscales 0.4 or 0.5): give the image's own folder, "
            "or read a SpatialData with spatialdata.read_zarr and pass the object"
        )
    attributes: Any = group.attrs.asdict()
    version = attributes.get("ome", {}).get("version") or image.get("version")
    if version is not None and version not in VERSIONS:
        raise ImageError(
            f"image {path} is OME-Zarr of version {version}, while {' and '.join(VERSIONS)} are read: write it anew, "
            "for instance with bioformats2raw or ome-zarr-py, or convert it to OME-TIFF"
        )
    axes = [axis["name"] for axis in image["axes"]]
    levels = [_plane(group[dataset["path"]], axes, path) for dataset in image["datasets"]]
    channels = attributes.get("ome", attributes).get("omero", {}).get("channels", ())
    names = [str(channel.get("label") or "") for channel in channels] if "c" in axes else []
    along = [axis for axis in axes if axis in ("c", "y", "x")]
    # names are of the first axis; one gray plane has no other
    named = names if along[:1] == ["c"] and len(names) == levels[0].shape[0] else []
    return levels, pixel_size(_um(image, "x"), _um(image, "y")), named


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder is an image, rather than a SpatialData with one in it."""
    import zarr

    try:
        attributes = zarr.open_group(path, mode="r").attrs.asdict()
    except (OSError, ValueError, KeyError, TypeError):  # no Zarr, or a damaged one
        return False
    own = attributes.get("ome", attributes)
    return isinstance(own, Mapping) and bool({"multiscales", "bioformats2raw.layout"} & set(own))


def _multiscale(group: Any) -> Mapping[str, Any] | None:
    attributes = group.attrs.asdict()
    # 0.5 has a key of its own
    images = attributes.get("ome", attributes).get("multiscales")
    return images[0] if images else None


def _plane(level: Any, axes: list[str], path: Path) -> Any:
    """Reduce a level to (c, y, x) or (y, x); along other axes it must hold one such plane."""
    others = [axis for axis, name in enumerate(axes) if name not in ("c", "y", "x")]
    if len(axes) != len(level.shape) or any(level.shape[axis] != 1 for axis in others):
        raise ImageError(
            f"image {path} has axes {axes} of sizes {level.shape}, expected one plane of rows, columns and colours: "
            "save the one plane that is the H&E image"
        )
    require_memory(path, math.prod(level.chunks) * level.dtype.itemsize)  # a chunk is decoded whole
    if not others:
        return level
    import dask.array as da

    return da.from_zarr(level)[tuple(0 if axis in others else slice(None) for axis in range(len(axes)))]


def _um(image: Mapping[str, Any], axis: str) -> float | None:
    """Micrometres per px along an axis of the first level, where its unit is one of length."""
    along = [named["name"] for named in image["axes"]].index(axis)
    size = UM_PER_UNIT.get(image["axes"][along].get("unit"))
    # the transformations of the level, and then those of all of them
    for transformation in (
        *image["datasets"][0].get("coordinateTransformations", ()),
        *image.get("coordinateTransformations", ()),
    ):
        if size is not None and transformation["type"] == "scale":
            size *= float(transformation["scale"][along])
    return size or None
