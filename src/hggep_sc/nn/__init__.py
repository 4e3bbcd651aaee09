"""The networks: pure torch and torch_geometric, without any knowledge of AnnData."""

from typing import TYPE_CHECKING

from .hggep import HGGEPNetwork
from .interface import Batch, CountParameters, Output
from .published import PublishedNetwork

if TYPE_CHECKING:
    from ..config import Config

__all__ = ["Batch", "CountParameters", "HGGEPNetwork", "Output", "PublishedNetwork", "build"]


def build(config: "Config", n_genes: int) -> HGGEPNetwork | PublishedNetwork:
    """Return a configuration's network, freshly initialised from torch's random state."""
    if config.preset == "published":
        return PublishedNetwork(n_genes)
    return HGGEPNetwork(config, n_genes)
