"""SectionImage: the pixels of one section's H&E image, and the reader of patches."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from threading import Condition
from types import TracebackType
from typing import Any, Self

import numpy as np
from cachetools import LRUCache, cachedmethod
from numpy.typing import ArrayLike
from PIL import Image

from .._settings import settings
from ..errors import ImageError
from ..runtime import checks
from ..storage.paths import require_there
from ._colour import glass, to_rgb
from ._files import open_file
from ._levels import Level, pyramid
from ._stored import Meaning, Said, meaning, oddities, plain

STRIPE = 4096**2  # px of the image that are reduced to a thumbnail in one go
AMPLE = 4096**2  # px of a field of view that are laid out, of whatever image
BACKGROUND_SIZE = 512  # longest side of the thumbnail that the glass is looked for in
LOOK = 2048**2  # px of a lazy level that are read to see what stored values stand for
SAMPLE = 2**18  # px of them that are looked at


class SectionImage:
    """Lazy access to one section's H&E pixels.

    Made by `from_array`, `from_levels` or `from_file`; a context manager, as files are held open. Coordinates
    are in pixels of the finest level, x the column and y the row; pixel i covers [i, i + 1).

    Compressed tiles are decoded when a patch needs them, and the last used ones are kept, up to
    `settings.tile_cache` bytes for each open image. Threads may read from one image; another process opens its own.

    Attributes
    ----------
    name
        What messages call the image: its file name, or the slot it comes from.
    shape
        Height and width of the finest level in px.
    mpp
        Micrometres per px of the finest level where the file or the caller says so, else None.
    aspect
        Height of a px over its width, as the file says; 1 where it does not.
    recolour
        What is made of the pixels of patches before they are handed out, (n, 3, h, w) uint8; None: nothing.
    """

    def __init__(
        self,
        levels: list[Level],
        *,
        name: str,
        mpp: float | None,
        aspect: float = 1.0,
        close: Callable[[], None] | None = None,
        said: Said | None = None,
        warned: set[str] | None = None,
    ) -> None:
        self.name = name
        self.shape = (int(levels[0].size[1]), int(levels[0].size[0]))
        self.mpp = mpp
        self.aspect = aspect
        self.recolour: Callable[[np.ndarray], np.ndarray] | None = None
        self._levels = levels
        self._close = close
        self._said = said or Said()
        self._warned = set() if warned is None else warned
        self._decoded = LRUCache[Any, np.ndarray](settings.tile_cache, getsizeof=attrgetter("nbytes"))
        self._decoding = Condition()

    @classmethod
    def from_array(cls, array: Any, *, name: str, mpp: float | None = None, warned: set[str] | None = None) -> Self:
        """Wrap one array; nothing is read from it yet.

        On the first reading, values from all over the image tell what is white: 255, 1, or, with a warning, the most
        that 8, 10, 12, 14 or 16 bits hold.

        Parameters
        ----------
        array
            NumPy, dask or zarr array (or a DataArray of one), (H, W), (H, W, C) or (C, H, W) with 1 (gray),
            3 (RGB) or 4 (RGBA, composited on white) channels; uint8, uint16 or floating point.
        name
            What messages call the image.
        mpp
            Micrometres per px, if known.
        warned
            What was warned of already, on an earlier opening of the same image, and is not said again; added to.

        Raises
        ------
        TypeError
            If `array` is not an array.
        ImageError
            If its shape, data type or values are not those of such an image.
        """
        return cls.from_levels([array], name=name, mpp=mpp, warned=warned)

    @classmethod
    def from_levels(
        cls, levels: Sequence[Any], *, name: str, mpp: float | None = None, warned: set[str] | None = None
    ) -> Self:
        """Wrap a resolution pyramid, finest level first; the levels show the same field.

        Parameters
        ----------
        levels
            Arrays as `from_array` takes them, of one data type and channel count.
        name
            What messages call the image.
        mpp
            Micrometres per px of the finest level, if known.
        warned
            As in `from_array`.

        Raises
        ------
        TypeError
            If a level is not an array.
        ImageError
            If a level is no image, or if the levels are not resolutions of one image.
        """
        if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
            raise ValueError(f"image {name}: mpp must be a positive number of um per px, found {mpp}")
        return cls(pyramid(levels, name), name=name, mpp=mpp, warned=warned)

    @classmethod
    def from_file(cls, path: str | Path, *, warned: set[str] | None = None) -> Self:
        """Open an image file; its header is read now, pixels when they are asked for.

        Tiled TIFF (pyramidal, OME, Aperio SVS) and OME-Zarr are read tile by tile; PNG, JPEG, whatever else pillow
        reads and TIFF in one piece are decoded whole into memory on the first access (3 bytes per px of RGB, 7 while
        pillow decodes). An orientation tag is not applied, but warned of: spot coordinates refer to the pixels as
        stored.

        Parameters
        ----------
        path
            The file, or the folder of an OME-Zarr.
        warned
            As in `from_array`.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ImageError
            If the file is no regular file, is not an image, holds something other than a gray, RGB or RGBA image, or
            would not fit in free memory where it is decoded whole. Pixels that are damaged or cut off are found out on
            reading them.
        """
        require_there(path, "image file")  # an address would lose a slash
        path = Path(path)
        opened = open_file(path)
        scale = {"mpp": None} if opened.pixel is None else {"mpp": opened.pixel.mpp, "aspect": opened.pixel.aspect}
        try:
            image = cls(
                pyramid(opened.levels, str(path)),
                name=path.name,
                **scale,
                close=opened.close,
                said=opened.said,
                warned=warned,
            )
            for remark in opened.remarks:
                image._warn(*remark)
        except BaseException:
            if opened.close is not None:
                opened.close()
            raise
        return image

    @cached_property
    def background(self) -> np.ndarray:
        """Colour of the bare glass, (3,) uint8, estimated from the image; it fills what lies outside."""
        colour = glass(self.thumbnail(BACKGROUND_SIZE))
        colour.flags.writeable = False
        return colour

    def _warn(self, check: str, message: str) -> None:
        """Warn once, however often the image is opened."""
        if message not in self._warned:
            checks.warn(check, message)
            self._warned.add(message)

    @cached_property
    def _meaning(self) -> Meaning:
        """What stored values stand for."""
        known = plain(self._levels[0].pixels.dtype, self._levels[0].n_channels, self._said)
        if known is not None:
            return known
        found, remarks = meaning(self._sample(self._stored), self._said, self.name)
        for remark in remarks:
            self._warn(*remark)
        return found

    @cached_property
    def _looked_at(self) -> bool:
        """Whether it was seen that it looks like H&E, or warned that it does not."""
        if checks.is_on("pixel_range"):
            if self._levels[-1].lazy:
                rgb = self._sample(self._read)  # which keeps the tiles for what is read next
            else:
                rgb = to_rgb(self._sample(self._stored)[None], self._meaning, self.name)[0]
            for oddity in oddities(rgb, self.name):
                self._warn(*oddity)
        return True

    def _sample(self, read: Callable[[Level, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """(n, channels) pixels from all over the coarsest level; of a lazy one not more than some `LOOK` are read."""
        level = self._levels[-1]
        windows = level.spread(LOOK) if level.lazy else [(np.zeros(2, dtype=np.int64), level.size)]
        n_read = sum(math.prod(stop - start) for start, stop in windows)
        step = math.ceil(math.sqrt(n_read / SAMPLE))
        parts: list[np.ndarray] = []
        for number, (start, stop) in enumerate(windows):
            try:
                part = read(level, start, stop)[::step, ::step]
            except ImageError:  # a damaged tile, which is told of where it is needed
                if number == len(windows) - 1 and not parts:
                    raise
                continue
            parts.append(part.reshape(-1, part.shape[2]))
        return np.concatenate(parts)

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
        ImageError, ValueError
            If the pixels cannot be read, or an argument is out of range.
        """
        centres = np.asarray(xy, dtype=np.float64)
        if centres.ndim != 2 or centres.shape[1] != 2:
            raise ValueError(f"image {self.name}: xy must be (n, 2) columns and rows, found shape {centres.shape}")
        if not np.isfinite(centres).all():
            rows = np.flatnonzero(~np.isfinite(centres).all(axis=1))
            raise ValueError(f"image {self.name}: xy has NaN or infinite coordinates, first in row {rows[0]}")
        if not (math.isfinite(field) and field > 0):
            raise ValueError(f"image {self.name}: field must be a positive number of px, found {field}")
        if size < 1:
            raise ValueError(f"image {self.name}: size must be at least 1 px, found {size}")

        level = self._level_for(field / size)
        _ = self._looked_at
        centres = centres / level.factor
        extent = field / level.factor
        if float(extent[0]) * float(extent[1]) > max(AMPLE, 4 * math.prod(level.size.tolist())):
            return self._recoloured(self._from_afar(level, centres, extent, size))
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
        for index in _by_tile(corner, level):
            window = self._window(level, corner[index], span)
            if not whole_pixels:
                x, y = edge[index] - corner[index]
                window = _resample(window, (x, y, x + extent[0], y + extent[1]), (size, size))
            patches[index] = window.transpose(2, 0, 1)
        return self._recoloured(patches)

    def _recoloured(self, patches: np.ndarray) -> np.ndarray:
        return patches if self.recolour is None else self.recolour(patches)

    def _from_afar(self, level: Level, centres: np.ndarray, extent: np.ndarray, size: int) -> np.ndarray:
        """Patches of fields much wider than the image: what lies around the image is not laid out."""
        (width, height), steps = (int(side) for side in level.size), extent / size
        shown = np.zeros((len(centres), size, size, 3), dtype=np.float32)
        across = [_triangles(width, x - extent[0] / 2, steps[0], size) for x in centres[:, 0]]
        down = [_triangles(height, y - extent[1] / 2, steps[1], size) for y in centres[:, 1]]
        rows = max(1, STRIPE // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            stripe = self._read(level, np.array([0, top]), np.array([width, bottom])).astype(np.float32)
            stripe -= self.background
            for one, columns, lines in zip(shown, across, down, strict=True):
                one += np.tensordot(lines[:, top:bottom], np.tensordot(columns, stripe, (1, 1)), (1, 1))
        patches = np.rint(np.clip(shown + self.background, 0, 255)).astype(np.uint8)
        return np.ascontiguousarray(patches.transpose(0, 3, 1, 2))

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
        ImageError, ValueError
            If the pixels cannot be read, or `max_size` is below 1.
        """
        if max_size < 1:
            raise ValueError(f"image {self.name}: max_size must be at least 1 px, found {max_size}")
        levels = self._open_levels()
        _ = self._looked_at
        if levels[0].lazy and len(levels) > 1:
            levels = levels[1:]
        level = next((level for level in reversed(levels) if level.size.max() >= max_size), levels[0])
        width, height = (int(side) for side in level.size)

        # whole-number box averages by stripes first, leaving a factor of at least 2 to the smoother filter
        step = max(1, max(width, height) // (2 * max_size))
        rows = step * max(1, STRIPE // (width * step))
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
        with self._decoding:
            self._decoded.clear()
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

    def _open_levels(self) -> list[Level]:
        if not self._levels:
            raise ValueError(f"image {self.name} has been closed: open it again to read from it")
        return self._levels

    def _level_for(self, reduction: float) -> Level:
        levels = self._open_levels()
        fine_enough = [level for level in levels if level.factor.max() <= reduction * (1 + 1e-6)]
        return fine_enough[-1] if fine_enough else levels[0]

    def _read(self, level: Level, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """RGB uint8 (height, width, 3) of a window that lies within the level, by whole tiles where it is lazy."""
        if (stop <= start).any():
            return np.empty((0, 0, 3), dtype=np.uint8)
        if not level.lazy or level.tile_bytes > self._decoded.maxsize:
            return self._decode(level, start, stop)
        (left, top), (right, bottom) = level.tiles(np.stack([start, stop - 1]))
        window = np.empty((stop[1] - start[1], stop[0] - start[0], 3), dtype=np.uint8)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                tile = self._tile(level, column, row)
                origin = np.array([level.edges[0][column], level.edges[1][row]])
                low = np.maximum(start, origin)
                high = np.minimum(stop, origin + tile.shape[1::-1])
                window[_slices(low - start, high - start)] = tile[_slices(low - origin, high - origin)]
        return window

    # of several threads that want a tile, one decodes it and the others wait
    @cachedmethod(attrgetter("_decoded"), condition=attrgetter("_decoding"))
    def _tile(self, level: Level, column: int, row: int) -> np.ndarray:
        """RGB uint8 (height, width, 3) of one tile of a lazy level."""
        x, y = level.edges
        return self._decode(level, np.array([x[column], y[row]]), np.array([x[column + 1], y[row + 1]]))

    def _decode(self, level: Level, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """RGB uint8 (height, width, 3) of a window, from the array or the file."""
        return to_rgb(self._stored(level, start, stop), self._meaning, self.name)

    def _stored(self, level: Level, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Pixels of a window as stored, (height, width, channels)."""
        try:
            return level.read(start, stop)
        except Exception as error:
            raise ImageError(
                f"image {self.name}: the pixels of columns {start[0]} to {stop[0]}, rows {start[1]} to "
                f"{stop[1]} cannot be read ({error or type(error).__name__}): the file or store is damaged or gone; "
                "copy or download it again"
            ) from error

    def _window(self, level: Level, corner: np.ndarray, span: np.ndarray) -> np.ndarray:
        """RGB uint8 of a window of `span` px, with background where it leaves the image."""
        low, high = np.clip(corner, 0, level.size), np.clip(corner + span, 0, level.size)
        inside = self._read(level, low, high)
        if (high - low == span).all():
            return inside
        window = np.empty((span[1], span[0], 3), dtype=np.uint8)
        window[:] = self.background
        if inside.size:
            window[_slices(low - corner, high - corner)] = inside
        return window


def _triangles(length: int, start: float, step: float, size: int) -> np.ndarray:
    """Weights (size, length) of an image's px in px of `step` from `start` on, by triangles twice as wide as these."""
    reach = max(step, 1.0)
    middles = start + (np.arange(size) + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - middles[:, None]) / reach) / reach
    return weights.astype(np.float32)


def _slices(low: np.ndarray, high: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns from (x, y) `low` up to `high`."""
    return slice(low[1], high[1]), slice(low[0], high[0])


def _by_tile(corner: np.ndarray, level: Level) -> Iterable[int]:
    """Order in which windows are read: from a lazy level, those that share tiles follow each other."""
    if not level.lazy:
        return range(len(corner))
    column, row = level.tiles(corner).T
    return [int(index) for index in np.lexsort((column, row))]


def _resample(pixels: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Resample the box (left, top, right, bottom) of an RGB array to (width, height)."""
    # pillow widens the triangle filter by the reduction (so it does not alias) and centres it on the box's
    # cells to within 0.1 px; its box filter takes whole pixels only, up to half a pixel off
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))
