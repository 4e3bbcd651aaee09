"""TIFF files (tiled, pyramidal, OME, Aperio SVS): levels and physical scale."""

import logging
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ._errors import READING_ERRORS, damaged
from ._levels import Whole

logger = logging.getLogger(__name__)

LARGEST_TILE = 3 * 4096**2  # values; what is stored in larger pieces is decoded whole
SANE_MPP = (0.05, 20.0)
UM_PER_UNIT = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
}


def tiff_levels(tiff: Any, path: Path) -> list[Any]:
    """Levels of a TIFF's largest image: lazy where tiles are small, whole where stored in one piece."""
    import zarr

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
        _check_colours(page, path)
        _check_extent(level, tiff.filehandle.size, path)
        if math.prod(page.chunks) > LARGEST_TILE:
            arrays.append(Whole(level.shape, level.dtype, level.asarray))
            continue
        # tiles that a scanner left out are glass, not black
        fill = np.iinfo(level.dtype).max if level.dtype.kind == "u" else None
        try:
            store = series.aszarr(level=number, fillvalue=fill)
            arrays.append(zarr.open_array(store, mode="r", zarr_format=2))
        except READING_ERRORS as error:
            raise damaged(path, error) from error
    return arrays


def _check_colours(page: Any, path: Path) -> None:
    photometric = page.photometric.name if page.photometric is not None else "none"
    # tifffile turns YCbCr into RGB for JPEG alone; Aperio's 33003 is YCbCr whatever it says
    plain = photometric in ("RGB", "MINISBLACK") or (photometric == "YCBCR" and "JPEG" in page.compression.name)
    if not plain or page.compression == 33003:
        raise ValueError(
            f"image file {path} stores colours as {photometric} with {page.compression.name} compression, "
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
