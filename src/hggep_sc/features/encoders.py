"""What sees the spots: an encoder known by name, a module of the user's, or embeddings that the table holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..config import Config
from ..encoders.named import NamedEncoder
from ..encoders.registry import AUTO, OWN, SHUFFLENET, is_known, load, nearest
from ..encoders.weights import load_pretrained, locate_weights
from ..errors import InputError, MissingSlotError
from ..nn import Encoder, ModuleEncoder, ShuffleNetEncoder, shufflenet_encoder
from ..runtime.messages import listed

if TYPE_CHECKING:
    from ..section import Section


@dataclass(frozen=True)
class ObsmEncoder:
    """Embeddings that every section's table holds: nothing is left to encode.

    Attributes
    ----------
    slot
        Their name in `obsm`, or of another table of the same shapes.
    """

    slot: str

    @property
    def id(self) -> str:
        """What tells it from others."""
        return self.slot


Eye = Encoder | ObsmEncoder  # what sees the spots


def make_encoder(
    encoder: str | nn.Module, config: Config, weights: str | Path | None, sections: Sequence["Section"] = ()
) -> Eye | None:
    """Return what is to see the spots of sections; see `hggep_sc.tl.fit` for the parameters.

    Returns
    -------
    An encoder or embeddings; None for the released network, which has its own encoder.

    Raises
    ------
    ValueError
        If the released network is given another, or a module does not give a vector for each patch.
    MissingSlotError
        If there is no encoder of that name, and a section has no such embeddings.
    TypeError
        If `encoder` is neither a name nor a module.
    """
    if not isinstance(encoder, str | nn.Module):
        raise TypeError(
            "encoder must be a name of hggep_sc.encoders.list(), the obsm slot of embeddings or a torch.nn.Module, not "
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
    if isinstance(encoder, Encoder):  # of hggep_sc.encoders.load
        return encoder
    if isinstance(encoder, nn.Module):
        return ModuleEncoder(encoder, config.patch_size)
    if encoder != SHUFFLENET:
        require_one_meaning(encoder, sections)
        return ObsmEncoder(encoder) if is_slot(encoder) else load(encoder, weights)
    own = shufflenet_encoder(config)
    if (path := locate_weights(weights)) is not None:
        load_pretrained(own, path)
    return own


def is_frozen(encoder: Eye | None, config: Config) -> bool:
    """Whether features do not change in training, so that they are computed once."""
    return isinstance(encoder, ObsmEncoder | ModuleEncoder) or (encoder is not None and not config.learns_from_pixels)


def is_slot(encoder: str | nn.Module) -> bool:
    """Whether what a user gave as an encoder is the name of embeddings in `obsm`: none of the encoders has it."""
    return isinstance(encoder, str) and encoder != AUTO and not is_known(encoder)


def sees_colours(encoder: Eye) -> bool:
    """Whether statistics of colour stand beside an encoder's features: beside those of the package's own alone.

    Of the encoders that are known by name, this holds for ridges and the linear path alike.
    """
    members = encoder.members if isinstance(encoder, Encoder) else ()
    return bool(members) and all(
        isinstance(one, ShuffleNetEncoder) or (isinstance(one, NamedEncoder) and one.info.name in OWN)
        for one in members
    )


def beside_colours(encoder: Eye | None) -> bool:
    """Whether HGGEP's linear path is given colours: those, and a module of the user's too."""
    return isinstance(encoder, ModuleEncoder) or (encoder is not None and sees_colours(encoder))


def require_one_meaning(name: str, sections: Sequence["Section"]) -> None:
    """Refuse a name that is neither an encoder's nor that of embeddings in every section, or both."""
    for section in sections:
        there = name in section.table.obsm or (is_slot(name) and section.embeddings_slot(name) is not None)
        if there == is_slot(name):
            continue
        if there:
            raise InputError(
                f"section {section.name!r}: encoder={name!r} is an encoder's name, and obsm[{name!r}] is there too: to "
                f"use these embeddings, rename them (adata.obsm['X_{name}'] = adata.obsm.pop({name!r}))"
            )
        beside = f", no table of this name beside it ({listed(section.beside)})" if section.beside else ""
        raise MissingSlotError(
            f"section {section.name!r}: no embeddings in obsm[{name!r}], which holds {listed(section.table.obsm)}"
            f"{beside}; nor is there an encoder of this name{nearest(name)} (hggep_sc.encoders.list() has all)"
        )
