"""Real and synthetic sections, as dicts of AnnData by section name."""

from ._cscc import cscc
from ._her2st import her2st, her2st_panel
from ._mob import mob
from ._synthetic import synthetic

__all__ = ["cscc", "her2st", "her2st_panel", "mob", "synthetic"]
