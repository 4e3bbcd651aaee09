"""Where on a reduced H&E image there is tissue: stained in H&E's colours, and not smooth as glass and smears are."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage

from ..errors import InputError
from . import glass

PIXEL_UM = 8.0  # side of a pixel of the mask: nuclei still make it rough, a spot is a dozen across
LOOK_PX = 2048  # longest side of what is looked at
UNSCALED_PX = 1024  # longest side where the scale is unknown: its pixels are then taken as PIXEL_UM wide
SIGMA = 3.0  # px over which colour and roughness are averaged
SMALLEST_UM = 250.0  # side of a square as large as the smallest piece, and as the largest gap that is closed
BLACK = 2.2  # optical density in all channels of what hardly lets light through: scanners' borders
# evidence, see `_evidence`: glass and smears stay below, faint tissue above; Otsu's threshold is sought between
LEAST, MOST = 0.02, 0.05
INK_OD = 0.3  # optical density of green light from which a colour is trusted to be ink's
INK_PX = 30  # smallest stroke or blot; red cells make dots


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class TissueMask:
    """Where on an image there is tissue, at a low resolution.

    Attributes
    ----------
    mask
        (h, w) bool: tissue. Zero and one other value, as image editors save a mask, are taken as well.
    factor
        (2,) float: px of the coordinates per px of the mask, in x and in y.
    mpp
        um per px of the coordinates, None where unknown.

    Raises
    ------
    TypeError, ValueError
        If `mask` is no mask, or `factor` or `mpp` no positive numbers.
    """

    mask: np.ndarray
    factor: np.ndarray
    mpp: float | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", two_valued(self.mask, "`mask` of a TissueMask"))
        try:
            factor = np.asarray(self.factor, dtype=np.float64)
        except (TypeError, ValueError):
            factor = np.empty(0)
        if factor.shape != (2,) or not (np.isfinite(factor) & (factor > 0)).all():
            raise ValueError(
                "`factor` of a TissueMask must be two positive numbers, px of the image per px of the mask in x and "
                f"in y; found {self.factor!r}"
            )
        object.__setattr__(self, "factor", factor)
        number = isinstance(self.mpp, int | float | np.number) and not isinstance(self.mpp, bool)
        if self.mpp is not None and not (number and 0 < self.mpp < math.inf):
            raise ValueError(f"`mpp` of a TissueMask is um per px, a positive number, or None; found {self.mpp!r}")

    @classmethod
    def over(cls, mask: Any, shape: tuple[int, int], mpp: float | None) -> "TissueMask":
        """Lay a mask over a whole image.

        Parameters
        ----------
        mask
            (h, w) array of two values, 0 where there is no tissue, of the image's proportions.
        shape
            Height and width of the image, px.
        mpp
            um per px of the image.

        Returns
        -------
        The mask; its `factor` is px of the image per px of the mask.

        Raises
        ------
        TypeError, ValueError
            If it is no mask, or of other proportions.
        """
        found = two_valued(mask, "`tissue`")
        factor = np.array(shape[::-1]) / found.shape[::-1]
        # a reduced size is rounded to whole px
        if abs(np.log(factor[0] / factor[1])) > max(0.02, 1 / min(found.shape)):
            raise InputError(
                f"`tissue` is a mask of {_size(found.shape)} px, and the image has {_size(shape)}: of one image, the "
                "proportions would be the same. Is it turned, cropped or of another slide?"
            )
        return cls(found, factor, mpp)

    def require_covers(self, shape: tuple[int, int]) -> None:
        """Refuse a mask that is not of an image of this height and width.

        Raises
        ------
        ValueError
            If what it covers has another size.
        """
        covered = self.factor * self.mask.shape[::-1]
        wanted = np.array(shape[::-1])
        if (np.abs(covered - wanted) > np.maximum(self.factor, 0.02 * wanted)).any():
            raise InputError(
                f"`tissue`: its mask of {_size(self.mask.shape)} px times its factor ({self.factor[0]:.4g}, "
                f"{self.factor[1]:.4g}) covers {_size(covered[::-1])} px, and the image has {_size(shape)}. Is it of "
                "another slide, turned or resized? A mask of another size goes as an array: `tissue=mask`"
            )

    def contains(self, xy: ArrayLike) -> np.ndarray:
        """Tell which points lie on tissue.

        Parameters
        ----------
        xy
            (n, 2) columns and rows, in px of the full image.

        Returns
        -------
        (n,) bool; False outside the image.
        """
        x, y = np.floor(np.asarray(xy, dtype=np.float64).reshape(-1, 2) / self.factor).astype(np.int64).T
        height, width = self.mask.shape
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return inside & self.mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]

    def share(self, xy: ArrayLike, side: float) -> np.ndarray:
        """Part of the area of squares that is tissue.

        Parameters
        ----------
        xy
            (n, 2) centres, columns and rows, in px of the full image.
        side
            Side of the squares, in px of the full image.

        Returns
        -------
        (n,) float64 from 0 to 1; what lies outside the image is no tissue.
        """
        centres = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        low, high = (centres - side / 2) / self.factor, (centres + side / 2) / self.factor
        # the integral is bilinear within a pixel: interpolation is exact
        corners = [(high[:, 1], high[:, 0]), (low[:, 1], high[:, 0]), (high[:, 1], low[:, 0]), (low[:, 1], low[:, 0])]
        a, b, c, d = (ndimage.map_coordinates(self._integral, at, order=1, mode="nearest") for at in corners)
        return np.clip((a - b - c + d) / (side**2 / np.prod(self.factor)), 0, 1)

    @cached_property
    def _integral(self) -> np.ndarray:
        """(h + 1, w + 1) float64: tissue px above and left of each corner of a pixel."""
        return np.pad(self.mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0))).astype(np.float64)


def two_valued(mask: Any, what: str) -> np.ndarray:
    """Read a mask: booleans, or zero and one other value.

    Parameters
    ----------
    mask
        An array.
    what
        What messages call it.

    Returns
    -------
    (h, w) bool.

    Raises
    ------
    TypeError
        If it is no array of numbers.
    ValueError
        If it is of another shape, or has other values.
    """
    if not (hasattr(mask, "shape") and hasattr(mask, "dtype")):
        raise TypeError(f"{what} must be a 2-D array of booleans, True where there is tissue; found {_type(mask)}")
    found = np.asarray(mask)
    if found.ndim != 2 or not found.size:
        raise ValueError(
            f"{what} has shape {found.shape}, (height, width) is expected: of a mask in colours, give one channel, "
            "such as mask[..., 0]"
        )
    if found.dtype == bool:
        return found
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{what} holds values of type {found.dtype}; booleans are expected, True where there is tissue")
    values = np.unique(found)
    tissue = values[values != 0]
    if len(tissue) > 1 or (found.dtype.kind == "f" and (tissue != 1).any()):  # NaN too
        raise ValueError(
            f"{what} holds values from {values[0]:.4g} to {values[-1]:.4g}, {len(values)} of them; a mask has two, 0 "
            "where there is no tissue and another where there is. Give booleans, such as mask > 127 or mask > 0.5"
        )
    return found != 0


def is_gray(pixels: np.ndarray) -> bool:
    """Whether an RGB uint8 image has no colours."""
    low, high = pixels.min(axis=2), pixels.max(axis=2)
    return bool((high - low <= 2).all())


def _size(shape: Any) -> str:
    """Width and height for a message."""
    return f"{shape[1]:.6g} x {shape[0]:.6g}"


def _type(item: Any) -> str:
    return f"{item!r:.40} ({type(item).__name__})"


def find_tissue(thumbnail: np.ndarray, shape: tuple[float, float], *, mpp: float | None) -> TissueMask:
    """Find the tissue on an image.

    Parameters
    ----------
    thumbnail
        (h, w, 3) uint8 RGB: the whole image, reduced to at most `LOOK_PX`.
    shape
        Height and width of the full image, px.
    mpp
        um per px of the full image, None where unknown.
    """
    pixels, factor = reduced(thumbnail, shape, mpp)
    pixel_um = PIXEL_UM if mpp is None else float(factor.mean()) * mpp
    # of a field of view that is itself small, a tenth
    smallest = min((SMALLEST_UM / pixel_um) ** 2, 0.1 * math.prod(pixels.shape[:2]))
    return TissueMask(tissue_pixels(pixels, smallest=smallest), factor, mpp)


def reduced(thumbnail: np.ndarray, shape: tuple[float, float], mpp: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Reduce the image to some 8 um per px, and return it with how many px of the full image one has in x and in y."""
    wanted = UNSCALED_PX if mpp is None else max(1, round(max(shape) * mpp / PIXEL_UM))
    reduction = max(thumbnail.shape[:2]) / wanted
    if reduction > 1:
        height, width = (max(1, round(side / reduction)) for side in thumbnail.shape[:2])
        thumbnail = np.asarray(Image.fromarray(thumbnail).resize((width, height), Image.Resampling.BOX))
    return thumbnail, np.array(shape[::-1]) / thumbnail.shape[1::-1]


def optical_density(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 RGB to how much of the light that glass lets through is absorbed, natural logarithms, float32."""
    return (np.log(glass(pixels) + 1.0) - np.log(pixels + 1.0)).astype(np.float32)


def tissue_pixels(pixels: np.ndarray, *, smallest: float) -> np.ndarray:
    """Tell tissue from glass, smears, dirt, ink and borders.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8 RGB, some 8 um per px.
    smallest
        Px of the smallest piece of tissue, and of the largest gap in it that is closed.

    Returns
    -------
    (h, w) bool.
    """
    from skimage.filters import threshold_otsu

    density = optical_density(pixels)
    foreign = ink(density) | (density.min(axis=2) > BLACK)
    evidence = _evidence(density, ~foreign)
    threshold = np.clip(np.exp(threshold_otsu(np.log(np.maximum(evidence, LEAST / 2)))), LEAST, MOST)
    # averaging carried the evidence beyond the tissue's edge; at the image's edge there is nothing to take back
    mask = ndimage.binary_erosion(evidence > threshold, iterations=int(SIGMA), border_value=1)
    mask = _without_small(mask, smallest)
    # a fold may be as dark as ink, but not as large
    return ~_without_small(~mask, smallest) & ~_without_small(foreign, smallest) if mask.any() else mask


def ink(density: np.ndarray) -> np.ndarray:
    """Strokes in colours that H&E does not make: blue and green absorb red most, red lets it through, black nothing."""
    red, green, blue = (ndimage.uniform_filter(density[..., channel], 3) for channel in range(3))
    cold = (red > INK_OD) & (red > 1.35 * green)
    warm = (green > 2 * INK_OD) & (red < 0.25 * green) & (blue > 0.65 * green)
    dark = (green > 2 * INK_OD) & (np.minimum(red, blue) > 0.85 * green)
    strokes = _without_small(cold | warm | dark, INK_PX)
    return ndimage.binary_dilation(strokes, iterations=2)  # their edge is mixed with glass


def _evidence(density: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Geometric mean of how much more green than blue is absorbed, and of how rough it is; 0 where nothing is seen.

    Both dyes absorb green most; shadows, dirt and black borders absorb all alike. Smears of eosin are smooth.
    """
    weight = ndimage.gaussian_filter(seen.astype(np.float32), SIGMA)

    def average(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values * seen, SIGMA) / np.maximum(weight, 1e-6)

    green = density[..., 1]
    colour = average(green - density[..., 2])
    rough = np.sqrt(np.maximum(average(green**2) - average(green) ** 2, 0))
    return np.sqrt(np.maximum(colour, 0) * rough) * seen


def _without_small(mask: np.ndarray, smallest: float) -> np.ndarray:
    """Leave out connected pieces of fewer px."""
    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= smallest
    large[0] = False
    return large[pieces]
