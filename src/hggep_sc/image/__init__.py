"""The pixels of one section's H&E image, from arrays and files."""

from ._channels import in_colour_order
from ._colour import glass
from ._image import SectionImage
from ._units import SANE_MPP

__all__ = ["SANE_MPP", "SectionImage", "glass", "in_colour_order"]
