"""TIFF files (tiled, pyramidal, OME, Aperio SVS): levels and physical scale."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..errors import ImageError, ScaleWarning
from ..runtime.messages import warn
from ._errors import require_memory
from ._levels import Whole
from ._stored import WHITES, Said
from ._units import SANE_MPP, UM_PER_UNIT, PixelSize, pixel_size

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
        raise ImageError(
            f"image file {path} is damaged or cut short: it refers to no page within its {tiff.filehandle.size} bytes; "
            "copy or download it again"
        )
    if (series := _largest(tiff)) is None:
        raise ImageError(f"image file {path} holds no image with rows and columns: give the H&E image's file")
    if len(set(series.axes) - {"Y", "X", "S", "C"}) or {"S", "C"} <= set(series.axes):
        raise ImageError(
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
        array = zarr.open_array(series.aszarr(level=number, fillvalue=fill), mode="r", zarr_format=2)
        arrays.append(YCbCr(array) if ycbcr else array)
    return arrays


def _largest(tiff: Any) -> Any:
    """Return the series of the largest image, which is the one that is read; None where there is none."""
    candidates = [series for series in tiff.series if {"Y", "X"} <= set(series.axes)]
    return max(candidates, key=lambda series: math.prod(_size(series)), default=None)


def _size(series: Any) -> tuple[int, int]:
    """Width and height of a series in px."""
    return series.shape[series.axes.index("X")], series.shape[series.axes.index("Y")]


@dataclass(frozen=True)
class Channels:
    """What a TIFF says of the channels of its largest image.

    Attributes
    ----------
    said
        White point and fourth channel.
    names
        Of the channels, where they are images of their own and have names.
    axis
        Of the channels, where they are images of their own.
    gray
        How many channels are gray by the file, not red, green and blue; 0 or 1 where nothing is odd.
    """

    said: Said
    names: list[str]
    axis: int
    gray: int

    def remark(self, path: Path) -> tuple[str, str] | None:
        """Warn of several gray channels that no name calls colours."""
        if self.gray < 3 or {"red", "r"} & {name.lower() for name in self.names}:
            return None
        return (
            "channels",
            f"image file {path} stores {self.gray} gray channels, which are taken for red, green and blue in this "
            "order: look whether they are, or whether it is a fluorescence image",
        )


def tiff_channels(tiff: Any) -> Channels:
    """Read what tags, OME and ImageJ metadata say of the channels of the largest image."""
    series = _largest(tiff)
    page = series.keyframe
    axes = dict(zip(series.axes, series.shape, strict=True))
    pixels = next(iter(_ome_pixels(tiff, series)), None)
    names: list[str] = []
    if pixels is not None:
        names = [child.get("Name") or "" for child in pixels if _tag(child) == "Channel"]
    elif tiff.imagej_metadata:
        names = [str(label) for label in tiff.imagej_metadata.get("Labels") or ()]
    gray = page.photometric is not None and page.photometric.name == "MINISBLACK"
    n_channels: Any = axes.get("S", axes.get("C", 1))
    fourth: Any = None
    if not gray and page.extrasamples:
        fourth = {0: "something else", 1: "premultiplied", 2: "alpha"}.get(int(page.extrasamples[0]))
    return Channels(
        said=Said(_white(page, pixels), fourth),
        # of one image in colours, OME names the whole
        names=names if "S" not in axes and len(names) == axes.get("C", 1) else [],
        axis=series.axes.find("C"),
        gray=n_channels if gray else 0,
    )


def _white(page: Any, pixels: ElementTree.Element | None) -> float | None:
    """Return the stored value of full intensity, where fewer bits are used than are stored."""
    depth = 8 * page.dtype.itemsize
    if page.dtype.kind != "u" or depth > 16:
        return None
    bits = [page.bitspersample, (pixels.get("SignificantBits") if pixels is not None else None) or depth]
    whites = [2 ** int(n) - 1 for n in bits]
    largest = page.tags.get("MaxSampleValue")
    if largest is not None and depth == 16 and (value := int(np.max(largest.value))) > 0:
        whites.append(next((white for white in WHITES if value <= white), WHITES[-1]))
    white = min(whites)
    return float(white) if 0 < white < 2**depth - 1 else None


def tiff_orientation(tiff: Any) -> int | None:
    """Return the tag of orientation of the largest image."""
    tag = _largest(tiff).keyframe.tags.get("Orientation")
    return None if tag is None else int(tag.value)


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
    raise ImageError(
        f"image file {path} stores colours as {photometric} with {compression} compression, "
        "which is not read here: convert it to RGB, for instance with `vips tiffsave --tile --pyramid`"
    )


def _check_extent(level: Any, file_size: int, path: Path) -> None:
    for page in level.pages:
        if page is None:
            continue
        if len(page.dataoffsets) < math.prod(level.keyframe.chunked):
            raise ImageError(
                f"image file {path} is damaged: its image of {level.keyframe.shape} needs "
                f"{math.prod(level.keyframe.chunked)} tiles or strips, and its header names {len(page.dataoffsets)}; "
                "copy or download it again"
            )
        end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        if end > file_size:
            raise ImageError(
                f"image file {path} is cut short: it has {file_size} bytes and refers to byte {end}; copy "
                "or download it again"
            )


def tiff_pixel_size(tiff: Any) -> PixelSize | None:
    """Size of the px of the image that is read, where its OME metadata, Aperio's or sane resolution tags say so."""
    series = _largest(tiff)
    if size := _ome_size(tiff, series):
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


def _ome_size(tiff: Any, series: Any) -> PixelSize | None:
    """Size of the px of a series by OME metadata, which may describe several images."""
    sizes = {pixel_size(_um(pixels, "X"), _um(pixels, "Y")) for pixels in _ome_pixels(tiff, series)}
    return sizes.pop() if len(sizes) == 1 else None


def _ome_pixels(tiff: Any, series: Any) -> list[ElementTree.Element]:
    """Return what OME metadata, if any, say of the pixels of a series; several where they are not told apart."""
    if not tiff.ome_metadata:
        return []
    try:
        root = ElementTree.fromstring(tiff.ome_metadata)
    except ElementTree.ParseError:
        warn(
            f"image file {tiff.filehandle.name}: its OME metadata are not valid XML, and the pixel size that they may "
            "hold is not used",
            ScaleWarning,
        )
        return []
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
    return [pixels for _, pixels in fitting]


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
