"""SectionImage: lazy access to the pixels of one section's H&E image, and the reader of patches."""

import logging
import math
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageFile

logger = logging.getLogger(__name__)

# px along an edge of what is read from a lazy level in one go (48 MB of RGB): bounds memory, not speed
_WINDOW = 4096
_BACKGROUND_SIZE = 512
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MICRONS = {
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
_SANE_MPP = (0.05, 20.0)
# pillow's limits are module globals; they are lifted for one decoding at a time and put back
_PILLOW_LOCK = threading.Lock()


@dataclass(frozen=True)
class _Level:
    """One resolution of the image; sizes and factors are in (x, y) order."""

    pixels: Any
    channel_axis: int | None
    size: np.ndarray  # (2,) int: width, height
    factor: np.ndarray  # (2,) px of the finest level per px of this one

    @property
    def lazy(self) -> bool:
        return not isinstance(self.pixels, np.ndarray)

    def read(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Pixels as stored, (height, width, channels), from (x, y) `start` up to `stop`."""
        window: tuple[slice, ...] = (slice(int(start[1]), int(stop[1])), slice(int(start[0]), int(stop[0])))
        if self.channel_axis is None:
            return np.asarray(self.pixels[window])[..., None]
        if self.channel_axis == 2:
            return np.asarray(self.pixels[(*window, slice(None))])
        return np.moveaxis(np.asarray(self.pixels[(slice(None), *window)]), 0, -1)


class SectionImage:
    """Lazy access to one section's H&E pixels.

    Made by `from_array`, `from_levels` or `from_file`; a context manager, as files are held open. Coordinates
    are in pixels of the finest level, x the column and y the row; pixel i covers [i, i + 1).

    Attributes
    ----------
    name
        What messages call the image: its file name, or the slot it comes from.
    shape
        Height and width of the finest level in px.
    mpp
        Micrometres per px of the finest level where the file or the caller says so, else None.
    """

    def __init__(
        self, levels: list[_Level], *, name: str, mpp: float | None, close: Callable[[], None] | None = None
    ) -> None:
        self.name = name
        self.shape = (int(levels[0].size[1]), int(levels[0].size[0]))
        self.mpp = mpp
        self._levels = levels
        self._close = close

    @classmethod
    def from_array(cls, array: Any, *, name: str, mpp: float | None = None) -> Self:
        """Wrap one array; nothing is read from it yet, apart from a sample of a floating-point one.

        Parameters
        ----------
        array
            NumPy, dask or zarr array (or a DataArray of one), (H, W), (H, W, C) or (C, H, W) with 1 (gray),
            3 (RGB) or 4 (RGBA, composited on white) channels; uint8, uint16 (the full range is used), or
            floating point in 0..1 or 0..255.
        name
            What messages call the image.
        mpp
            Micrometres per px, if known.

        Raises
        ------
        TypeError
            If `array` is not an array.
        ValueError
            If its shape, data type or values are not those of such an image.
        """
        return cls.from_levels([array], name=name, mpp=mpp)

    @classmethod
    def from_levels(cls, levels: Sequence[Any], *, name: str, mpp: float | None = None) -> Self:
        """Wrap a resolution pyramid, finest level first; the levels show the same field.

        Parameters
        ----------
        levels
            Arrays as `from_array` takes them, of one data type and channel count.
        name
            What messages call the image.
        mpp
            Micrometres per px of the finest level, if known.

        Raises
        ------
        TypeError
            If a level is not an array.
        ValueError
            If a level is no image, or if the levels are not resolutions of one image.
        """
        if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
            raise ValueError(f"image {name}: mpp must be a positive number of um per px, found {mpp}")
        return cls(_pyramid(levels, name), name=name, mpp=mpp)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Open an image file.

        Tiled TIFF (pyramidal, OME, Aperio SVS) is read lazily, tile by tile; PNG, JPEG and whatever else
        pillow reads is decoded whole into memory (3 bytes per px). An EXIF orientation is not applied: spot
        coordinates refer to the pixels as stored.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, truncated, or holds something other than a gray, RGB or RGBA image.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(
                f"image file {path} does not exist: correct the path, or put the file back where it was"
            )
        if path.is_dir():
            what = "an OME-Zarr folder" if path.suffix == ".zarr" else "a folder"
            raise ValueError(
                f"{path} is {what}, not an image file: give a TIFF, SVS, PNG or JPEG file, or read the "
                "folder with spatialdata and pass the SpatialData object"
            )
        with path.open("rb") as file:
            magic = file.read(4)
        if not magic:
            raise ValueError(f"image file {path} is empty: copy or download it again")
        if magic in _TIFF_MAGIC:
            return cls._from_tiff(path)
        return cls(_pyramid([_decode(path)], str(path)), name=path.name, mpp=None)

    @classmethod
    def _from_tiff(cls, path: Path) -> Self:
        import tifffile

        try:
            tiff = tifffile.TiffFile(path)
        except (OSError, ValueError, RuntimeError, struct.error) as error:
            raise _damaged(path, error) from error
        try:
            arrays = _tiff_levels(tiff, path)
            image = cls(_pyramid(arrays, str(path)), name=path.name, mpp=_tiff_mpp(tiff), close=tiff.close)
        except BaseException:
            tiff.close()
            raise
        # without pixels left to decode, nothing needs the file
        if not any(level.lazy for level in image._levels):
            tiff.close()
        return image

    @cached_property
    def background(self) -> np.ndarray:
        """Colour of the bare glass, (3,) uint8, estimated from the image; it fills what lies outside."""
        colour = _glass(self.thumbnail(_BACKGROUND_SIZE))
        colour.flags.writeable = False
        return colour

    @cached_property
    def _white(self) -> float:
        """Stored value that stands for full intensity."""
        dtype = self._levels[0].pixels.dtype
        if dtype.kind == "u":
            return float(np.iinfo(dtype).max)
        coarsest = self._levels[-1]
        step = max(1, int(coarsest.size.max()) // 1024)
        axes = (slice(None, None, step),) * 2
        sample = np.asarray(coarsest.pixels[(slice(None), *axes) if coarsest.channel_axis == 0 else axes])
        low, high = float(sample.min()), float(sample.max())
        # interpolation overshoots 0..1 and 0..255 a little; a NaN fails the comparison
        if not (low >= -0.1 * max(high, 1.0) and high <= 255 * 1.1):
            raise ValueError(
                f"image {self.name}: floating-point values from {low:.4g} to {high:.4g}, expected 0..1 or "
                "0..255: give the image before any normalisation, or convert it to uint8"
            )
        return 1.0 if high <= 1.5 else 255.0

    def read_patches(self, xy: ArrayLike, *, field: float, size: int) -> np.ndarray:
        """Read square patches centred on spots.

        The coarsest level that is not coarser than `field / size` is read. Where no resampling is needed
        there, a patch is the window of whole pixels from `floor(x - field / 2 + 0.5)` on; otherwise the
        exact box is resampled with a triangle filter as wide as the reduction (bilinear interpolation on
        enlarging). What lies outside the image is `background`: patches are never shifted or shrunk.

        Parameters
        ----------
        xy
            Centres (n, 2), column and row in px of the finest level.
        field
            Side of the square in px of the finest level.
        size
            Side of the patch in px.

        Returns
        -------
        Patches (n, 3, size, size), uint8, RGB, in the order of `xy`.

        Raises
        ------
        ValueError
            If an argument is out of range, or if the pixels cannot be read.
        """
        centres = np.asarray(xy, dtype=np.float64)
        if centres.ndim != 2 or centres.shape[1] != 2:
            raise ValueError(
                f"image {self.name}: xy must be (n, 2) columns and rows, found shape {centres.shape}"
            )
        if not np.isfinite(centres).all():
            rows = np.flatnonzero(~np.isfinite(centres).all(axis=1))
            raise ValueError(f"image {self.name}: xy has NaN or infinite coordinates, first in row {rows[0]}")
        if not (math.isfinite(field) and field > 0):
            raise ValueError(f"image {self.name}: field must be a positive number of px, found {field}")
        if size < 1:
            raise ValueError(f"image {self.name}: size must be at least 1 px, found {size}")

        level = self._level_for(field / size)
        centres = centres / level.factor
        extent = field / level.factor
        whole_pixels = bool(np.allclose(extent, size, rtol=1e-6, atol=0))
        if whole_pixels:
            corner = np.floor(centres - size / 2 + 0.5).astype(np.int64)
            span = np.full(2, size, dtype=np.int64)
        else:
            edge = centres - extent / 2
            # what the filter reaches beyond the box belongs to the image too
            margin = np.ceil(np.maximum(extent / size, 1)).astype(np.int64) + 1
            corner = np.floor(edge).astype(np.int64) - margin
            span = np.ceil(extent).astype(np.int64) + 1 + 2 * margin

        patches = np.empty((len(centres), 3, size, size), dtype=np.uint8)
        for group in _groups(corner, span, level):
            start = np.clip(corner[group].min(axis=0), 0, level.size)
            stop = np.clip(corner[group].max(axis=0) + span, start, level.size)
            block = self._read(level, start, stop)
            for index in group:
                window = self._window(block, corner[index] - start, span)
                if not whole_pixels:
                    x, y = edge[index] - corner[index]
                    window = _resample(window, (x, y, x + extent[0], y + extent[1]), (size, size))
                patches[index] = window.transpose(2, 0, 1)
        return patches

    def thumbnail(self, max_size: int) -> np.ndarray:
        """Reduce the whole image.

        Where the image is a lazy pyramid, its finest level is left alone; memory is bounded in any case.

        Parameters
        ----------
        max_size
            Longest side in px. Nothing is enlarged: where the level read is smaller, so is the result.

        Returns
        -------
        RGB (h, w, 3), uint8.

        Raises
        ------
        ValueError
            If `max_size` is below 1, or if the pixels cannot be read.
        """
        if max_size < 1:
            raise ValueError(f"image {self.name}: max_size must be at least 1 px, found {max_size}")
        levels = self._open_levels()
        if levels[0].lazy and len(levels) > 1:
            levels = levels[1:]
        level = next((level for level in reversed(levels) if level.size.max() >= max_size), levels[0])
        width, height = (int(side) for side in level.size)

        # whole-number box averages by stripes first, leaving a factor of at least 2 to the smoother filter
        step = max(1, max(width, height) // (2 * max_size))
        rows = step * max(1, _WINDOW**2 // (width * step))
        stripes = []
        for top in range(0, height, rows):
            stripe = self._read(level, np.array([0, top]), np.array([width, min(top + rows, height)]))
            stripes.append(np.asarray(Image.fromarray(stripe).reduce(step)) if step > 1 else stripe)
        reduced = np.concatenate(stripes)
        if max(width, height) <= max_size:
            return reduced
        target = [max(1, round(side * max_size / max(width, height))) for side in (width, height)]
        return _resample(reduced, (0, 0, width / step, height / step), (target[0], target[1]))

    def close(self) -> None:
        """Close the file, if there is one, and let go of the pixels; nothing can be read afterwards."""
        self._levels = []
        if self._close is not None:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        scale = "mpp unknown" if self.mpp is None else f"{self.mpp:.4g} um/px"
        return f"SectionImage({self.name!r}, {self.shape[0]} x {self.shape[1]} px, {scale})"

    def _open_levels(self) -> list[_Level]:
        if not self._levels:
            raise ValueError(f"image {self.name} has been closed: open it again to read from it")
        return self._levels

    def _level_for(self, reduction: float) -> _Level:
        levels = self._open_levels()
        fine_enough = [level for level in levels if level.factor.max() <= reduction * (1 + 1e-6)]
        return fine_enough[-1] if fine_enough else levels[0]

    def _read(self, level: _Level, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """RGB uint8 (height, width, 3) of a window that lies within the level."""
        if (stop <= start).any():
            return np.empty((0, 0, 3), dtype=np.uint8)
        try:
            stored = level.read(start, stop)
        # decoders raise RuntimeError and OSError, zarr and tifffile ValueError and KeyError
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"image {self.name}: the pixels of columns {start[0]} to {stop[0]}, rows {start[1]} to "
                f"{stop[1]} cannot be read ({error}): the file or store is damaged or gone; copy or "
                "download it again"
            ) from error
        return _to_rgb(stored, self._white, self.name)

    def _window(self, block: np.ndarray, start: np.ndarray, span: np.ndarray) -> np.ndarray:
        """Cut a window of `span` out of the block, with background where the window leaves it."""
        stop = start + span
        extent = np.array([block.shape[1], block.shape[0]])
        low, high = np.clip(start, 0, extent), np.clip(stop, 0, extent)
        inside = block[low[1] : high[1], low[0] : high[0]]
        if (low == start).all() and (high == stop).all():
            return inside
        window = np.empty((span[1], span[0], 3), dtype=np.uint8)
        window[:] = self.background
        if inside.size:
            at = low - start
            window[at[1] : at[1] + inside.shape[0], at[0] : at[0] + inside.shape[1]] = inside
        return window


def _groups(corner: np.ndarray, span: np.ndarray, level: _Level) -> Iterator[np.ndarray]:
    """Spots whose windows are read together, as arrays of row numbers.

    From memory every window is its own; from a lazy level one bounding window serves the spots of a square,
    such that it stays within `_WINDOW` px (twice the patch's window, if that is larger).
    """
    if not len(corner):
        return
    if not level.lazy:
        yield from np.arange(len(corner))[:, None]
        return
    square = corner // np.maximum(_WINDOW - span, span)
    order = np.lexsort((square[:, 0], square[:, 1]))
    changes = np.flatnonzero((np.diff(square[order], axis=0) != 0).any(axis=1)) + 1
    yield from np.split(order, changes)


def _resample(
    pixels: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """Resample the box (left, top, right, bottom) of an RGB array to (width, height)."""
    # pillow widens the triangle filter by the reduction (so it does not alias) and centres it on the box's
    # cells to within 0.1 px; its box filter takes whole pixels only, up to half a pixel off
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))


def _to_rgb(pixels: np.ndarray, white: float, name: str) -> np.ndarray:
    """Bring (h, w, 1 | 3 | 4) pixels as stored to RGB uint8."""
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise ValueError(f"image {name}: NaN or infinite pixels: fill them, for instance with white")
        pixels = np.clip(pixels * (255 / white) + 0.5, 0, 255).astype(np.uint8)
    elif pixels.dtype.itemsize == 2:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint32)
        return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _glass(thumbnail: np.ndarray) -> np.ndarray:
    """Colour of the glass: median of the pixels as bright as the brightest few percent, borders aside."""
    pixels = thumbnail.reshape(-1, 3)
    luminance = pixels @ np.array([0.299, 0.587, 0.114])
    # scanners and stitchers leave black and pure white borders: neither is glass
    lit = pixels.max(axis=1) > 32
    saturated = (pixels == 255).all(axis=1)
    usable = lit & ~saturated
    if not usable.any():
        return np.median(pixels[saturated] if saturated.any() else pixels, axis=0).astype(np.uint8)
    bright = np.percentile(luminance[usable], 97)
    # tissue on glass that is overexposed throughout
    if bright < 215 and saturated.mean() > 0.01:
        return np.full(3, 255, dtype=np.uint8)
    return np.median(pixels[usable & (luminance >= bright - 12)], axis=0).round().astype(np.uint8)


def _pyramid(arrays: Sequence[Any], name: str) -> list[_Level]:
    """Check the levels and work out their layout and scale."""
    if not len(arrays):
        raise ValueError(f"image {name}: no resolution levels: give at least one array")
    finest: tuple[np.ndarray, int, np.dtype] | None = None
    levels: list[_Level] = []
    for array in arrays:
        pixels, axis = _layout(array, name)
        spatial = [side for i, side in enumerate(pixels.shape) if i != axis]
        size = np.array(spatial[::-1], dtype=np.int64)
        kind = (1 if axis is None else int(pixels.shape[axis]), pixels.dtype)
        if finest is None:
            finest = (size, *kind)
        elif kind != finest[1:]:
            raise ValueError(
                f"image {name}: its levels differ in channels or data type ({finest[1]} of {finest[2]}, "
                f"{kind[0]} of {kind[1]}): give the levels of one image"
            )
        elif (size > levels[-1].size).any():
            raise ValueError(f"image {name}: its levels must run from the finest to the coarsest")
        factor = finest[0] / size
        # a level made by halving is a trimmed or padded half: its factor is 2, whatever the sizes' ratio is
        nominal = np.round(factor)
        halved = (finest[0] // nominal == size) | (-(-finest[0] // nominal) == size)
        factor = np.where(halved, nominal, factor)
        if (np.abs(finest[0] / factor.mean() - size) > np.maximum(2, 0.02 * size)).any():
            raise ValueError(
                f"image {name}: its levels have different proportions ({finest[0].tolist()} and "
                f"{size.tolist()} px, width and height): give the levels of one image"
            )
        levels.append(_Level(pixels, axis, size, factor))
    return levels


def _layout(array: Any, name: str) -> tuple[Any, int | None]:
    """Return the array, unwrapped from a DataArray, and the axis of its channels; refuse other things."""
    if not all(hasattr(array, attribute) for attribute in ("shape", "dtype", "__getitem__")):
        raise TypeError(
            f"image {name}: expected a NumPy, dask or zarr array of pixels, found {type(array).__name__}"
        )
    dims = getattr(array, "dims", None)
    if isinstance(dims, tuple):
        array = array.data
    shape = tuple(int(side) for side in array.shape)
    axis: int | None
    if len(shape) == 2:
        axis = None
    elif len(shape) == 3 and isinstance(dims, tuple) and "c" in dims:
        axis = dims.index("c")
    elif len(shape) == 3 and shape[2] in (1, 3, 4):
        axis = 2
    else:
        axis = 0
    if len(shape) not in (2, 3) or axis == 1 or (axis is not None and shape[axis] not in (1, 3, 4)):
        raise ValueError(
            f"image {name}: shape {shape}, expected (height, width), (height, width, channels) or (channels, "
            "height, width) with 1 (gray), 3 (RGB) or 4 (RGBA) channels: pick the H&E image's channels"
        )
    if 0 in shape:
        raise ValueError(f"image {name}: shape {shape} holds no pixels")
    kind, itemsize = array.dtype.kind, array.dtype.itemsize
    if not ((kind == "u" and itemsize in (1, 2)) or kind == "f"):
        raise ValueError(
            f"image {name}: data type {array.dtype}, expected uint8, uint16 or floating point (0..1 or "
            "0..255): convert it, for instance with image.astype('uint8') where the values are 0..255"
        )
    return array, axis


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"image file {path} cannot be decoded ({error}): it is damaged, cut short or of an unknown format; "
        "copy or download it again, or convert it to TIFF, PNG or JPEG"
    )


def _decode(path: Path) -> np.ndarray:
    """Decode a file whole with pillow."""
    with _PILLOW_LOCK:
        limit, lenient = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        # sections are larger than what pillow takes for an attack; what is missing must not come out gray
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            with Image.open(path) as image:
                mode = image.mode
                if mode in ("L", "RGB", "RGBA") or mode.startswith("I;16"):
                    return _stripes(image)
                if mode in ("P", "PA", "LA"):
                    clear = mode != "P" or "transparency" in image.info
                    return _stripes(image.convert("RGBA" if clear else "RGB"))
                if mode in ("CMYK", "YCbCr"):
                    return _stripes(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
            raise _damaged(path, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limit, lenient
    raise ValueError(
        f"image file {path} has pixels of mode {mode!r}: convert it to 8- or 16-bit gray, RGB or RGBA"
    )


def _stripes(image: Image.Image) -> np.ndarray:
    """Copy the pixels out in stripes: pillow copies twice on the way to an array."""
    image.load()
    sample = np.asarray(image.crop((0, 0, image.width, 1)))
    pixels = np.empty((image.height, *sample.shape[1:]), dtype=sample.dtype)
    for top in range(0, image.height, 1024):
        bottom = min(top + 1024, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _tiff_levels(tiff: Any, path: Path) -> list[Any]:
    """Levels of a TIFF's largest image: lazy where tiles are small, decoded where stored in one piece."""
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
    arrays = []
    for number, level in enumerate(series.levels):
        page = level.keyframe
        _check_colours(page, path)
        _check_extent(level, tiff.filehandle.size, path)
        chunk = math.prod(page.chunks)
        try:
            if chunk > 3 * _WINDOW**2:
                arrays.append(level.asarray())
                continue
            # tiles that a scanner left out are glass, not black
            fill = np.iinfo(level.dtype).max if level.dtype.kind == "u" else None
            store = series.aszarr(level=number, fillvalue=fill)
            arrays.append(zarr.open_array(store, mode="r", zarr_format=2))
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise _damaged(path, error) from error
    return arrays


def _check_colours(page: Any, path: Path) -> None:
    photometric = page.photometric.name if page.photometric is not None else "none"
    # tifffile turns YCbCr into RGB for JPEG alone; Aperio's 33003 is YCbCr whatever it says
    plain = photometric in ("RGB", "MINISBLACK") or (
        photometric == "YCBCR" and "JPEG" in page.compression.name
    )
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
                f"image file {path} is cut short: it has {file_size} bytes and refers to byte {end}; copy or "
                "download it again"
            )


def _tiff_mpp(tiff: Any) -> float | None:
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
    return mpp if _SANE_MPP[0] <= mpp <= _SANE_MPP[1] else None


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
    micrometres = _MICRONS.get(largest.get("PhysicalSizeXUnit", "µm"))
    size = float(largest.get("PhysicalSizeX", 0))
    return size * micrometres if micrometres and size > 0 else None
