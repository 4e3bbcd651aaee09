"""Physical scale: um per px, from the technology's spacing of spots where nothing better is known."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._values import entries, number, text

logger = logging.getLogger(__name__)

SPACING_UM = {"visium": 100.0, "st": 200.0}  # centre to centre


def checked_mpp(mpp: Any) -> float | None:
    if mpp is None:
        return None
    if isinstance(mpp, bool) or not isinstance(mpp, int | float | np.number) or not (0 < mpp < np.inf):
        raise ValueError(f"`mpp` is um per px, a positive number; found {mpp!r}")
    return float(mpp)


def is_hd(entry: Mapping[str, Any]) -> bool:
    """Whether a library is of Visium HD, whose spots are square bins."""
    metadata = entries(entry, "metadata")
    words = f"{text(metadata.get('technology')) or ''} {text(metadata.get('chemistry_description')) or ''}"
    return "visium hd" in words.lower() or "bin_size_um" in entries(entry, "scalefactors")


def _technology_spacing(entry: Mapping[str, Any]) -> float | None:
    """Distance from spot to spot in um, where the technology is named."""
    metadata = entries(entry, "metadata")
    if is_hd(entry):
        return number(entries(entry, "scalefactors").get("bin_size_um"))
    technology = (text(metadata.get("technology")) or "").lower()
    if technology in SPACING_UM:
        return SPACING_UM[technology]
    chemistry = (text(metadata.get("chemistry_description")) or "").lower()
    return SPACING_UM["visium"] if "visium" in chemistry or "spatial 3'" in chemistry else None


def spot_spacing(xy: np.ndarray) -> float | None:
    """Median distance to the nearest other spot, None for a single spot."""
    if len(xy) < 2:
        return None
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]))


def spacing_mpp(entry: Mapping[str, Any], xy: np.ndarray) -> float | None:
    """Scale in um per px from the spacing of the spots, where the technology is named."""
    spacing = _technology_spacing(entry)
    distance = spot_spacing(xy) if spacing is not None else None
    return spacing / distance if spacing is not None and distance is not None else None


def say_unknown_scale(name: str) -> None:
    logger.warning(
        "section %r: the physical scale of the image is unknown, and is taken as equal to that of the "
        "other sections. Give it by `mpp=` (um per px)",
        name,
    )
