"""Features of a slide: what an encoder makes of its tissue at several scales, averaged over windows.

At each scale a window has `size` px, and what the encoder sees of it has real pixels around it, `HALO` px on each side.
There are two routes to the same feature. *Maps*: the tissue under and around the windows is encoded in tiles, and
summed-area tables give the mean over any window. *Crops*: every window is encoded by itself, with its surroundings.
The one that encodes fewer pixels is taken, scale by scale.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from ..image import SectionImage

logger = logging.getLogger(__name__)

HALO = 64  # px of real surroundings: the next 80 px of the receptive field change a feature by a few percent of its sd
TILE = 640  # px of a tile without its halo: larger maps do not fit a CPU's cache, smaller ones are mostly halo
CROPS = 8  # encoded at once

Route = Literal["maps", "crops"]
MapsOf = Callable[[Tensor], Sequence[Tensor]]  # (N, 3, S, S) uint8 to a map (N, C, S / stride, S / stride) per stage


def summed_area(maps: Tensor) -> Tensor:
    """Sums of maps (C, H, W) over everything above and left of each corner, (C, H + 1, W + 1), double precision."""
    return F.pad(maps.double().cumsum(1).cumsum(2), (1, 0, 1, 0))


def window_sums(table: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sums over windows of a map that is constant in each of its cells.

    Parameters
    ----------
    table
        (C, H + 1, W + 1) of `summed_area`.
    low, high
        (n, 2) corners of the windows, x and y in cells, of which the part outside of the map counts nothing.

    Returns
    -------
    (n, C), double precision: the table at a window's corners, read bilinearly.
    """
    extent = torch.tensor([table.shape[2] - 1, table.shape[1] - 1], dtype=torch.double, device=table.device)
    (left, top), (right, bottom) = (corner.clamp(min=extent * 0, max=extent).T for corner in (low, high))
    corners = [torch.stack(corner, dim=1) for corner in ((right, bottom), (left, bottom), (right, top), (left, top))]
    at = torch.stack(corners) / extent * 2 - 1  # (4, n, 2), in -1..1 as grid_sample has them
    sums = F.grid_sample(table[None], at[None], align_corners=True)[0]  # (C, 4, n)
    return (sums[:, 0] - sums[:, 1] - sums[:, 2] + sums[:, 3]).T


def tiles_under(centres: np.ndarray, size: float) -> np.ndarray:
    """Which tiles of the scale's px windows touch, (n_tiles, 2) column and row, each once, row by row."""
    first = np.floor((centres - size / 2) / TILE).astype(np.int64)
    last = np.ceil((centres + size / 2) / TILE).astype(np.int64) - 1
    touched = [
        np.clip(first + [column, row], first, last)
        for row in range(int((last - first)[:, 1].max()) + 1)
        for column in range(int((last - first)[:, 0].max()) + 1)
    ]
    found = np.unique(np.concatenate(touched), axis=0)
    return found[np.lexsort(found.T)]


def pixels_encoded(centres: np.ndarray, size: int) -> dict[Route, int]:
    """Px that an encoder is given for windows of a scale by either route; centres in px of the scale."""
    return {
        "maps": len(tiles_under(centres, size)) * (TILE + 2 * HALO) ** 2,
        "crops": len(centres) * (size + 2 * HALO) ** 2,
    }


def cheaper_route(centres: np.ndarray, size: int) -> Route:
    """Return the route that encodes fewer pixels."""
    cost = pixels_encoded(centres, size)
    return min(cost, key=cost.__getitem__)


def window_means(
    image: "SectionImage", centres: np.ndarray, field: float, size: int, maps_of: MapsOf, *, route: Route | None = None
) -> np.ndarray:
    """Average what an encoder makes of a slide over windows of one scale.

    Parameters
    ----------
    image
        An open image.
    centres
        (n, 2) centres of the windows, px of the image's finest level.
    field
        Side of the windows, px of the image's finest level.
    size
        Their side in px of the scale.
    maps_of
        What the encoder makes of pixels, a map per stage; strides are those of the maps.
    route
        "maps" or "crops"; None takes the cheaper one.

    Returns
    -------
    (n, D) float32, the stages after one another.
    """
    step = field / size
    route = route or cheaper_route(centres / step, size)
    means = _from_crops if route == "crops" else _from_maps
    return means(image, centres, step, size, maps_of)


def _from_crops(image: "SectionImage", centres: np.ndarray, step: float, size: int, maps_of: MapsOf) -> np.ndarray:
    side = size + 2 * HALO
    found = []
    for start in range(0, len(centres), CROPS):
        pixels = image.read_patches(centres[start : start + CROPS], field=side * step, size=side)
        found.append(torch.cat([_inner(maps, size / side) for maps in maps_of(torch.from_numpy(pixels))], dim=1))
    return torch.cat(found).float().cpu().numpy()


def _inner(maps: Tensor, share: float) -> Tensor:
    """Mean over the middle of square maps (N, C, H, W), a share of their side, (N, C)."""
    side = maps.shape[-1]
    low = torch.full((1, 2), (1 - share) / 2 * side, dtype=torch.double, device=maps.device)
    return torch.cat([window_sums(summed_area(each), low, side - low) for each in maps]) / (share * side) ** 2


def _from_maps(image: "SectionImage", centres: np.ndarray, step: float, size: int, maps_of: MapsOf) -> np.ndarray:
    at, side = centres / step, TILE + 2 * HALO
    sums: Tensor | None = None
    for tile, tables in _tiles(image, tiles_under(at, size), step, maps_of):
        near = np.flatnonzero((np.abs(at - (tile + 0.5) * TILE) < (TILE + size) / 2).all(axis=1))
        middle = torch.from_numpy(at[near] - tile * TILE).to(tables[0].device)
        parts = []
        for table in tables:
            cell = TILE / (table.shape[-1] - 1)  # px of the scale in a cell
            area = (size / cell) ** 2
            parts.append(window_sums(table, (middle - size / 2) / cell, (middle + size / 2) / cell) / area)
        part = torch.cat(parts, dim=1)
        sums = part.new_zeros(len(at), part.shape[1]) if sums is None else sums
        sums[torch.from_numpy(near).to(part.device)] += part
    assert sums is not None and side  # every window touches a tile
    return sums.float().cpu().numpy()


def _tiles(
    image: "SectionImage", tiles: np.ndarray, step: float, maps_of: MapsOf
) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
    """Yield each tile and the summed-area tables of its stages, without the halo."""
    side = TILE + 2 * HALO
    for tile in tiles:
        centre = (tile + 0.5) * TILE * step
        pixels = torch.from_numpy(image.read_patches(centre[None], field=side * step, size=side))
        tables = []
        for maps in maps_of(pixels):
            margin = HALO * maps.shape[-1] // side
            tables.append(summed_area(maps[0, :, margin:-margin, margin:-margin]))
        yield tile, tables
