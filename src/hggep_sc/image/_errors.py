"""Damaged files: what decoders and stores raise over them, and what is said of it."""

import struct
import zlib
from pathlib import Path

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
