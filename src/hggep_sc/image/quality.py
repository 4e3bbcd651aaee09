"""What spoils a place of a slide: out of focus, ink on it, tissue in folds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from ..runtime.validators import by_name, number
from .tissue import TissueMask, ink, optical_density, reduced

if TYPE_CHECKING:
    from . import SectionImage

GOOD, BLUR, PEN, FOLD = "good", "blur", "pen", "fold"
THRESHOLDS = {BLUR: 0.03, PEN: 0.1, FOLD: 0.2}  # sharpness below, shares of a tile above
SHARP_UM = 1.0  # um per px at which sharpness is looked at
COARSE_UM = 1.1  # um per px of an image from which on it cannot be
LEAST_UM = 50.0  # side of the square that sharpness is told from, at least
PIXELS = 2**24  # read at once
DENSE = 90.0  # percentile of the tissue's densities, with which a fold is compared
GREEN, EOSIN = 1.3, 1.0  # how many times as dense a fold is at least
FOLD_PX = 3  # of the mask, over which density is averaged


def thresholds(given: bool | Mapping[str, float]) -> dict[str, float] | None:
    """Return the thresholds of `pp.tile(quality=)`, with those that are given in place of the usual ones.

    Raises
    ------
    TypeError, ValueError
        For what is neither True, False nor a dict of numbers, or has an unknown name.
    """
    if isinstance(given, bool | np.bool_):
        return dict(THRESHOLDS) if given else None
    if not isinstance(given, Mapping):
        raise TypeError(f"quality={given!r} must be True, False or a dict of thresholds: {THRESHOLDS}")
    found = by_name("quality", given)
    if unknown := [name for name in found if name not in THRESHOLDS]:
        raise ValueError(f"quality= names {', '.join(unknown)}; there are {', '.join(map(repr, THRESHOLDS))}")
    return THRESHOLDS | {name: number(f"quality[{name!r}]", value, least=0) for name, value in found.items()}


def tile_quality(
    image: "SectionImage",
    thumbnail: np.ndarray,
    tissue: TissueMask,
    xy: np.ndarray,
    side: float,
    mpp: float,
    limits: Mapping[str, float],
) -> Any:
    """Say of each tile whether it is good, and if not why.

    Parameters
    ----------
    image
        An open image.
    thumbnail
        (h, w, 3) uint8 RGB, the whole of it, reduced.
    tissue
        Where there is tissue.
    xy
        (n, 2) centres, px of the image's finest level.
    side
        Of the tiles, px of the image's finest level.
    mpp
        um per px of the image's finest level.
    limits
        A number for each of `THRESHOLDS`.

    Returns
    -------
    Categorical (n,) of "good", "blur", "pen" and "fold"; of a tile that has several faults pen comes before fold, and
    fold before blur. Where the image has more than 1.1 um per px, blur is not looked for.
    """
    import pandas as pd

    pen, fold = defects(thumbnail, image.shape, tissue, mpp)
    label = np.full(len(xy), GOOD, dtype=object)
    if mpp <= COARSE_UM:
        label[sharpness(image, xy, side, mpp) < limits[BLUR]] = BLUR
    label[fold.share(xy, side) > limits[FOLD]] = FOLD
    label[pen.share(xy, side) > limits[PEN]] = PEN
    return pd.Categorical(label, categories=[GOOD, BLUR, PEN, FOLD])


def defects(
    thumbnail: np.ndarray, shape: tuple[int, int], tissue: TissueMask, mpp: float
) -> tuple[TissueMask, TissueMask]:
    """Find ink and folds.

    Ink has colours that H&E does not make. In a fold tissue lies threefold and all dyes absorb as much more: it is
    denser in green, which both absorb, than nearly all tissue of the slide, and has as much eosin, which lets red
    through. Crowded nuclei are as dense, but have little eosin.

    Returns
    -------
    Masks of ink and of folds.
    """
    pixels, factor = reduced(thumbnail, shape, mpp)
    density = optical_density(pixels)
    rows, columns = np.indices(pixels.shape[:2]).reshape(2, -1) + 0.5
    seen = tissue.contains(np.column_stack([columns, rows]) * factor).reshape(pixels.shape[:2])
    folded = np.zeros_like(seen)
    if seen.any():
        red, green = (ndimage.uniform_filter(density[..., channel], FOLD_PX) for channel in (0, 1))
        eosin = green - red
        dense, stained = (np.percentile(values[seen], DENSE) for values in (green, eosin))
        folded = seen & (green > GREEN * dense) & (eosin > EOSIN * stained)
    return TissueMask(ink(density), factor, mpp), TissueMask(folded, factor, mpp)


def sharpness(image: "SectionImage", xy: np.ndarray, side: float, mpp: float) -> np.ndarray:
    """Variance of the Laplacian of each tile's optical density in green, over that of the density itself, (n,).

    It is looked at with 1 um per px, over at least 50 um. The quotient does not depend on how strongly the tissue is
    stained. Tiles of one colour have none: infinite.
    """
    field = max(side, LEAST_UM / mpp)
    size = max(1, round(field * mpp / SHARP_UM))
    batch = max(1, PIXELS // size**2)
    found = []
    for start in range(0, len(xy), batch):
        green = image.read_patches(xy[start : start + batch], field=field, size=size)[:, 1]
        density = -np.log((green + 1.0) / 256)
        variance = density.var(axis=(1, 2))
        edges = ndimage.laplace(density, axes=(1, 2))[:, 1:-1, 1:-1].var(axis=(1, 2))
        found.append(np.divide(edges, variance, out=np.full(len(edges), np.inf), where=variance > 0))
    return np.concatenate(found)
