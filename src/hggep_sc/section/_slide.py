"""The slide of an object whose pixels lie in a file of their own: LazySlide's WSIData."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ImageError
from ..image import SectionImage
from ._values import number

if TYPE_CHECKING:
    from spatialdata import SpatialData


class Slide(NamedTuple):
    """A slide's file, its um per px (None where it does not say), and what opens it."""

    path: Path
    mpp: float | None
    opener: Callable[[], SectionImage]


def slide_of(sdata: "SpatialData", image_key: str | None) -> Slide | None:
    """Find the slide that a WSIData reads its pixels from; None for another SpatialData, or where an image is named.

    Its coordinates ("global") are px of the slide's finest level.

    Raises
    ------
    ImageError
        If the slide cannot be read here, or is not the one plane that the WSIData shows.
    """
    module = sys.modules.get("wsidata")  # an instance exists only where the library is loaded
    if image_key is not None or module is None or not isinstance(sdata, module.WSIData):
        return None
    if sdata.reader.file in sdata.images:  # an image of the object stands in for the slide
        return None
    path, shape = Path(sdata.reader.file), tuple(map(int, sdata.properties.shape))
    remedy = "name an image of the object by `image_key=`, such as one that `wsidata.open_wsi(attach_images=True)` adds"
    try:
        with SectionImage.from_file(path) as opened:
            found = opened.shape
    except ValueError as error:
        raise ImageError(f"the slide of the WSIData: {error}. Or {remedy}") from error
    if found != shape:
        raise ImageError(
            f"the slide of the WSIData is {shape[1]} x {shape[0]} px, the largest image in {path} {found[1]} x "
            f"{found[0]} px: it shows another scene of the file. Save the scene to a file of its own, or {remedy}"
        )
    return Slide(path, number(sdata.properties.mpp), partial(SectionImage.from_file, path, warned=set()))
