"""What stored values stand for: the white point, the fourth channel, and whether it looks like H&E at all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ImageError
from ..runtime import checks

WHITES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
FAINTEST = 15  # brightest value of a byte below which shades are lost: it held 4 bits, or a mask
LIT = 16  # brightest colour above which a pixel is no black border
DIM = 80  # luminance that half of what is lit exceeds in H&E, however dense the tissue
DARK = 128  # luminance that the brightest of H&E exceeds
CONTRAST = 12  # of luminance, which any tissue exceeds


@dataclass(frozen=True)
class Said:
    """What a file says of its channels beyond their number; None where it says nothing.

    Attributes
    ----------
    white
        Stored value of full intensity.
    fourth
        What the fourth channel is.
    """

    white: float | None = None
    fourth: Literal["alpha", "premultiplied", "something else"] | None = None


@dataclass(frozen=True)
class Meaning:
    """How stored values become colours.

    Attributes
    ----------
    white
        Stored value of full intensity.
    opaque
        Stored value of the fourth channel where nothing shines through; None where the channel is not used.
    premultiplied
        Whether colours are stored multiplied by the fourth channel.
    """

    white: float
    opaque: float | None = None
    premultiplied: bool = False


def plain(dtype: np.dtype, n_channels: int, said: Said) -> Meaning | None:
    """Return the meaning that needs no look at the values: bytes without transparency; None for others."""
    return Meaning(said.white or 255) if dtype == np.uint8 and n_channels < 4 else None


def meaning(sample: np.ndarray, said: Said, name: str) -> tuple[Meaning, list[tuple[str, str]]]:
    """Tell what the values of an image stand for.

    Parameters
    ----------
    sample
        (n, channels) pixels as stored, from all over the image.
    said
        What the file says.
    name
        What messages call the image.

    Returns
    -------
    The meaning, and what to warn of: names of checks and messages.

    Raises
    ------
    ImageError
        If values are not of a kind that is read, or what is white is not clear.
    """
    white, remarks = _white(sample[:, :3], said, name)
    if sample.shape[1] < 4:
        return Meaning(white), remarks
    fourth = sample[:, 3]
    top = float(fourth.max())
    if said.fourth == "something else":
        if fourth.min() < top:
            remarks.append(
                ("channels", f"image {name}: its fourth channel is not transparency by the file, and is left out")
            )
        return Meaning(white), remarks
    if top == 0:
        remarks.append(
            ("channels", f"image {name}: its fourth channel is 0 throughout, not transparency, and is left out")
        )
        return Meaning(white), remarks
    opaque = _smallest((1, *WHITES), top, sample.dtype)
    clear, solid = (fourth <= 0).mean(), (fourth >= 0.99 * opaque).mean()
    if said.fourth is None and not (solid >= 0.05 and clear + solid >= 0.5):
        checks.refuse(
            "channels",
            f"image {name}: its fourth channel has values between 0 and {top:g} where transparency is mostly none or "
            "all: it seems to be another stain or infrared. Give the first three channels, such as image[..., :3]",
        )
    return Meaning(white, opaque, said.fourth == "premultiplied"), remarks


def _white(colours: np.ndarray, said: Said, name: str) -> tuple[float, list[tuple[str, str]]]:
    """Return the stored value of full intensity, and what to warn of."""
    dtype = colours.dtype
    low, high = float(colours.min()), float(colours.max())
    # interpolation overshoots a little; a NaN fails the comparison
    if not (low >= -0.1 * max(high, 1.0) and high <= WHITES[-1] * 1.1):
        raise ImageError(
            f"image {name}: floating-point values from {low:.4g} to {high:.4g}, expected 0..1 or 0..255: give the "
            "image before any normalisation, or convert it to uint8"
        )
    if dtype.kind == "u":
        full = float(np.iinfo(dtype).max)
        lit = colours[colours < full]  # those at the limit may be tiles that were left out
        top = float(np.percentile(lit if lit.size else colours, 99.9))
    else:
        top = float(np.percentile(colours, 99.9))
        full = 1.0 if top <= 1.5 else 255.0
    if low == high or dtype == np.uint8:  # nothing to tell it by; of bytes, `oddities` tells
        return (said.white or full), []
    if said.white is not None and said.white / 2 < top <= said.white:
        return said.white, []
    white = 1.0 if dtype.kind == "f" and top <= 1.5 else _smallest(WHITES, top, dtype)
    stated = said.white is not None and top <= said.white
    if top <= white / 2 or stated:
        claim = (
            f"the file says that {said.white:g} is white" if stated else "no usual white (255, 1023, 4095, ...) is near"
        )
        checks.refuse(
            "pixel_range",
            f"image {name}: the range of its {dtype.name} values is {low:.4g} to {top:.4g}, which would be dark, and "
            f"{claim}: scale it to 8 bits, for instance with (image / white * 255).astype('uint8')",
        )
        return said.white or full, []
    if white == full or (dtype.kind == "f" and white == WHITES[0]):
        return white, []
    bits = int(white).bit_length()
    return white, [
        (
            "pixel_range",
            f"image {name}: its {dtype.name} values range up to {top:.4g}, as those of {bits} bits do: {white:g} is "
            "taken for white",
        )
    ]


def _smallest(whites: tuple[int, ...], top: float, dtype: np.dtype) -> float:
    """Return the smallest usual white that values up to `top` do not exceed (but for an overshoot of interpolation)."""
    slack = 1.1 if dtype.kind == "f" else 1.0
    return float(next(white for white in whites if top <= white * slack))


def oddities(rgb: np.ndarray, name: str) -> Iterator[tuple[str, str]]:
    """Tell what makes pixels, (n, 3) uint8 from all over an image, unlike H&E: names of checks, and messages.

    Raises
    ------
    ImageError
        If the pixels are no picture.
    """
    bright = rgb @ np.array([0.299, 0.587, 0.114])
    low, high = np.percentile(bright, [0.1, 99.9])
    top = int(rgb.max())
    if rgb.min() < top <= FAINTEST:
        checks.refuse(
            "pixel_range",
            f"image {name}: its pixels are all but black, in a range of 0 to {top} of 255, as a mask or an image that "
            "was scaled twice: give the image itself",
        )
    lit = rgb.max(axis=1) > LIT
    if high - low < CONTRAST:
        shade = "white" if low > 200 else "black" if high < 50 else "gray or one colour"
        yield (
            "pixel_range",
            f"image {name}: it is nearly {shade} throughout (brightness {low:.0f} to {high:.0f} of 255), as no tissue "
            "is: look whether it is the right image, and scaled to the whole range",
        )
    elif high < DARK or (middle := np.median(bright[lit])) < DIM:
        seen = (
            f"nothing in it is brighter than {high:.0f}"
            if high < DARK
            else f"half of what is not black is below {middle:.0f}"
        )
        yield (
            "pixel_range",
            f"image {name}: it is dark ({seen} of 255), while H&E is tissue on bright glass: look whether it is "
            "fluorescence, dark-field or inverted, or does not use the range of its data type",
        )
