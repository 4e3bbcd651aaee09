"""Colour and texture as maps, whose averages over a window give their statistics there; on any device."""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (2125, 7154, 721)  # of red, green and blue in 10,000, as in skimage's rgb2gray; exact in float32
DARKEST = 1e-6  # of pixels in 0..1, as in skimage's rgb2hed
GRADIENT_SCALES = 4  # 1, 2, 4 and 8 px
PATTERN_SCALES = 2
CELL = 2 ** (GRADIENT_SCALES - 1)  # px of a map's cell: one of the coarsest gradient's
NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))  # rows and columns, around
PATTERNS = len(NEIGHBOURS) + 2
DIAGONAL = 70, 29  # parts of the corner and of the pixels beside it where a circle of radius 1 meets a diagonal
SPREAD = 6 + 2 * GRADIENT_SCALES  # quantities of which the standard deviation is told beside the mean
N_STATISTICS = 2 * SPREAD + PATTERN_SCALES * PATTERNS


def colour_maps(pixels: Tensor) -> list[Tensor]:
    """Compute maps from whose averages over a window `colour_statistics` are made.

    Parameters
    ----------
    pixels
        uint8 (n, 3, S, S), RGB; S a multiple of 8.

    Returns
    -------
    One tensor, float32 (n, 48, S / 8, S / 8): averages over cells of 8 px of red, green and blue (0..1), haematoxylin,
    eosin and DAB (Ruifrok & Johnston 2001) and of the gradient of luminance and haematoxylin at four scales; of the
    squares of all of these; and the shares of the uniform local binary patterns (Ojala et al. 2002) of the luminance,
    at two scales.
    """
    stains = _stains(pixels)
    luminance = _mix(pixels.float(), LUMINANCE)[:, None]
    maps = torch.cat([luminance / (255 * sum(LUMINANCE)), stains[:, :1]], dim=1)
    measured = [pixels / 255, stains, *map(_gradient, _scales(maps, GRADIENT_SCALES))]
    means = [_in_cells(values, pixels) for values in measured]
    squares = [_in_cells(values.square_(), pixels) for values in measured]
    cells = means[0].shape[2], means[0].shape[3]
    steps = [(scaled[:, 0] / sum(LUMINANCE)).short() for scaled in _scales(luminance, PATTERN_SCALES)]
    return [torch.cat([*means, *squares, *(_binary_patterns(of_scale, cells) for of_scale in steps)], dim=1)]


def _in_cells(values: Tensor, pixels: Tensor) -> Tensor:
    """Average what was computed of pixels, at any scale, over the cells."""
    return F.avg_pool2d(values, CELL * values.shape[-1] // pixels.shape[-1])


def colour_statistics(averages: Tensor) -> Tensor:
    """Turn averages of `colour_maps` over windows (..., 48) into statistics of colour and texture (..., 48).

    These are the means, standard deviations in place of mean squares, and shares of patterns.
    """
    mean, square, shares = averages.split([SPREAD, SPREAD, PATTERN_SCALES * PATTERNS], dim=-1)
    return torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt(), shares], dim=-1)


def _mix(channels: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted sum of channels, (n, 3, ...) to (n, ...); a matrix product would be rounded more on some devices."""
    red, green, blue = channels.unbind(1)
    return (weights[0] * red).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])


def _stains(pixels: Tensor) -> Tensor:
    """RGB in 0..255 to haematoxylin, eosin and DAB, both (n, 3, H, W)."""
    from skimage.color import hed_from_rgb

    density = (torch.arange(256) / 255).clamp(min=DARKEST).log() / math.log(DARKEST)
    of_pixels = density.to(pixels.device).index_select(0, pixels.flatten().int()).view(pixels.shape)
    return torch.stack([_mix(of_pixels, weights) for weights in hed_from_rgb.T.tolist()], dim=1).clamp_(min=0)


def _scales(maps: Tensor, n: int) -> list[Tensor]:
    """(n_patches, maps, S, S) maps, and the same averaged over 2 x 2, 4 x 4, ... px."""
    scaled = [maps]
    for _ in range(n - 1):
        even = maps.shape[-1] // 2 * 2
        rows = maps[..., 0:even:2, :even] + maps[..., 1:even:2, :even]
        maps = (rows[..., 0::2] + rows[..., 1::2]) / 4
        scaled.append(maps)
    return scaled


def _gradient(maps: Tensor) -> Tensor:
    """Length of the gradient."""
    down, right = _slope(maps, 2), _slope(maps, 3)
    return down.square_().addcmul_(right, right).sqrt_()


def _slope(maps: Tensor, axis: int) -> Tensor:
    """Central differences; at the edges, beyond which maps go on straight, those to the neighbour."""
    size, slope = maps.shape[axis], torch.empty_like(maps)
    pairs = ((0, 1, 0, 1, 1), (1, 2, 0, size - 2, 2), (size - 1, size - 1, size - 2, 1, 1))
    for at, high, low, length, apart in pairs:
        difference = maps.narrow(axis, high, length) - maps.narrow(axis, low, length)
        slope.narrow(axis, at, length).copy_(difference.div_(apart))
    return slope


def _binary_patterns(luminance: Tensor, cells: tuple[int, int]) -> Tensor:
    """Shares of the uniform local binary patterns of int16 (n, H, W), 0..255, in each cell: (n, 10, *cells).

    A neighbour counts where it is not darker than the pixel; those on the diagonals lie between four pixels, and
    what is outside is black. Whole numbers: where all are alike, rounding would decide.
    """
    n, height, width = luminance.shape
    padded = F.pad(luminance, (1, 1, 1, 1))
    brighter = {(y, x): padded[:, 1 + y :, 1 + x :][:, :height, :width] - luminance for y, x in NEIGHBOURS}
    darker = torch.zeros_like(luminance)
    for bit, (y, x) in enumerate(NEIGHBOURS):
        difference = brighter[y, x]
        if x and y:  # bilinear
            corner, beside = DIAGONAL
            difference = (brighter[y, 0] + brighter[0, x]).mul_(beside).add_(difference, alpha=corner)
        darker.sub_(difference >> 15, alpha=1 << bit)  # -1 where it is negative
    rows, columns = cells
    cell = torch.arange(0, n * rows * columns * PATTERNS, PATTERNS, dtype=torch.int32, device=luminance.device)
    patterns = _uniform().to(luminance.device).index_select(0, darker.int().flatten())
    in_cells = patterns.view(n, rows, height // rows, columns, width // columns) + cell.view(n, rows, 1, columns, 1)
    counts = torch.bincount(in_cells.flatten(), minlength=n * rows * columns * PATTERNS)
    return counts.view(n, rows, columns, PATTERNS).permute(0, 3, 1, 2).float() * (rows * columns / (height * width))


@cache
def _uniform() -> Tensor:
    """Class of each code of darker neighbours: how many are not, where those adjoin, else the last of ten."""
    codes = torch.arange(1 << len(NEIGHBOURS))
    bits = 1 - (codes[:, None] >> torch.arange(len(NEIGHBOURS)) & 1)
    changes = (bits.diff(dim=1) != 0).sum(1)  # from the first to the last, as in skimage
    return torch.where(changes <= 2, bits.sum(1), PATTERNS - 1).int()
