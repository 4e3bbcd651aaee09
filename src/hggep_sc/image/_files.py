"""Image files: pixel arrays that are read when asked for, and the physical scale."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from ..errors import HggepWarning, ImageError
from ..storage.paths import require_file
from ._channels import in_colour_order
from ._errors import damaged, require_memory
from ._levels import Whole
from ._ome_zarr import ome_zarr_image
from ._stored import Said
from ._tiff import tiff_channels, tiff_levels, tiff_orientation, tiff_pixel_size
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
ORIENTATION = 274  # tag of EXIF and TIFF
# modes of pillow that are no picture, or one in other colours
MODES = {"1": "black and white without shades, as a mask", "F": "numbers with decimals", "I": "32-bit numbers"}
# pillow's limits are module globals; they are lifted for one file at a time and put back
PILLOW_LOCK = threading.Lock()


class OpenFile(NamedTuple):
    """An opened image file; `remarks` are what to warn of: names of checks and messages."""

    levels: list[Any]
    pixel: PixelSize | None
    close: Callable[[], None] | None
    said: Said = Said()
    remarks: Sequence[tuple[str, str]] = ()


def open_file(path: Path) -> OpenFile:
    """Open an image file and read its header."""
    if path.is_dir():
        levels, size, channels = ome_zarr_image(path)
        return OpenFile(in_colour_order(levels, channels, 0, str(path)) if channels else levels, size, None)
    require_file(path, "image file", ImageError)
    with path.open("rb") as file:
        magic = file.read(4)
    if (suffix := path.suffix.lower()) in PREVIEWS:
        slide, remedy = PREVIEWS[suffix]
        raise ImageError(f"image file {path} is {slide}, which is not read: {remedy}")
    return _open_tiff(path) if magic in TIFF_MAGIC else _open_picture(path)


def _open_tiff(path: Path) -> OpenFile:
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except Exception as error:  # damaged headers make it raise anything
        raise damaged(path, error) from error
    try:
        try:
            levels = tiff_levels(tiff, path)
            size, channels, orientation = tiff_pixel_size(tiff), tiff_channels(tiff), tiff_orientation(tiff)
        except (ImageError, HggepWarning):
            raise
        except Exception as error:
            raise damaged(path, error) from error
        if channels.names:
            levels = in_colour_order(levels, channels.names, channels.axis, str(path))
        remarks = [remark for remark in (_turned(path, orientation), channels.remark(path)) if remark]
        return OpenFile(levels, size, tiff.close, channels.said, remarks)
    except BaseException:
        tiff.close()
        raise


def _turned(path: Path, orientation: Any) -> tuple[str, str] | None:
    if orientation in (None, 0, 1):  # 0 is no value
        return None
    return (
        "orientation",
        f"image file {path} asks viewers to turn or mirror it (orientation tag {orientation}), and is read as stored, "
        "which is what spots' coordinates must refer to: where they were marked in a viewer, save the picture as it "
        "looks there, without the tag",
    )


def _open_picture(path: Path) -> OpenFile:
    """Read the header of a file that pillow decodes whole."""
    try:
        with _pillow(path) as image:
            mode, size = image.mode, image.size
            clear = mode in ("LA", "PA") or "transparency" in image.info
            # pillow would make bytes of a PNG's 16 bits
            deep = image.format == "PNG" and mode in ("RGB", "RGBA") and "16" in str(image.tile[0][3])  # type: ignore[attr-defined]
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            orientation = exif.get(ORIENTATION)
    except Exception as error:  # damaged headers make it raise anything
        raise damaged(path, error) from error
    if mode in ("L", "RGB", "RGBA") or mode.startswith("I;16"):
        target = mode
    elif mode in ("P", "PA", "LA"):
        target = "RGBA" if clear else "RGB"
    elif mode in ("CMYK", "YCbCr"):
        target = "RGB"
    else:
        kind = f"{MODES[mode]} (mode {mode!r})" if mode in MODES else f"mode {mode!r}"
        raise ImageError(f"image file {path} has pixels of {kind}: convert it to 8- or 16-bit gray, RGB or RGBA")
    pixel = np.asarray(Image.new(target, (1, 1)))
    shape, dtype = (size[1], size[0], *pixel.shape[2:]), np.dtype(np.uint16) if deep else pixel.dtype
    # pillow's own picture has 4 bytes per px
    require_memory(path, size[0] * size[1] * (4 + pixel.nbytes * (1 + deep)))
    remarks = [_turned(path, orientation), _converted(path, mode)]
    decode = partial(_decode_deep, path) if deep else partial(_decode, path, target)
    said = Said(fourth="alpha" if target == "RGBA" else None)
    return OpenFile([Whole(shape, dtype, decode)], None, None, said, [remark for remark in remarks if remark])


def _converted(path: Path, mode: str) -> tuple[str, str] | None:
    what = {
        "CMYK": "in the colours of print (CMYK), which are converted without their profile and may look otherwise",
        "P": "in a palette of at most 256 colours, so that shades are lost",
        "PA": "in a palette of at most 256 colours, so that shades are lost",
    }.get(mode)
    return what and ("channels", f"image file {path} is stored {what}: better give the original in RGB")  # type: ignore[return-value]


def _decode_deep(path: Path) -> np.ndarray:
    """Decode a PNG of 16 bits per colour."""
    import imagecodecs

    return imagecodecs.png_decode(path.read_bytes())


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
