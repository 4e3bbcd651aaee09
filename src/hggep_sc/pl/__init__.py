"""Plots: predicted genes on the H&E image, and the course of a training."""

from ._gene_map import gene_map
from ._history import history

__all__ = ["gene_map", "history"]
