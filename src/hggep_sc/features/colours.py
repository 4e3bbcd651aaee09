"""Statistics of colour and texture of patches, on any device."""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
LUMINANCE = (2125, 7154, 721)  # of red, green and blue in 10,000, as in skimage's rgb2gray; exact in float32
DARKEST = 1e-6  # of pixels in 0..1, as in skimage's rgb2hed
GRADIENT_SCALES = 4  # 1, 2, 4 and 8 px
PATTERN_SCALES = 2
NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))  # rows and columns, around
DIAGONAL = 70711  # where a circle of radius 100,000 meets the diagonals, as skimage rounds it
N_STATISTICS = 6 * (2 + len(QUANTILES)) + 2 * 2 * GRADIENT_SCALES + PATTERN_SCALES * (len(NEIGHBOURS) + 2)


def colour_and_texture(patches: Tensor) -> Tensor:
    """Compute statistics of colour and texture.

    Parameters
    ----------
    patches
        uint8 (n, 3, S, S), RGB.

    Returns
    -------
    float32 (n, 90): mean, standard deviation and seven quantiles of red, green, blue, haematoxylin, eosin and DAB
    (Ruifrok & Johnston 2001), the quantiles of the stains to half precision; mean and standard deviation of the
    gradient of luminance and haematoxylin, at four scales; shares of the uniform local binary patterns (Ojala et al.
    2002) of the luminance, at two.
    """
    codes, pixels = patches.flatten(2).int(), patches.flatten(2).float()
    stains = _stains(codes)
    moments = [_moments(channels) for channels in (pixels / 255, stains)]
    bright = torch.arange(256, device=patches.device) / 255
    # halves from 0 to 2 have the bits of the whole numbers from 0 to 16384, in the same order
    halves = torch.arange(1 << 14, dtype=torch.int16, device=patches.device).view(torch.float16).float()
    quantiles = [_quantiles(codes, bright), _quantiles(stains.half().view(torch.int16), halves)]
    luminance = _mix(pixels, LUMINANCE).view(-1, 1, *patches.shape[2:])
    maps = torch.cat([luminance / (255 * sum(LUMINANCE)), stains[:, :1].view(luminance.shape)], dim=1)
    gradients = [_moments(_gradient(scaled).flatten(2)) for scaled in _scales(maps, GRADIENT_SCALES)]
    features = [*(torch.cat(of_both, dim=1) for of_both in zip(*moments, strict=True)), *quantiles]
    features.append(torch.stack([torch.stack(of_scale, dim=2) for of_scale in gradients], dim=2))
    steps = [(scaled[:, 0] / sum(LUMINANCE)).int() for scaled in _scales(luminance, PATTERN_SCALES)]
    features += [_binary_patterns(of_scale) for of_scale in steps]
    return torch.cat([feature.flatten(1) for feature in features], dim=1)


def _mix(channels: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted sum of channels, (n, 3, ...) to (n, ...); a matrix product would be rounded more on some devices."""
    red, green, blue = channels.unbind(1)
    return (weights[0] * red).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])


def _stains(codes: Tensor) -> Tensor:
    """RGB in 0..255 to haematoxylin, eosin and DAB, both (n, 3, N)."""
    from skimage.color import hed_from_rgb

    density = (torch.arange(256) / 255).clamp(min=DARKEST).log() / math.log(DARKEST)
    of_pixels = density.to(codes.device).index_select(0, codes.flatten()).view(codes.shape)
    return torch.stack([_mix(of_pixels, weights) for weights in hed_from_rgb.T.tolist()], dim=1).clamp_(min=0)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the last axis."""
    mean = values.mean(-1, keepdim=True)
    return mean[..., 0], torch.linalg.vector_norm(values - mean, dim=-1) / math.sqrt(values.shape[-1])


def _quantiles(codes: Tensor, values: Tensor) -> Tensor:
    """Quantiles by counting, linear between the two nearest.

    Parameters
    ----------
    codes
        (n, channels, N) whole numbers.
    values
        What they stand for, rising.

    Returns
    -------
    (n, channels, quantiles).
    """
    counts = _counts(codes.flatten(0, 1), len(values))
    rank = torch.tensor(QUANTILES, dtype=torch.float64) * (codes.shape[2] - 1)
    ranks = torch.cat([rank.floor(), rank.ceil()]).long().to(codes.device)
    found = torch.searchsorted(counts.cumsum(1), ranks.expand(len(counts), -1).contiguous(), right=True)
    low, high = values[found].chunk(2, dim=1)
    return torch.lerp(low, high, rank.frac().to(low)).view(*codes.shape[:2], -1)


def _counts(codes: Tensor, n: int) -> Tensor:
    """How often each of the codes 0 to n - 1 is in each row, (rows, n)."""
    rows = torch.arange(0, n * len(codes), n, dtype=torch.int32, device=codes.device)
    return torch.bincount((codes + rows[:, None]).flatten(), minlength=n * len(codes)).view(-1, n)


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
    size = maps.shape[axis]
    first, second, before, last = (maps.narrow(axis, at, 1) for at in (0, 1, size - 2, size - 1))
    longer = torch.cat([2 * first - second, maps, 2 * last - before], dim=axis)
    return (longer.narrow(axis, 2, size) - longer.narrow(axis, 0, size)) / 2


def _binary_patterns(luminance: Tensor) -> Tensor:
    """Shares of the uniform local binary patterns of int32 (n, S, S), 0..255, (n, 10).

    A neighbour counts where it is not darker than the pixel; those on the diagonals lie between four pixels, and
    what is outside is black. Whole numbers: where all are alike, rounding would decide.
    """
    height, width = luminance.shape[1:]
    padded = F.pad(luminance, (1, 1, 1, 1))
    brighter = {(y, x): padded[:, 1 + y :, 1 + x :][:, :height, :width] - luminance for y, x in NEIGHBOURS}
    darker = torch.zeros_like(luminance)
    for bit, (y, x) in enumerate(NEIGHBOURS):
        difference = brighter[y, x]
        if x and y:  # bilinear, times 10^10 / DIAGONAL
            beside = brighter[y, 0] + brighter[0, x]
            difference = beside.mul_(100_000 - DIAGONAL).add_(difference, alpha=DIAGONAL)
        darker.sub_(difference >> 31, alpha=1 << bit)  # -1 where it is negative
    shares = _counts(darker.flatten(1), 1 << len(NEIGHBOURS)).float() / (height * width)
    return shares @ _uniform().to(shares)


@cache
def _uniform() -> Tensor:
    """Class of each code of darker neighbours: how many are not, where those adjoin, else the last of ten."""
    codes = torch.arange(1 << len(NEIGHBOURS))
    bits = 1 - (codes[:, None] >> torch.arange(len(NEIGHBOURS)) & 1)
    changes = (bits.diff(dim=1) != 0).sum(1)  # from the first to the last, as in skimage
    return F.one_hot(torch.where(changes <= 2, bits.sum(1), len(NEIGHBOURS) + 1))
