from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageWarning
from ..image.tissue import LOOK_PX, TissueMask, find_tissue, is_gray
from ..runtime.messages import warn
from ..section import image_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def tissue_mask(
    data: "str | Path | AnnData | SpatialData | Any",
    *,
    image_key: str | None = None,
    library_id: str | None = None,
    mpp: float | None = None,
) -> TissueMask:
    """Find the tissue on an H&E image.

    Tissue is what is stained as H&E stains and is not smooth, at 8 um per px. So it differs from bare glass of
    any brightness, smears of eosin, dust and bubbles, the array's frame, black and white borders, and ink, and no
    glass need be seen. Folds are tissue. Pieces smaller than 0.06 mm2 are left out, such gaps closed; where the
    scale is unknown, the longest side is taken to be 8 mm.

    Parameters
    ----------
    data
        Image file, array, or an AnnData or SpatialData with one. It is looked at reduced to at most 2,048 px.
    image_key
        AnnData and SpatialData: which image, as in `hggep_sc.tl.fit`.
    library_id
        AnnData: which library of `uns["spatial"]`.
    mpp
        um per px of the full-resolution image; None for what the image or the object says of itself.

    Returns
    -------
    The mask, its scale, and what lies in it: `contains(xy)` and `share(xy, side)`, in px of the full-resolution
    image. Where nothing is found it is empty, with a warning.

    Raises
    ------
    InputError, ImageError, MissingSlotError, ValueError, TypeError, FileNotFoundError
        For input that cannot be used; the message names the slot and the remedy.
    """
    source = image_of(data, image_key=image_key, library_id=library_id, mpp=mpp)
    with source.opener() as image:
        scale = source.scale_with(image)
        thumbnail = image.thumbnail(LOOK_PX)
        found = find_tissue(
            thumbnail,
            (image.shape[0] / source.scale, image.shape[1] / source.scale),
            mpp=None if scale is None else scale.mpp,
        )
    if not found.mask.any() and is_gray(thumbnail):
        warn(
            f"no tissue found on {source.name}: it is gray, and tissue is told by H&E's colours. Give the image in "
            "colours; `hggep_sc.pp.tile(tissue=)` takes a mask of your own",
            ImageWarning,
        )
    elif not found.mask.any():
        warn(f"no tissue found on {source.name}: is it an H&E image, and is its mpp right?", ImageWarning)
    return found
