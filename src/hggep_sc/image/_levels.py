"""Resolution levels: arrays of pixels, in memory or lazy, with their layout and scale."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import ImageError

# px along a tile's edge, at least: reading a smaller chunk costs more than decoding it
TILE = 256
LARGEST = 2**40  # values of an image; a glass slide at 0.1 um per px has a fifth


@dataclass
class Whole:
    """An array that can only be decoded as a whole, on the first access."""

    shape: tuple[int, ...]
    dtype: np.dtype
    decode: Callable[[], np.ndarray]

    @cached_property
    def pixels(self) -> np.ndarray:
        """The decoded array."""
        return self.decode()

    def __getitem__(self, window: tuple[slice, ...]) -> np.ndarray:
        return self.pixels[window]


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Level:
    """One resolution of the image; sizes and factors are in (x, y) order."""

    pixels: Any
    channel_axis: int | None
    size: np.ndarray  # (2,) int: width, height
    factor: np.ndarray  # (2,) px of the finest level per px of this one

    @property
    def lazy(self) -> bool:
        """Whether every reading of a window costs."""
        return not isinstance(self.pixels, np.ndarray | Whole)

    @property
    def n_channels(self) -> int:
        """How many values a pixel has."""
        return 1 if self.channel_axis is None else int(self.pixels.shape[self.channel_axis])

    @cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Where tiles begin and the last one ends, along x and along y: those of chunks, small ones several at once."""
        chunks = getattr(self.pixels, "chunks", None) or (TILE,) * len(self.pixels.shape)
        rows, columns = (chunk for axis, chunk in enumerate(chunks) if axis != self.channel_axis)
        return _edges(int(self.size[0]), columns), _edges(int(self.size[1]), rows)

    @cached_property
    def tile_bytes(self) -> int:
        """Bytes of the largest tile as RGB uint8."""
        x, y = self.edges
        return 3 * int(np.diff(x).max()) * int(np.diff(y).max())

    def tiles(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) column and row of the tiles that (n, 2) pixels lie in, or that are nearest to them."""
        columns, rows = (
            np.clip(np.searchsorted(edges, points[:, axis], side="right") - 1, 0, len(edges) - 2)
            for axis, edges in enumerate(self.edges)
        )
        return np.stack([columns, rows], axis=1)

    def spread(self, most: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Windows (`start`, `stop`) of tiles from all over the level, of about `most` px together but at least 16."""
        x, y = self.edges
        per_side = max(4, math.isqrt(3 * most // self.tile_bytes))
        columns, rows = (
            np.unique(np.linspace(0, len(edges) - 2, min(per_side, len(edges) - 1)).round().astype(int))
            for edges in (x, y)
        )
        return [
            (np.array([x[column], y[row]]), np.array([x[column + 1], y[row + 1]])) for row in rows for column in columns
        ]

    def read(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Pixels as stored, (height, width, channels), from (x, y) `start` up to `stop`."""
        window: tuple[slice, ...] = (slice(int(start[1]), int(stop[1])), slice(int(start[0]), int(stop[0])))
        if self.channel_axis is None:
            return np.asarray(self.pixels[window])[..., None]
        if self.channel_axis == 2:
            return np.asarray(self.pixels[(*window, slice(None))])
        return np.moveaxis(np.asarray(self.pixels[(slice(None), *window)]), 0, -1)


def _edges(size: int, chunk: int | tuple[int, ...]) -> np.ndarray:
    """Edges of tiles from the side of regular chunks, or from the sides of all."""
    if isinstance(chunk, tuple):
        starts, side = np.cumsum((0, *chunk[:-1])), max(chunk)
    else:
        starts, side = np.arange(0, size, chunk), chunk
    return np.append(starts[:: max(1, TILE // side)], size)


def pyramid(arrays: Sequence[Any], name: str) -> list[Level]:
    """Check the levels and work out their layout and scale."""
    if not len(arrays):
        raise ImageError(f"image {name}: no resolution levels: give at least one array")
    finest: tuple[np.ndarray, int, np.dtype] | None = None
    levels: list[Level] = []
    for array in arrays:
        pixels, axis = _layout(array, name)
        spatial = [side for i, side in enumerate(pixels.shape) if i != axis]
        size = np.array(spatial[::-1], dtype=np.int64)
        kind = (1 if axis is None else int(pixels.shape[axis]), pixels.dtype)
        if finest is None:
            finest = (size, *kind)
        elif kind != finest[1:]:
            raise ImageError(
                f"image {name}: its levels differ in channels or data type ({finest[1]} of {finest[2]}, "
                f"{kind[0]} of {kind[1]}): give the levels of one image"
            )
        elif (size > levels[-1].size).any():
            raise ImageError(f"image {name}: its levels must run from the finest to the coarsest")
        factor = finest[0] / size
        # a level made by halving is a trimmed or padded half: its factor is 2, whatever the sizes' ratio is
        nominal = np.round(factor)
        halved = (finest[0] // nominal == size) | (-(-finest[0] // nominal) == size)
        factor = np.where(halved, nominal, factor)
        if (np.abs(finest[0] / factor.mean() - size) > np.maximum(2, 0.02 * size)).any():
            raise ImageError(
                f"image {name}: its levels have different proportions ({finest[0].tolist()} and "
                f"{size.tolist()} px, width and height): give the levels of one image"
            )
        levels.append(Level(pixels, axis, size, factor))
    return levels


def _layout(array: Any, name: str) -> tuple[Any, int | None]:
    """Return the array, unwrapped from a DataArray, and the axis of its channels; refuse other things."""
    # tensors have all of these too, but a dtype of their own
    is_array = all(hasattr(array, attribute) for attribute in ("shape", "dtype", "__getitem__"))
    if not is_array or not isinstance(array.dtype, np.dtype):
        raise TypeError(f"image {name}: expected a NumPy, dask or zarr array of pixels, found {type(array).__name__}")
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
        raise ImageError(
            f"image {name}: shape {shape}, expected (height, width), (height, width, channels) or "
            "(channels, height, width) with 1 (gray), 3 (RGB) or 4 (RGBA) channels: pick the H&E image's "
            "channels"
        )
    if 0 in shape:
        raise ImageError(f"image {name}: shape {shape} holds no pixels")
    if math.prod(shape) > LARGEST:
        raise ImageError(f"image {name}: shape {shape} is more than any slide has: its header or metadata are damaged")
    kind, itemsize = array.dtype.kind, array.dtype.itemsize
    if not ((kind == "u" and itemsize in (1, 2)) or kind == "f"):
        raise ImageError(
            f"image {name}: data type {array.dtype}, expected uint8, uint16 or floating point (0..1 or "
            "0..255): convert it, for instance with image.astype('uint8') where the values are 0..255"
        )
    return array, axis
