"""The pixels of one section's H&E image, from arrays and files."""

from ._colour import glass
from ._image import SectionImage

__all__ = ["SectionImage", "glass"]
