"""Files that cannot be read, and what is said of them."""

from pathlib import Path

import psutil

from ..errors import ImageError


def damaged(path: Path, error: Exception) -> ImageError:
    """Error for a file that cannot be opened, where a decoder raises anything that is no ImageError."""
    return ImageError(
        f"image file {path} cannot be decoded ({error or type(error).__name__}): it is damaged, cut short or of an "
        "unknown format; copy or download it again, or convert it to TIFF, PNG or JPEG"
    )


def require_memory(path: Path, needed: int) -> None:
    """Refuse a file that is decoded whole where that takes more than the free memory."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise ImageError(
            f"image file {path} can only be decoded whole, which takes {needed / 2**30:.1f} GiB of memory; "
            f"{free / 2**30:.1f} GiB are free: convert it to a tiled TIFF, which is read tile by tile, for instance "
            "with `vips tiffsave --tile --pyramid --compression jpeg`"
        )
