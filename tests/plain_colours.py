"""Statistics of colour and texture by scikit-image and NumPy, one square at a time: the fast ones agree with these."""

import numpy as np
from skimage.color import rgb2gray, rgb2hed
from skimage.feature import local_binary_pattern
from skimage.transform import downscale_local_mean


def plain_colour_statistics(square: np.ndarray, margin: int = 0) -> np.ndarray:
    """uint8 (3, S, S) to (48,), of all but a margin; both in whole cells of 8 px."""
    pixels = square.transpose(1, 2, 0)
    stains = rgb2hed(pixels / 255)
    channels = [*np.moveaxis(pixels / 255, 2, 0), *np.moveaxis(stains, 2, 0)]
    scales = zip(_scales(rgb2gray(pixels), 4), _scales(stains[..., 0], 4), strict=True)
    channels += [np.hypot(*np.gradient(values)) for of_scale in scales for values in of_scale]
    inner = [_inner(values, margin * len(values) // len(pixels)) for values in channels]
    patterns = []
    # whole numbers, of grays the gray itself
    for scaled in _scales(pixels.astype(int) @ [2125, 7154, 721] / 10_000, 2):
        codes = local_binary_pattern(scaled.astype(np.uint8), 8, 1, "uniform").astype(int)
        codes = _inner(codes, margin * len(codes) // len(pixels))
        patterns.append(np.bincount(codes.ravel(), minlength=10) / codes.size)
    return np.concatenate([[c.mean() for c in inner], [c.std() for c in inner], *patterns])


def _scales(maps: np.ndarray, n: int) -> list[np.ndarray]:
    scaled = [maps]
    for _ in range(n - 1):
        scaled.append(downscale_local_mean(scaled[-1], (2, 2)))
    return scaled


def _inner(values: np.ndarray, margin: int) -> np.ndarray:
    return values[margin : len(values) - margin, margin : len(values) - margin]
