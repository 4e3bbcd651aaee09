"""Patches: how large a field of view is in px of an image, and reading all fields around every spot."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import ImageWarning, ScaleWarning, UnlikeTrainingWarning
from ..runtime import checks
from ..runtime.messages import warn
from ..runtime.validators import whole

if TYPE_CHECKING:
    from ..image import SectionImage
    from ..section import Section

BATCH_SPOTS = 64  # that are read and encoded at once, unless the caller says otherwise

SAME_SCALE = 0.02  # scales closer than this are not worth resampling for
OTHER_SCALE = 1.5  # times the model's, or a part of it: said
OTHER_SPACING = 2.1  # likewise; Visium's 100 um and the 200 um of legacy arrays go together
READ_SPOTS = 1024  # whose patches are held beside `out`
FEW_SPOTS = 8  # of a section, whose mean and spread are those of chance
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


def model_reduction(sections: Sequence["Section"]) -> float:
    """Return full-resolution px per px of the image that a model is trained at: of its finest section."""
    if any(s.mpp is None for s in sections):
        return min(s.reduction for s in sections)
    return min(sections, key=lambda s: s.mpp or 0).reduction


def training_spacing(sections: Sequence["Section"]) -> tuple[float, float] | None:
    """Return the least and the most um from spot to spot in training sections; None where none is known."""
    known = {s.name: s.spacing_um for s in sections if s.spacing_um is not None}
    if not known:
        return None
    least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if known[most] > OTHER_SPACING * known[least]:
        checks.warn(
            "spot_pitch",
            f"spots lie {known[least]:.3g} um apart in training section {least!r} and {known[most]:.3g} in {most!r}: "
            "what a spot and its neighbours show is not alike",
        )
    return known[least], known[most]


class FieldSettings(Protocol):
    """Settings that say how far around a spot a method looks."""

    @property
    def fields_um(self) -> tuple[float, ...] | None:
        """Sides, um."""

    @property
    def fields_px(self) -> tuple[float, ...]:
        """Sides, px, where the scale is not known."""


def fields_of_view(
    config: "FieldSettings", model_mpp: float | None, section_mpp: float | None, enlarged: float = 1.0
) -> tuple[float, ...]:
    """Return the side of each field of view in px of a section's image.

    They are `fields_um` where the model's scale is known, else `fields_px`. A section of another scale than the
    model's gets as many um in more or fewer px. Where one of the scales is unknown, full-resolution px are taken as
    equal: `enlarged` is how many of them a px of the section's image has, for each that one of the model's has.
    """
    at_model = config.fields_px
    if model_mpp is not None and config.fields_um is not None:
        at_model = tuple(um / model_mpp for um in config.fields_um)
    ratio = 1 / enlarged if model_mpp is None or section_mpp is None else model_mpp / section_mpp
    if abs(ratio - 1) < SAME_SCALE:
        ratio = 1.0
    return tuple(px * ratio for px in at_model)


def spots_per_batch(batch_size: int | None) -> int:
    """Spots whose patches are held at once: as asked for, else 64."""
    return BATCH_SPOTS if batch_size is None else whole("batch_size", batch_size)


def say_if_spacing_differs(section: "Section", spacing_um: tuple[float, float] | None) -> None:
    """Warn where a section's spots are much closer or farther apart than the training sections'."""
    found = section.spacing_um
    if found is None or spacing_um is None:
        return
    least, most = spacing_um
    closer = found < least / OTHER_SPACING
    if closer or found > most * OTHER_SPACING:
        checks.warn(
            "spot_pitch",
            f"section {section.name!r}: its spots lie {found:.3g} um apart, those that the model was trained on "
            f"{spacing_words(spacing_um)}: "
            + (
                "it looks at as much tissue around them as around those, so that the prediction is no finer"
                if closer
                else "it was not trained for neighbours that are so far away"
            ),
        )


def say_if_few(section: "Section") -> None:
    """Warn where features are standardised over so few spots that they say little."""
    if (n := len(section.xy)) < FEW_SPOTS:
        checks.warn(
            "few_spots",
            f"section {section.name!r} has {n} spot{'s' if n > 1 else ''}: the model compares the spots of a section "
            "with one another, and so few are not predicted as they are among all; predict the whole section, and take "
            "them from it",
        )


def spacing_words(spacing_um: tuple[float, float]) -> str:
    """Return a range of um in words."""
    least, most = (f"{um:.3g}" for um in spacing_um)
    return f"{least} um" if least == most else f"{least} to {most} um"


def say_if_scale_differs(section: "Section", model_mpp: float | None, reduction: float = 1.0) -> None:
    """Warn where a section's physical scale is far from the model's, or unknown and taken for it."""
    if model_mpp is None or not section.has_image:
        return
    if section.mpp is None:
        warn(
            f"section {section.name!r}: its physical scale is unknown; a full-resolution px is taken to be that of the "
            f"training sections, {model_mpp / reduction:.3g} um; give mpp= if it is another",
            ScaleWarning,
        )
    elif max(section.mpp / model_mpp, model_mpp / section.mpp) > OTHER_SCALE:
        warn(
            f"section {section.name!r} was scanned at {section.mpp:.3g} um per px, the training sections at "
            f"{model_mpp:.3g}: its patches are resampled, and look sharper or more blurred than those that were learnt "
            "from",
            UnlikeTrainingWarning,
        )


def say_if_coarse(section: "Section", fields: Sequence[float], size: int) -> None:
    """Warn where a section's image holds much less detail than the network looks for."""
    if min(fields) < COARSE * size:
        warn(
            f"section {section.name!r}: the smallest field of view is only {min(fields):.0f} px wide in "
            f"{section.image_name} and is enlarged to {size} px: detail is missing; use the full-resolution image "
            "where there is one",
            ImageWarning,
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
