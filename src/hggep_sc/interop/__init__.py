"""To other tools and from them: results as files (`to_10x`, `to_qupath`), and LazySlide (`interop.lazyslide`)."""

from ._qupath import to_qupath
from ._tenx import to_10x

__all__ = ["to_10x", "to_qupath"]
