"""The pixels of one section's H&E image, from arrays and files."""

from ._channels import in_colour_order
from ._colour import glass
from ._image import SectionImage
from ._ome_zarr import is_ome_zarr
from ._units import SANE_MPP

__all__ = ["SANE_MPP", "SectionImage", "glass", "in_colour_order", "is_ome_zarr"]
