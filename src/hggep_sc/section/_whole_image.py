"""The image of what the user gave, spots aside: a file, an array, or that of an AnnData or SpatialData."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from .. import _keys
from ..errors import InputError, MissingSlotError
from ..image import SectionImage
from ..runtime.messages import listed
from ..storage.paths import expanded
from ._anndata import anndata_section, find_image, libraries_of
from ._containers import is_spatialdata
from ._scale import Told, checked_mpp, given, settled
from ._slide import slide_of
from ._spatialdata import SLIDE_SYSTEM, image_levels, micron_scale

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
    told
        um per unit of the coordinates, by what was given and the object.
    opener
        Opens it.
    asked
        Whether the image itself has been asked already.
    transformations
        From its px to each coordinate system of a SpatialData; none for other objects.
    """

    name: str
    scale: float
    told: tuple[Told, ...]
    opener: Callable[[], SectionImage]
    asked: bool = False
    transformations: Mapping[str, Any] = field(default_factory=dict)

    def scale_with(self, image: SectionImage) -> Told | None:
        """Return um per unit of the coordinates, the opened image asked too; None where nothing tells them.

        Raises
        ------
        InputError
            If they are implausible, or sources contradict each other.
        """
        if self.asked:
            return next(iter(self.told), None)
        of_file = None if image.mpp is None else Told(image.mpp * self.scale, "file", f"the image file {self.name}")
        return settled([*self.told, of_file], self.name, aspect=image.aspect)


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
    MissingSlotError, InputError, ValueError
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
        opener = partial(SectionImage.from_file, expanded(data), warned=set())
        return WholeImage(str(data), 1.0, tuple(given(mpp)), opener)
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        opener = partial(SectionImage.from_array, data, name="the array", warned=set())
        return WholeImage("the array", 1.0, tuple(given(mpp)), opener)
    raise TypeError(
        f"an image is expected: its path, an array, or an AnnData or SpatialData object; found {type(data).__name__}"
    )


def _of_spatialdata(sdata: "SpatialData", image_key: str | None, mpp: float | None) -> WholeImage:
    if (slide := slide_of(sdata, image_key)) is not None:
        from spatialdata.transformations import Identity

        of_reader = [] if slide.mpp is None else [Told(slide.mpp, "slide", "the reader of the slide")]
        transformations = {SLIDE_SYSTEM: Identity()}
        return WholeImage(
            str(slide.path), 1.0, (*given(mpp), *of_reader), slide.opener, transformations=transformations
        )
    if image_key is not None and image_key not in sdata.images:
        raise MissingSlotError(
            f"`image_key`: the SpatialData has no image {image_key!r}; images: {listed(sdata.images)}"
        )
    if image_key is None and len(sdata.images) != 1:
        raise InputError(
            f"one image is expected, the SpatialData holds {listed(sdata.images)}; choose one by `image_key=`"
        )
    from spatialdata.transformations import get_transformation

    key = image_key if image_key is not None else next(iter(sdata.images))
    element = sdata.images[key]
    opener = partial(SectionImage.from_levels, image_levels(element, key), name=f"images[{key!r}]", warned=set())
    microns = micron_scale(element)
    told = (*given(mpp), *([microns] if microns is not None else []))
    return WholeImage(key, 1.0, told, opener, transformations=get_transformation(element, get_all=True))


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
    assert section.opener is not None  # opened with its image
    scale = find_image(adata, library, image_key, library)[0].scale
    told = () if section.mpp is None else (Told(section.mpp * scale, section.mpp_source, "the object"),)
    return WholeImage(section.image_name, scale, told, section.opener, asked=True)
