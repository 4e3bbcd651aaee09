"""Image files: pixel arrays that are read when asked for, and the physical scale."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from ._errors import READING_ERRORS, damaged, require_memory
from ._levels import Whole
from ._ome_zarr import ome_zarr_image
from ._tiff import tiff_levels, tiff_pixel_size
from ._units import PixelSize

# slides whose file holds a preview, a JPEG or TIFF, and whose pixels lie in a folder beside it
PREVIEWS = {
    ".mrxs": (
        "a MIRAX slide",
        "convert it to a tiled TIFF, for instance with `vips tiffsave --tile --pyramid --compression jpeg`",
    ),
    ".vsi": ("an Olympus slide", "export it as a pyramidal OME-TIFF, for instance with QuPath"),
}
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# pillow's limits are module globals; they are lifted for one file at a time and put back
PILLOW_LOCK = threading.Lock()


class OpenFile(NamedTuple):
    """An opened image file."""

    levels: list[Any]
    pixel: PixelSize | None
    close: Callable[[], None] | None


def open_file(path: Path) -> OpenFile:
    """Open an image file and read its header."""
    if not path.exists():
        raise FileNotFoundError(
            f"image file {path} does not exist: correct the path, or put the file back where it was"
        )
    if path.is_dir():
        return OpenFile(*ome_zarr_image(path), None)
    with path.open("rb") as file:
        magic = file.read(4)
    if not magic:
        raise ValueError(f"image file {path} is empty: copy or download it again")
    if (suffix := path.suffix.lower()) in PREVIEWS:
        slide, remedy = PREVIEWS[suffix]
        raise ValueError(f"image file {path} is {slide}, which is not read: {remedy}")
    return _open_tiff(path) if magic in TIFF_MAGIC else _open_picture(path)


def _open_tiff(path: Path) -> OpenFile:
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except READING_ERRORS as error:
        raise damaged(path, error) from error
    try:
        return OpenFile(tiff_levels(tiff, path), tiff_pixel_size(tiff), tiff.close)
    except BaseException:
        tiff.close()
        raise


def _open_picture(path: Path) -> OpenFile:
    """Read the header of a file that pillow decodes whole."""
    try:
        with _pillow(path) as image:
            mode, size = image.mode, image.size
            clear = mode in ("LA", "PA") or "transparency" in image.info
    except READING_ERRORS as error:
        raise damaged(path, error) from error
    if mode in ("L", "RGB", "RGBA") or mode.startswith("I;16"):
        target = mode
    elif mode in ("P", "PA", "LA"):
        target = "RGBA" if clear else "RGB"
    elif mode in ("CMYK", "YCbCr"):
        target = "RGB"
    else:
        raise ValueError(f"image file {path} has pixels of mode {mode!r}: convert it to 8- or 16-bit gray, RGB or RGBA")
    pixel = np.asarray(Image.new(target, (1, 1)))
    shape = (size[1], size[0], *pixel.shape[2:])
    # pillow's own picture has 4 bytes per px
    require_memory(path, size[0] * size[1] * (4 + pixel.nbytes))
    return OpenFile([Whole(shape, pixel.dtype, partial(_decode, path, target))], None, None)


@contextmanager
def _pillow(path: Path) -> Iterator[Image.Image]:
    with PILLOW_LOCK:
        limit, lenient = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        # sections are larger than what pillow takes for an attack; what is missing must not come out gray
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            with Image.open(path) as image:
                yield image
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limit, lenient


def _decode(path: Path, mode: str) -> np.ndarray:
    with _pillow(path) as image:
        image.load()
        picture = image if image.mode == mode else image.convert(mode)
        sample = np.asarray(picture.crop((0, 0, picture.width, 1)))
        pixels = np.empty((picture.height, *sample.shape[1:]), dtype=sample.dtype)
        # in stripes, as pillow copies twice on the way to an array
        for top in range(0, picture.height, 1024):
            bottom = min(top + 1024, picture.height)
            pixels[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
        return pixels
