"""Real and synthetic sections, as dicts of AnnData by section name."""

from ._her2st import her2st
from ._mob import mob
from ._synthetic import synthetic

__all__ = ["her2st", "mob", "synthetic"]
