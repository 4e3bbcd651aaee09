"""The pixels of one section's H&E image, from arrays and files."""

from ._image import SectionImage

__all__ = ["SectionImage"]
