"""The networks: pure torch and torch_geometric, without any knowledge of AnnData."""

from typing import TYPE_CHECKING

from .encoder import STAGES, Encoder, ModuleEncoder, ShuffleNetEncoder, Sight, averaged_maps, state_hash
from .ensemble import Ensemble, averaged
from .folding import folded
from .hggep import OUTLIER, HGGEPNetwork
from .interface import Batch, CountParameters, Output, average_views
from .published import PublishedNetwork

if TYPE_CHECKING:
    from ..config import Config

__all__ = [
    "OUTLIER",
    "STAGES",
    "Batch",
    "CountParameters",
    "Encoder",
    "Ensemble",
    "HGGEPNetwork",
    "ModuleEncoder",
    "Output",
    "PublishedNetwork",
    "ShuffleNetEncoder",
    "Sight",
    "average_views",
    "averaged",
    "averaged_maps",
    "folded",
    "shufflenet_encoder",
    "state_hash",
]


def shufflenet_encoder(config: "Config") -> ShuffleNetEncoder:
    """Return a configuration's own encoder, freshly initialised from torch's random state."""
    return ShuffleNetEncoder(
        config.stages,
        gem=config.gem,
        cbam=config.cbam,
        residual=config.residual or not config.learns_from_pixels,  # a frozen one has nothing to replace
        frozen=not config.learns_backbone,
    )
