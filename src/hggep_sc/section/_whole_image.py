"""The image of what the user gave, spots aside: a file, an array, or that of an AnnData or SpatialData."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from .. import _keys
from ..image import SectionImage
from ._anndata import anndata_section, find_image, libraries_of
from ._containers import is_spatialdata
from ._scale import checked_mpp
from ._slide import slide_of
from ._spatialdata import SLIDE_SYSTEM, image_levels, micron_scale
from ._values import listed

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass(frozen=True)
class WholeImage:
    """An image that needs no spots.

    Attributes
    ----------
    name
        What messages call it; of a SpatialData, the image's key.
    scale
        px of the image's finest level per unit of the coordinates; 1 but for a reduced image of an AnnData.
    mpp
        um per unit of the coordinates; None where the image itself is to be asked.
    opener
        Opens it.
    transformations
        From its px to each coordinate system of a SpatialData; none for other objects.
    """

    name: str
    scale: float
    mpp: float | None
    opener: Callable[[], SectionImage]
    transformations: Mapping[str, Any] = field(default_factory=dict)


def image_of(
    data: Any, *, image_key: str | None = None, library_id: str | None = None, mpp: float | None = None
) -> WholeImage:
    """Find the one image.

    Parameters
    ----------
    data
        Path, array, AnnData or SpatialData.
    image_key
        AnnData and SpatialData: which of several images.
    library_id
        AnnData: which of several libraries.
    mpp
        um per px of the full-resolution image, over what is found.

    Raises
    ------
    TypeError
        If `data` is none of these.
    KeyError, ValueError
        If there is no such image, none at all, several, or a keyword is for another kind of data.
    """
    mpp = checked_mpp(mpp)
    if library_id is not None and not isinstance(data, AnnData):
        raise ValueError("`library_id` is for AnnData objects, and none was given")
    if is_spatialdata(data):
        return _of_spatialdata(data, image_key, mpp)
    if isinstance(data, AnnData):
        return _of_anndata(data, image_key, library_id, mpp)
    if image_key is not None:
        raise ValueError("`image_key` is for AnnData and SpatialData objects, and none was given")
    if isinstance(data, str | Path):
        return WholeImage(str(data), 1.0, mpp, partial(SectionImage.from_file, Path(data).expanduser()))
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        return WholeImage("the array", 1.0, mpp, partial(SectionImage.from_array, data, name="the array"))
    raise TypeError(
        f"an image is expected: its path, an array, or an AnnData or SpatialData object; found {type(data).__name__}"
    )


def _of_spatialdata(sdata: "SpatialData", image_key: str | None, mpp: float | None) -> WholeImage:
    if (slide := slide_of(sdata, image_key)) is not None:
        from spatialdata.transformations import Identity

        known = mpp if mpp is not None else slide.mpp
        return WholeImage(str(slide.path), 1.0, known, slide.opener, {SLIDE_SYSTEM: Identity()})
    if image_key is not None and image_key not in sdata.images:
        raise KeyError(f"`image_key`: the SpatialData has no image {image_key!r}; images: {listed(sdata.images)}")
    if image_key is None and len(sdata.images) != 1:
        raise ValueError(
            f"one image is expected, the SpatialData holds {listed(sdata.images)}; choose one by `image_key=`"
        )
    from spatialdata.transformations import get_transformation

    key = image_key if image_key is not None else next(iter(sdata.images))
    element = sdata.images[key]
    opener = partial(SectionImage.from_levels, image_levels(element, key), name=f"images[{key!r}]")
    known = mpp if mpp is not None else micron_scale(element)
    return WholeImage(key, 1.0, known, opener, get_transformation(element, get_all=True))


def _of_anndata(adata: AnnData, image_key: str | None, library_id: str | None, mpp: float | None) -> WholeImage:
    ((library, rows),) = libraries_of(adata, None, library_id, _keys.SPATIAL).items()
    section = anndata_section(
        adata,
        name=library,
        library=library,
        rows=rows,
        library_key=None,
        image_key=image_key,
        spatial_key=_keys.SPATIAL,
        layer=None,
        mpp=mpp,
        check=False,
    )
    scale = find_image(adata, library, image_key, library)[0].scale
    return WholeImage(section.image_name, scale, None if section.mpp is None else section.mpp * scale, section.opener)
