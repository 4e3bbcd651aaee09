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
from ._units import UM_PER_UNIT

logger = logging.getLogger(__name__)

CONVERTED = ("OJPEG", "JPEG", "ALT_JPEG", "JPEG_LOSSY")  # compressions whose YCbCr tifffile gives as RGB
UNCONVERTED = ("APERIO_JP2000_YCBC", "JPEG2000")
LARGEST_TILE = 3 * 4096**2  # values; what is stored in larger pieces is decoded whole
SANE_MPP = (0.05, 20.0)


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
    candidates = [series for series in tiff.series if {"Y", "X"} <= set(series.axes)]
    if not candidates:
        raise ValueError(f"image file {path} holds no image with rows and columns: give the H&E image's file")
    series = max(candidates, key=lambda s: s.shape[s.axes.index("Y")] * s.shape[s.axes.index("X")])
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


def tiff_mpp(tiff: Any) -> float | None:
    """Micrometres per px of the largest image, where OME, Aperio or sane resolution tags say so."""
    if tiff.ome_metadata:
        return _ome_mpp(tiff.ome_metadata)
    page = tiff.pages[0]
    aperio = re.search(r"\bMPP\s*=\s*(\d*\.?\d+)", page.description)
    if page.description.startswith("Aperio") and aperio:
        return float(aperio[1]) or None
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(getattr(page, "resolutionunit", 0) or 0))
    resolution = page.tags.get("XResolution")
    if unit is None or resolution is None or not all(resolution.value):
        return None
    pixels, per = resolution.value
    mpp = unit * per / pixels
    # 72 or 300 dpi are what writers put where they know nothing
    return mpp if SANE_MPP[0] <= mpp <= SANE_MPP[1] else None


def _ome_mpp(xml: str) -> float | None:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        logger.warning("the OME metadata is not valid XML: the pixel size it may hold is not used")
        return None
    images = [element.attrib for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"]
    if not images:
        return None
    largest = max(images, key=lambda pixels: int(pixels.get("SizeX", 0)) * int(pixels.get("SizeY", 0)))
    micrometres = UM_PER_UNIT.get(largest.get("PhysicalSizeXUnit", "µm"))
    size = float(largest.get("PhysicalSizeX", 0))
    return size * micrometres if micrometres and size > 0 else None
