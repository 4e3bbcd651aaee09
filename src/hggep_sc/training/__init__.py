"""From sections to a trained network."""

from .data import Batch, SectionData, spatial_chunks
from .fit import train

__all__ = ["Batch", "SectionData", "spatial_chunks", "train"]
