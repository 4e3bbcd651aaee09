"""What the legacy Spatial Transcriptomics data sets have in common: tables, geometry, making the AnnData."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _keys
from ..runtime.validators import names

if TYPE_CHECKING:
    from anndata import AnnData

SPACING = 200.0  # um, centre to centre
DIAMETER = 100.0  # um, of a spot
HIRES = 2000  # px, longest side of the copy in `uns`


def choose(sections: str | Sequence[str] | None, *, default: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names asked for, in the order asked; ValueError for one that the study does not have."""
    if sections is None:
        return list(default)
    chosen = [sections] if isinstance(sections, str) else names("sections", sections)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"No section {', '.join(map(repr, unknown))} in this data set; there are {', '.join(known)}.")
    return chosen


def read_counts(path: Path) -> pd.DataFrame:
    """Spots x genes, row names `XxY`."""
    return pd.read_csv(path, sep="\t", index_col=0, low_memory=False)


def read_spots(path: Path, *, selected_alone: bool = False) -> pd.DataFrame:
    """Spots under tissue: array x, y and pixel_x, pixel_y, row names `XxY`.

    They are marked by a column `selected`, which may lack where the file holds them alone.
    """
    spots = pd.read_csv(path, sep="\t")
    needed = {"x", "y", "pixel_x", "pixel_y"} | (set() if selected_alone else {"selected"})
    missing = needed - set(spots)
    if missing:
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}: not a spot file of this study.")
    if "selected" in spots:
        spots = spots[spots["selected"] == 1]
    spots = spots.assign(x=_whole(spots["x"]), y=_whole(spots["y"]))
    return spots.set_index(spots["x"].astype(str) + "x" + spots["y"].astype(str))


def _whole(places: pd.Series) -> pd.Series:
    """Places on the array as integers, which row names are made of, where the file writes "16.0"."""
    rounded = places.round()
    return rounded.astype(np.int64) if np.allclose(places, rounded, rtol=0, atol=1e-6) else places


def pitch(array: np.ndarray, pixels: np.ndarray) -> float:
    """Pixels per step of the array, by an affine fit that outlying spots do not pull.

    Parameters
    ----------
    array, pixels
        (n, 2) array and pixel coordinates of the same spots.

    Returns
    -------
    Mean over the two array axes (geometric, so that a turned array gives the same).
    """
    design = np.column_stack([array, np.ones(len(array))]).astype(np.float64)
    kept = np.ones(len(array), bool)
    for _ in range(3):
        fit = np.linalg.lstsq(design[kept], pixels[kept], rcond=None)[0]
        distance = np.linalg.norm(pixels - design @ fit, axis=1)
        kept = distance <= 3 * np.median(distance) + 1e-9
    return float(np.sqrt(abs(np.linalg.det(fit[:2]))))


def hires_copy(path: Path, longest: int = HIRES) -> tuple[np.ndarray, float]:
    """Copy of at most `longest` px (uint8, height x width x 3), and its px per full-resolution px."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # whole sections are larger than pillow's guess at an attack
    try:
        with Image.open(path) as image:
            width, height = image.size
            scale = min(longest / max(width, height), 1.0)
            size = (max(round(width * scale), 1), max(round(height * scale), 1))
            image.draft("RGB", size)  # a JPEG decoder shrinks by 2, 4 or 8 while it reads
            copy = image.convert("RGB")
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if copy.size != size:
        copy = copy.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(copy), scale


def library(image: Path, *, microns_per_pixel: float, diameter: float, technology: str) -> dict[str, Any]:
    """`uns["spatial"][section]` in Space Ranger's layout; `diameter` in um."""
    hires, scale = hires_copy(image)
    return {
        "images": {"hires": hires},
        "scalefactors": {
            "tissue_hires_scalef": scale,
            "spot_diameter_fullres": diameter / microns_per_pixel,
            "microns_per_pixel": microns_per_pixel,
        },
        "metadata": {"source_image_path": str(image.absolute()), "technology": technology},
    }


def assemble(
    name: str,
    counts: pd.DataFrame,
    spots: pd.DataFrame,
    image: Path,
    *,
    step: int,
    spacing: float = SPACING,
    diameter: float = DIAMETER,
) -> "AnnData":
    """AnnData of the spots that have both counts and a position, in the order of the counts.

    `step` steps of the array are `spacing` um, and a spot has `diameter` um.
    """
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    counts = counts[counts.index.isin(spots.index)]
    spots = spots.loc[counts.index]
    if not len(spots):
        raise ValueError(f"Section {name}: no row name of its counts is in its spot file.")
    array, pixels = spots[["x", "y"]].to_numpy(np.int64), spots[["pixel_x", "pixel_y"]].to_numpy(np.float64)
    obs = pd.DataFrame(
        {_keys.IN_TISSUE: 1, _keys.ARRAY_ROW: array[:, 1], _keys.ARRAY_COL: array[:, 0]},
        index=counts.index.astype(str).rename(None),
    )
    var = pd.DataFrame(index=counts.columns.astype(str))
    adata = AnnData(csr_matrix(counts.to_numpy(np.float32)), obs=obs, var=var)
    adata.obsm[_keys.SPATIAL] = pixels
    mpp = spacing / (step * pitch(array, pixels))
    adata.uns[_keys.SPATIAL] = {name: library(image, microns_per_pixel=mpp, diameter=diameter, technology="ST")}
    return adata
