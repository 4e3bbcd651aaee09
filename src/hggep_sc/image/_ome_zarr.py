"""OME-Zarr folders (0.4 and 0.5): levels and physical scale."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._errors import READING_ERRORS, damaged
from ._units import UM_PER_UNIT, PixelSize, pixel_size


def ome_zarr_image(path: Path) -> tuple[list[Any], PixelSize | None]:
    """Levels of the image in an OME-Zarr folder, and the size of its px.

    Of a folder with several images, as bioformats2raw writes it, the first is taken: the slide, before its label.
    """
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
    except FileNotFoundError:
        raise ValueError(f"{path} is a folder, not an image file: give a TIFF, SVS, PNG, JPEG or OME-Zarr") from None
    except READING_ERRORS as error:
        raise damaged(path, error) from error
    image = _multiscale(group)
    if image is None and "0" in group:
        group = zarr.open_group(path / "0", mode="r")
        image = _multiscale(group)
    if image is None:
        raise ValueError(
            f"{path} is a Zarr folder without an OME-Zarr image (multiscales 0.4 or 0.5): give the image's own folder, "
            "or read a SpatialData with spatialdata.read_zarr and pass the object"
        )
    try:
        axes = [axis["name"] for axis in image["axes"]]
        levels = [group[dataset["path"]] for dataset in image["datasets"]]
        size = pixel_size(_um(image, "x"), _um(image, "y"))
    except (*READING_ERRORS, TypeError, IndexError) as error:
        raise damaged(path, error) from error
    return [_plane(level, axes, path) for level in levels], size


def _multiscale(group: Any) -> Mapping[str, Any] | None:
    attributes = group.attrs.asdict()
    # 0.5 has a key of its own
    images = attributes.get("ome", attributes).get("multiscales")
    return images[0] if images else None


def _plane(level: Any, axes: list[str], path: Path) -> Any:
    """Reduce a level to (c, y, x) or (y, x); along other axes it must hold one such plane."""
    others = [axis for axis, name in enumerate(axes) if name not in ("c", "y", "x")]
    if len(axes) != len(level.shape) or any(level.shape[axis] != 1 for axis in others):
        raise ValueError(
            f"image {path} has axes {axes} of sizes {level.shape}, expected one plane of rows, columns and colours: "
            "save the one plane that is the H&E image"
        )
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
