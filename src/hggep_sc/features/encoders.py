"""What sees the spots: HGGEP's own encoder, a module of the user's, or embeddings that the table holds."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..config import Config
from ..nn import Encoder, ModuleEncoder, shufflenet_encoder
from .weights import load_pretrained, locate_weights

SHUFFLENET = "shufflenet"  # HGGEP's own encoder


@dataclass(frozen=True)
class ObsmEncoder:
    """Embeddings that every section's table holds: nothing is left to encode.

    Attributes
    ----------
    slot
        Their name in `obsm`.
    """

    slot: str

    @property
    def id(self) -> str:
        """What tells it from others."""
        return self.slot


Eye = Encoder | ObsmEncoder  # what sees the spots


def make_encoder(encoder: str | nn.Module, config: Config, weights: str | Path | None) -> Eye | None:
    """Return what is to see the spots; see `hggep_sc.tl.fit` for the parameters.

    Returns
    -------
    An encoder or embeddings; None for the released network, which has its own encoder.

    Raises
    ------
    ValueError
        If the released network is given another, or a module does not give a vector for each patch.
    TypeError
        If `encoder` is neither a name nor a module.
    """
    if not isinstance(encoder, str | nn.Module):
        raise TypeError(
            f'encoder must be "{SHUFFLENET}", the obsm slot of embeddings or a torch.nn.Module, not '
            f"{type(encoder).__name__}"
        )
    if config.preset == "published":
        if encoder != SHUFFLENET:
            raise ValueError(f'encoder={encoder!r}: the published network has its own; use preset="default"')
        locate_weights(weights)  # refuses what is not there before anything is read
        return None
    if encoder != SHUFFLENET and config.learns_from_pixels:
        raise ValueError(
            "GEM, CBAM and a backbone that learns are parts of the shufflenet encoder; yours is not trained: "
            "config={'gem': False, 'cbam': False, 'backbone_learning_rate': 0}"
        )
    if isinstance(encoder, nn.Module):
        return ModuleEncoder(encoder, config.patch_size)
    if encoder != SHUFFLENET:
        return ObsmEncoder(encoder)
    own = shufflenet_encoder(config)
    if (path := locate_weights(weights)) is not None:
        load_pretrained(own, path)
    return own


def is_frozen(encoder: Eye | None, config: Config) -> bool:
    """Whether features do not change in training, so that they are computed once."""
    return isinstance(encoder, ObsmEncoder | ModuleEncoder) or (encoder is not None and not config.learns_from_pixels)
