"""What an encoder makes of a slide, averaged over the windows around spots.

A spot's features at a scale are the mean of the encoder's maps over the spot's window, the encoder having seen the
slide around the window too. There are two ways to them. *Maps*: the tissue under and around windows is encoded in
tiles, and summed-area tables give the mean over any window. *Crops*: each window is encoded by itself with real pixels
around it, and its inner part averaged. Where windows overlap much, maps cost less; where spots lie far apart, crops do.
Either way what lies more than `Sight.surroundings` px away from a window or a tile is not seen. With surroundings as
wide as the encoder sees, and windows on whole cells, both are the same; as they are, they differ about as much as crops
taken a px aside, most in the deepest maps. A vision transformer takes squares of one size alone: a crop is the window,
as its authors use it, and tiles overlap.
"""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._settings import settings
from ..nn import Sight
from ..runtime.device import encoder_precision
from .describe import AtOnce, in_parts
from .parts import halved
from .windows import middle, summed_area, window_sums

if TYPE_CHECKING:
    from ..image import SectionImage

logger = logging.getLogger(__name__)

SIGHT = Sight()  # of HGGEP's own encoder, and of colours

PIXELS = 2**18  # encoded at once by each thread of a CPU, unless one tile or crop has more
PART_SPOTS, PART_PIXELS = 2048, 2**25  # of spots that are described together, at most: what a kill loses

MapsOf = Callable[[Tensor], Sequence[Tensor]]  # (N, 3, S, S) uint8 to maps (N, C, S / stride, S / stride)


@dataclass(frozen=True, eq=False)
class Squares:
    """Squares of pixels to be encoded, and the windows in them: one in the middle of each, or all in one square.

    Attributes
    ----------
    scale
        Which of the fields of view they belong to.
    spots
        (n,) whose windows these are.
    centres
        (k, 2) of the squares, px of the scale; k is n for crops, 1 for a tile.
    side
        Of a square, px of the scale, its surroundings with it.
    windows
        (n, 2) upper left corners of the windows in a tile, px from where its surroundings end; None for crops.
    """

    scale: int
    spots: np.ndarray
    centres: np.ndarray
    side: int
    windows: np.ndarray | None


def parts_of(xy: np.ndarray, fields: Sequence[float], size: int, sight: Sight = SIGHT) -> list[np.ndarray]:
    """Split spots into compact groups that are described together: by their number, and by how much is to be encoded.

    Parameters
    ----------
    xy
        (n, 2) spot centres, px of the image's finest level.
    fields
        Sides of the windows, px of the image's finest level.
    size
        Sides of the windows, px of the scale at which they are read.
    sight
        How the encoder sees a slide.
    """

    def fits(spots: np.ndarray) -> bool:
        if len(spots) > PART_SPOTS:
            return False
        of_scales = (costs(xy[spots] * (size / field), size, sight) for field in fields)
        return sum(min(cost.values()) for cost in of_scales) <= PART_PIXELS

    return halved(xy, fits)


def tiles_under(centres: np.ndarray, size: int, sight: Sight) -> tuple[np.ndarray, int]:
    """Cut what windows cover into squares.

    Parameters
    ----------
    centres
        (n, 2) of the windows, px of the scale.
    size
        Sides of the windows, px.
    sight
        How the encoder sees a slide.

    Returns
    -------
    Upper left corners (k, 2) of those squares that a window touches, row by row, and their side, px.
    """
    start = np.floor((centres - size / 2).min(axis=0) / sight.stride) * sight.stride
    extent = (centres + size / 2).max(axis=0) - start
    side = sight.stride * int(np.ceil((extent / np.ceil(extent / sight.tile)).max() / sight.stride))
    side = side if sight.native is None else sight.tile
    first = np.floor((centres - size / 2 - start) / side).astype(np.int64)
    last = np.ceil((centres + size / 2 - start) / side).astype(np.int64) - 1
    steps = (last - first).max(axis=0) + 1
    touched = [
        np.clip(first + np.array([column, row]), first, last)
        for row in range(int(steps[1]))
        for column in range(int(steps[0]))
    ]
    found = np.unique(np.concatenate(touched)[:, ::-1], axis=0)[:, ::-1]
    return start + found * side, side


def side_of_crop(size: int, sight: Sight) -> int:
    """Return the side of the square that a window is encoded in as a crop, px of the scale."""
    if sight.native is not None:
        return sight.native
    return sight.stride * -(-(size + 2 * sight.surroundings) // sight.stride)


def costs(centres: np.ndarray, size: int, sight: Sight = SIGHT) -> dict[str, int]:
    """Count the px that are encoded by either way, for windows of one scale."""
    corners, side = tiles_under(centres, size, sight)
    return {
        "maps": len(corners) * (side + 2 * sight.surroundings) ** 2,
        "crops": len(centres) * side_of_crop(size, sight) ** 2,
    }


def _way(centres: np.ndarray, size: int, sight: Sight) -> str:
    """Return the way that costs less, unless `settings.feature_route` asks for one."""
    if settings.feature_route != "auto":
        return settings.feature_route
    found = costs(centres, size, sight)
    return min(found, key=found.__getitem__)


def _squares(centres: np.ndarray, size: int, scale: int, way: str, batch: int, sight: Sight) -> Iterator[Squares]:
    """Yield what is to be encoded at one scale; `centres` in px of it."""
    if way == "crops":
        side = side_of_crop(size, sight)
        for start in range(0, len(centres), batch):
            spots = np.arange(start, min(start + batch, len(centres)))
            yield Squares(scale, spots, centres[spots], side, None)
        return
    corners, side = tiles_under(centres, size, sight)
    low = centres - size / 2
    for corner in corners:
        spots = np.flatnonzero(((low < corner + side) & (low + size > corner)).all(axis=1))
        middle_of_tile = (corner + side / 2)[None]
        yield Squares(scale, spots, middle_of_tile, side + 2 * sight.surroundings, low[spots] - corner)


def describe_windows(
    image: "SectionImage",
    parts: Sequence[np.ndarray],
    fields: Sequence[float],
    size: int,
    describe: Sequence[MapsOf],
    *,
    batch_size: int,
    device: torch.device,
    sight: Sight = SIGHT,
) -> Generator[list[Tensor], None, None]:
    """Average what each function makes of the slide over the windows around spots, without gradients.

    Parameters
    ----------
    image
        An open image.
    parts
        (n, 2) centres of the spots of each part, px of the image's finest level.
    fields
        Sides of the windows, px of the image's finest level.
    size
        Sides of the windows, px of the scale at which they are read.
    describe
        Take (N, 3, S, S) uint8, S a multiple of 16, and give maps.
    batch_size
        Crops that a GPU encodes at once.
    device
        Where the functions find the pixels.
    sight
        How the encoder among them sees a slide.

    Yields
    ------
    For each part the averages of each function's maps over the windows, (n, fields, C), float32, on the CPU.
    """
    if sight.native not in (None, size):
        raise ValueError(f"config.patch_size={size}: this encoder takes patches of {sight.native} px and no other")
    steps = [field / size for field in fields]
    batch = batch_size if device.type != "cpu" else max(PIXELS // side_of_crop(size, sight) ** 2, 1)
    ways = [[_way(xy / step, size, sight) for step in steps] for xy in parts]
    work = [
        [
            squares
            for scale, (step, way) in enumerate(zip(steps, of_part, strict=True))
            for squares in _squares(xy / step, size, scale, way, batch, sight)
        ]
        for xy, of_part in zip(parts, ways, strict=True)
    ]
    _say(work, ways, fields, image.name)
    at_once = AtOnce(batch, "crops")

    def read(squares: Squares) -> Tensor:
        step = steps[squares.scale]
        return torch.from_numpy(
            image.read_patches(squares.centres * step, field=squares.side * step, size=squares.side)
        )

    def compute(squares: Squares, pixels: Tensor) -> list[Tensor]:
        average = partial(_over_windows, squares=squares, size=size, surroundings=sight.surroundings)
        functions = [partial(_averages, maps_of=maps_of, average=average) for maps_of in describe]
        return [found.cpu() for found in at_once.apply(functions, pixels.to(device, non_blocking=True))]

    with closing(in_parts(work, read, compute, device=device)) as results:
        for xy, of_part, arriving in zip(parts, work, results, strict=True):
            sums: list[Tensor] = []
            for squares, found in zip(of_part, arriving, strict=True):
                sums = sums or [part.new_zeros((len(xy), len(fields), part.shape[1])).double() for part in found]
                for total, part in zip(sums, found, strict=True):
                    total[torch.from_numpy(squares.spots), squares.scale] += part
            yield [total.float() for total in sums]


def _averages(pixels: Tensor, maps_of: MapsOf, average: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode squares and average their maps over windows, (n, C) of all maps side by side."""
    with encoder_precision(pixels.device):
        maps = maps_of(pixels)
    return torch.cat([average(of_stage) for of_stage in maps], dim=1)


def _over_windows(maps: Tensor, squares: Squares, size: int, surroundings: int) -> Tensor:
    """Average the maps (N, C, H, H) of squares over the windows in them, (n, C), double precision.

    A window may lie in a tile in part alone: the averages of all tiles add up to the window's.
    """
    maps = maps.cpu() if maps.device.type == "mps" else maps  # which has no double precision
    if squares.windows is None:
        return middle(maps, size / squares.side).double()
    stride = squares.side // maps.shape[-1]
    margin = surroundings // stride
    low = torch.from_numpy(squares.windows).to(maps.device) / stride
    end = maps.shape[-1] - margin
    inside = maps[0, :, margin:end, margin:end]
    return window_sums(summed_area(inside), low, low + size / stride) * (stride / size) ** 2


def _say(work: Sequence[Sequence[Squares]], ways: Sequence[Sequence[str]], fields: Sequence[float], name: str) -> None:
    """Log which way was taken, and what it costs."""
    pixels: Counter[str] = Counter()
    for squares, of_part in zip(work, ways, strict=True):
        for one in squares:
            pixels[of_part[one.scale]] += len(one.centres) * one.side**2
    told = ", ".join(f"{pixels[way] / 1e6:.1f} million px by {way}" for way in sorted(pixels))
    logger.info("image %s: %d fields of view are encoded, %s", name, len(fields), told)
