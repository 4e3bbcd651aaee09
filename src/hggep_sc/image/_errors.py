"""Damaged files: what decoders and stores raise over them, and what is said of it."""

import struct
import zlib
from pathlib import Path

import psutil

# pillow, tifffile, imagecodecs and zarr have no common base
READING_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
)


def damaged(path: Path, error: Exception) -> ValueError:
    """Error for a file that cannot be opened."""
    return ValueError(
        f"image file {path} cannot be decoded ({error}): it is damaged, cut short or of an unknown format; "
        "copy or download it again, or convert it to TIFF, PNG or JPEG"
    )


def require_memory(path: Path, needed: int) -> None:
    """Refuse a file that is decoded whole where that takes more than the free memory."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"image file {path} can only be decoded whole, which takes {needed / 2**30:.1f} GiB of memory; "
            f"{free / 2**30:.1f} GiB are free: convert it to a tiled TIFF, which is read tile by tile, for instance "
            "with `vips tiffsave --tile --pyramid --compression jpeg`"
        )
