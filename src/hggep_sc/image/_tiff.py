"""TIFF files (tiled, pyramidal, OME, Aperio SVS): levels and physical scale."""

import logging
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ._errors import READING_ERRORS, damaged, require_memory
from ._levels import Whole
from ._units import SANE_MPP, UM_PER_UNIT, PixelSize, pixel_size

logger = logging.getLogger(__name__)

CONVERTED = ("OJPEG", "JPEG", "ALT_JPEG", "JPEG_LOSSY")  # compressions whose YCbCr tifffile gives as RGB
UNCONVERTED = ("APERIO_JP2000_YCBC", "JPEG2000")
LARGEST_TILE = 3 * 4096**2  # values; what is stored in larger pieces is decoded whole


class YCbCr:
    """A lazy array of YCbCr pixels, read as RGB."""

    def __init__(self, stored: Any) -> None:
        self.stored = stored
        self.shape, self.dtype, self.chunks = stored.shape, stored.dtype, stored.chunks

    def __getitem__(self, window: tuple[slice, ...]) -> np.ndarray:
        pixels = np.asarray(self.stored[window])
        rgb = np.array(Image.fromarray(pixels, "YCbCr").convert("RGB"))
        rgb[(pixels == 255).all(axis=2)] = 255  # tiles left out
        return rgb


def tiff_levels(tiff: Any, path: Path) -> list[Any]:
    """Levels of a TIFF's largest image: lazy where tiles are small, whole where stored in one piece."""
    import zarr

    if not len(tiff.pages):  # their table is often at the end of the file
        raise ValueError(
            f"image file {path} is damaged or cut short: it refers to no page within its {tiff.filehandle.size} bytes; "
            "copy or download it again"
        )
    series = _largest(tiff)
    if series is None:
        raise ValueError(f"image file {path} holds no image with rows and columns: give the H&E image's file")
    if len(set(series.axes) - {"Y", "X", "S", "C"}) or {"S", "C"} <= set(series.axes):
        raise ValueError(
            f"image file {path} has axes {series.axes} of sizes {series.shape}, expected one plane of rows, "
            "columns and colours: save the one plane that is the H&E image"
        )
    arrays: list[Any] = []
    for number, level in enumerate(series.levels):
        page = level.keyframe
        ycbcr = _stays_ycbcr(page, path)
        _check_extent(level, tiff.filehandle.size, path)
        if math.prod(page.chunks) > LARGEST_TILE and not ycbcr:
            require_memory(path, level.nbytes)
            arrays.append(Whole(level.shape, level.dtype, level.asarray))
            continue
        # tiles that a scanner left out are glass, not black
        fill = np.iinfo(level.dtype).max if level.dtype.kind == "u" else None
        try:
            store = series.aszarr(level=number, fillvalue=fill)
            array = zarr.open_array(store, mode="r", zarr_format=2)
        except READING_ERRORS as error:
            raise damaged(path, error) from error
        arrays.append(YCbCr(array) if ycbcr else array)
    return arrays


def _largest(tiff: Any) -> Any:
    """Return the series of the largest image, which is the one that is read; None where there is none."""
    candidates = [series for series in tiff.series if {"Y", "X"} <= set(series.axes)]
    return max(candidates, key=lambda series: math.prod(_size(series)), default=None)


def _size(series: Any) -> tuple[int, int]:
    """Width and height of a series in px."""
    return series.shape[series.axes.index("X")], series.shape[series.axes.index("Y")]


def _stays_ycbcr(page: Any, path: Path) -> bool:
    """Whether tifffile gives YCbCr pixels; refuse colours that are not read."""
    photometric = page.photometric.name if page.photometric is not None else "none"
    compression = page.compression.name
    # Aperio's JPEG 2000 is of the one kind or the other whatever the photometric tag says
    aperio = {"APERIO_JP2000_YCBC": "YCBCR", "APERIO_JP2000_RGB": "RGB"}
    colours = aperio.get(compression, photometric)
    # tifffile converts what is JPEG
    if colours in ("RGB", "MINISBLACK") or (colours == "YCBCR" and compression in CONVERTED):
        return False
    if colours == "YCBCR" and compression in UNCONVERTED and page.dtype == np.uint8 and page.shape[-1] == 3:
        return True
    raise ValueError(
        f"image file {path} stores colours as {photometric} with {compression} compression, "
        "which is not read here: convert it to RGB, for instance with `vips tiffsave --tile --pyramid`"
    )


def _check_extent(level: Any, file_size: int, path: Path) -> None:
    for page in level.pages:
        if page is None:
            continue
        end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        if end > file_size:
            raise ValueError(
                f"image file {path} is cut short: it has {file_size} bytes and refers to byte {end}; copy "
                "or download it again"
            )


def tiff_pixel_size(tiff: Any) -> PixelSize | None:
    """Size of the px of the image that is read, where its OME metadata, Aperio's or sane resolution tags say so."""
    series = _largest(tiff)
    if tiff.ome_metadata and (size := _ome_size(tiff.ome_metadata, series)):
        return size
    page = series.keyframe
    aperio = re.search(r"\bMPP\s*=\s*(\d*\.?\d+)", page.description)
    if page.description.startswith("Aperio") and aperio:
        return pixel_size(float(aperio[1]), None)
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(getattr(page, "resolutionunit", 0) or 0))
    sides = []
    for tag in ("XResolution", "YResolution"):
        resolution = page.tags.get(tag)
        pixels, per = resolution.value if resolution is not None else (0, 0)
        sides.append(unit * per / pixels if unit is not None and pixels and per else None)
    # 72 or 300 dpi are what writers put where they know nothing
    size = pixel_size(*sides)
    return size if size is not None and all(SANE_MPP[0] <= side <= SANE_MPP[1] for side in size) else None


def _ome_size(xml: str, series: Any) -> PixelSize | None:
    """Size of the px of a series by OME metadata, which may describe several images."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        logger.warning("the OME metadata is not valid XML: the pixel size it may hold is not used")
        return None
    fitting = [
        (image.get("Name"), pixels)
        for image in root.iter()
        for pixels in image
        if _tag(image) == "Image"
        and _tag(pixels) == "Pixels"
        and (pixels.get("SizeX"), pixels.get("SizeY")) == tuple(map(str, _size(series)))
    ]
    if len(fitting) > 1:  # images of one size
        by_page = [(name, pixels) for name, pixels in fitting if series.keyframe.index in _pages(pixels)]
        fitting = by_page or [(name, pixels) for name, pixels in fitting if name == series.name]
    sizes = {pixel_size(_um(pixels, "X"), _um(pixels, "Y")) for _, pixels in fitting}
    return sizes.pop() if len(sizes) == 1 else None


def _tag(element: Any) -> str:
    return element.tag.rpartition("}")[2]


def _pages(pixels: Any) -> list[int]:
    """Pages of the file that hold an image's planes, as far as they are named."""
    return [int(data.get("IFD")) for data in pixels if _tag(data) == "TiffData" and data.get("IFD", "").isdecimal()]


def _um(pixels: Any, axis: str) -> float | None:
    """Micrometres per px along an axis, where OME's unit is one of length."""
    unit = UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        return None if unit is None else unit * float(pixels.get(f"PhysicalSize{axis}", "nan"))
    except ValueError:
        return None
