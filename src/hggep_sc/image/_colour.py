"""Pixels as stored to RGB, and the colour of bare glass."""

import numpy as np

from ..errors import ImageError
from ._stored import Meaning


def to_rgb(pixels: np.ndarray, meaning: Meaning, name: str) -> np.ndarray:
    """Bring (h, w, 1 | 3 | 4) pixels as stored to RGB uint8."""
    colours = _bytes(pixels[..., :3], meaning.white, name)
    if pixels.shape[2] == 1:
        return np.repeat(colours, 3, axis=2)
    if meaning.opaque is None:
        return np.ascontiguousarray(colours)
    alpha = _bytes(pixels[..., 3:], meaning.opaque, name).astype(np.uint32)
    if meaning.premultiplied:
        return np.minimum(colours + (255 - alpha), 255).astype(np.uint8)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _bytes(values: np.ndarray, white: float, name: str) -> np.ndarray:
    """Scale stored values to 0..255."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError(f"image {name}: NaN or infinite pixels: fill them, for instance with white")
    if values.dtype == np.uint8 and white == 255:
        return values
    if values.dtype.kind == "u" and white == 65535:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8)


def glass(thumbnail: np.ndarray) -> np.ndarray:
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
