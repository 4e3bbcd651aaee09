"""Preprocessing: find the tissue on a slide, and lay spots over it."""

from ..image.tissue import TissueMask
from ._tile import tile
from ._tissue_mask import tissue_mask

__all__ = ["TissueMask", "tile", "tissue_mask"]
