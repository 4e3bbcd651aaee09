"""The pixels of one section's H&E image, from arrays and files."""

from ._channels import in_colour_order
from ._colour import glass
from ._image import SectionImage

__all__ = ["SectionImage", "glass", "in_colour_order"]
