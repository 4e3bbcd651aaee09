"""Patches: how large a field of view is in px of an image, and reading all fields around every spot."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .section import spot_spacing

if TYPE_CHECKING:
    from .baselines import BaselineConfig
    from .config import Config
    from .image import SectionImage
    from .section import Section

logger = logging.getLogger(__name__)

BATCH_SPOTS = 64  # that are read and encoded at once, unless the caller says otherwise

SAME_SCALE = 0.02  # scales closer than this are not worth resampling for
OTHER_SCALE = 1.5  # times the model's, or a part of it: said
READ_SPOTS = 1024  # whose patches are held beside `out`
NEIGHBOURS = 1.5  # spacings of spots: nearer ones are neighbours, however small their patches
COARSE = 0.5  # px of the image per px of the patch, below which detail is missed


def model_mpp(sections: Sequence["Section"]) -> float | None:
    """Return the scale a model is trained at: the finest of its sections', or None where it is unknown."""
    known = [s.mpp for s in sections if s.mpp is not None]
    missing = [s.name for s in sections if s.mpp is None and s.has_image]
    if known and missing:
        raise ValueError(
            f"the physical scale (um per px) is known for some training sections and unknown for {missing}: "
            "give mpp= (a number, or a dict by section name)"
        )
    return min(known) if known else None


def fields_of_view(
    config: "Config | BaselineConfig", model_mpp: float | None, section_mpp: float | None
) -> tuple[float, ...]:
    """Return the side of each field of view in px of a section's image.

    They are `fields_um` where the model's scale is known, else `fields_px`. A section of another scale than the
    model's gets as many um in more or fewer px; where one of the scales is unknown they are taken as equal.
    """
    if model_mpp is None:
        return config.fields_px
    at_model = config.fields_px if config.fields_um is None else tuple(um / model_mpp for um in config.fields_um)
    ratio = 1.0 if section_mpp is None else model_mpp / section_mpp
    if abs(ratio - 1) < SAME_SCALE:
        ratio = 1.0
    return tuple(px * ratio for px in at_model)


def spots_per_batch(batch_size: int | None) -> int:
    """Spots whose patches are held at once: as asked for, else 64."""
    if batch_size is None:
        return BATCH_SPOTS
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    return batch_size


def say_if_scale_differs(section: "Section", model_mpp: float | None) -> None:
    """Warn where a section's physical scale is far from the model's, or unknown and taken for it."""
    if model_mpp is None or not section.has_image:
        return
    if section.mpp is None:
        logger.warning(
            "section %r: its physical scale is unknown and taken to be the model's, %.3g um per px; "
            "give mpp= if it is another",
            section.name,
            model_mpp,
        )
    elif max(section.mpp / model_mpp, model_mpp / section.mpp) > OTHER_SCALE:
        logger.warning(
            "section %r was scanned at %.3g um per px, the training sections at %.3g: its patches are resampled, and "
            "look sharper or more blurred than those that were learnt from",
            section.name,
            section.mpp,
            model_mpp,
        )


def say_if_coarse(section: "Section", fields: Sequence[float], size: int) -> None:
    """Warn where a section's image holds much less detail than the network looks for."""
    if min(fields) < COARSE * size:
        logger.warning(
            "section %r: the smallest field of view is only %.0f px wide in %s and is enlarged to %d px: detail is "
            "missing; use the full-resolution image where there is one",
            section.name,
            min(fields),
            section.image_name,
            size,
        )


def read_patches(
    image: "SectionImage", xy: np.ndarray, fields: Sequence[float], size: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Read the patches of all fields of view around spots.

    Parameters
    ----------
    image
        An open image.
    xy
        (n, 2) centres, px of the image's finest level.
    fields
        Sides of the fields of view, px of the image's finest level.
    size
        Side of the patches, px.
    out
        Array to fill.

    Returns
    -------
    uint8 (n, fields, 3, size, size).
    """
    if out is None:
        out = np.empty((len(xy), len(fields), 3, size, size), dtype=np.uint8)
    for start in range(0, len(xy), READ_SPOTS):
        spots = slice(start, start + READ_SPOTS)
        for i, field in enumerate(fields):
            out[spots, i] = image.read_patches(xy[spots], field=field, size=size)
    return out


def reach(xy: np.ndarray, field: float) -> float:
    """Return within what distance spots share tissue in their patches or are neighbours, in the unit of both."""
    return max(field, NEIGHBOURS * (spot_spacing(xy) or 0.0))


def within(xy: np.ndarray, others: np.ndarray, distance: float) -> np.ndarray:
    """Tell which spots lie nearer to one of the others than a distance along both axes, as square patches overlap.

    Returns
    -------
    (n_spots,) bool.
    """
    from scipy.spatial import KDTree

    return np.isfinite(KDTree(others).query(xy, p=np.inf, distance_upper_bound=distance)[0])
