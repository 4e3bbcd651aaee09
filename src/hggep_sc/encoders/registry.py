"""Encoders by name: what there is, what is known of each, and the network itself."""

from difflib import get_close_matches
from pathlib import Path
from weakref import WeakValueDictionary

import pandas as pd
from torch import nn

from ..nn import Encoder, ShuffleNetEncoder
from ..runtime.random_state import own_random_state
from .card import EncoderInfo
from .known import KNOWN
from .named import NamedEncoder
from .side_by_side import JOINS, Known, SideBySide, together, weights_of_member
from .snapshot import LITE0, LITE2, located
from .weights import PRETRAINED, load_pretrained, locate_weights

SHUFFLENET = "shufflenet"  # HGGEP's own encoder
AUTO, DEFAULT = "auto", LITE0  # what is taken where nothing is said; its weights come with the package's extra
OWN = (SHUFFLENET, LITE0, LITE2)  # beside whose features baselines see colours

_BUILT_IN = {info.name: info for info in KNOWN}
_known = dict(_BUILT_IN)
_loaded: "WeakValueDictionary[tuple[str, Path | None], NamedEncoder]" = WeakValueDictionary()


def names() -> list[str]:
    """Return the names of all encoders there are."""
    return list(_known)


def is_known(name: str) -> bool:
    """Whether it is an encoder's name, or names of several that see side by side."""
    return all(part in _known for part in _parts(name))


def _parts(name: str) -> list[str]:
    """Return the names in a name: of one encoder, or of several side by side ("uni2_h+h_optimus_1")."""
    return [name] if name in _known else name.split(JOINS)


def info(name: str) -> EncoderInfo:
    """Return what is known of an encoder, or of several side by side ("uni2_h+h_optimus_1").

    Raises
    ------
    ValueError
        If there is none of that name; the nearest are listed.
    InputError
        If encoders side by side do not see the same patches.
    """
    parts = _parts(name)
    for part in parts:
        if part not in _known:
            raise ValueError(f"there is no encoder {part!r}{nearest(part)}; hggep_sc.encoders.list() has all")
    return _known[name] if len(parts) == 1 else together(name, [_known[part] for part in parts])


def info_of(encoder: str | nn.Module) -> EncoderInfo | None:
    """Return what is known of an encoder that a user gave; None for HGGEP's own, a module and embeddings."""
    if isinstance(encoder, Known):
        return encoder.info
    return info(encoder) if isinstance(encoder, str) and encoder != SHUFFLENET and is_known(encoder) else None


def default_encoder(weights: str | Path | None, *, of_pixels: bool = False) -> str:
    """Return the name of the encoder that "auto" stands for.

    Parameters
    ----------
    weights
        As given: a file, random ones, or "imagenet" are, as they were in 0.1, those of the ShuffleNet.
    of_pixels
        Whether the network learns from pixels, which is through the ShuffleNet.
    """
    return SHUFFLENET if of_pixels or weights != PRETRAINED[0] else DEFAULT


Portable = str | nn.Module | tuple[str | EncoderInfo, ...]  # what another process can know an encoder by


def portable_encoder(encoder: str | nn.Module) -> Portable:
    """Return what another process knows an encoder by: with what is known of those that the user registered."""
    if not isinstance(encoder, str) or all(part in _BUILT_IN or part not in _known for part in _parts(encoder)):
        return encoder
    return tuple(part if part in _BUILT_IN else _known[part] for part in _parts(encoder))


def known_here(encoder: Portable) -> str | nn.Module:
    """Return the encoder of `portable_encoder`, registered in this process."""
    if not isinstance(encoder, tuple):
        return encoder
    return JOINS.join(part if isinstance(part, str) else register(part).name for part in encoder)


def require_weights(encoder: str | nn.Module, weights: str | Path | None) -> None:
    """Refuse weights that are not on this machine, before anything is read; an encoder's own are looked for later.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file or folder.
    """
    if weights in PRETRAINED:
        return
    parts = _parts(encoder) if isinstance(encoder, str) else []
    if len(parts) > 1:
        for part in parts:
            require_weights(part, weights_of_member(part, weights))
    else:
        locate_weights(weights) if (known := info_of(encoder)) is None else located(known, weights)


def nearest(name: str) -> str:
    """Return the names of encoders that are nearly this one, for a message; nothing where there is none."""
    alike = name.lower().replace("-", "_")
    found = get_close_matches(alike, _known, n=3, cutoff=0.5) or [known for known in _known if alike in known]
    return f", but {', '.join(map(repr, found))}" if found else ""


def register(encoder: EncoderInfo) -> EncoderInfo:
    """Make an encoder known by its name, to `hggep_sc.tl.fit(encoder=...)` of every method.

    Parameters
    ----------
    encoder
        What is known of it. One of the same name, but for those of the package, is replaced.

    Returns
    -------
    The same.

    Raises
    ------
    TypeError
        If it is no `EncoderInfo`.
    ValueError
        If its name is that of one of the package, or has a "+".
    """
    if not isinstance(encoder, EncoderInfo):
        raise TypeError(f"an encoder is registered by an EncoderInfo, not a {type(encoder).__name__}")
    if _BUILT_IN.get(encoder.name, encoder) is not encoder:
        raise ValueError(f"encoder {encoder.name!r} is one of hggep_sc: choose another name")
    if JOINS in encoder.name:
        raise ValueError(f"encoder {encoder.name!r}: {JOINS!r} joins the names of encoders side by side")
    _known[encoder.name] = encoder
    return encoder


def load(name: str, weights: str | Path | None = "pretrained") -> Known:
    """Return an encoder with its weights; while it is in use, the same object for every call.

    Parameters
    ----------
    name
        One of `hggep_sc.encoders.list()`, but for "shufflenet" alone, which a model's configuration builds; or several,
        which see side by side: "uni2_h+h_optimus_1".
    weights
        "pretrained": its own, downloaded if need be; a file or folder (a snapshot of its hub's) on this machine; None:
        random ones, always the same. For several encoders a folder that has a file or a folder for each, called by its
        name ("uni2_h" or "uni2_h.safetensors"); those that it lacks take their own.

    Returns
    -------
    A module: patches (N, 3, px, px), pixels in 0..255, to features (N, D). `tl.fit(encoder=...)` takes it too.

    Raises
    ------
    ValueError
        If there is none of that name, or it is "shufflenet".
    MissingPackageError
        If a package is not installed that it needs.
    WeightsError
        If its weights are not on this machine and cannot be had; the message names the command and the licence.
    ModelError
        If the file or folder holds another network.
    InputError
        If several do not see the same patches, or are given a file.
    FileNotFoundError
        If there is no such file or folder.
    """
    known = info(name)
    if len(parts := _parts(name)) > 1:
        members = [_member(part, weights_of_member(part, weights)) for part in parts]
        return SideBySide(known, members, random=weights is None)
    if name == SHUFFLENET:
        raise ValueError("'shufflenet' is built by a model's configuration: give its name to tl.fit(encoder=)")
    path = located(known, weights)
    key = name, path
    if (encoder := _loaded.get(key)) is not None and encoder.info is known:
        return encoder
    with own_random_state(0):  # for one thread at a time: another may have built it meanwhile
        if (encoder := _loaded.get(key)) is None or encoder.info is not known:
            encoder = NamedEncoder(known, known.build(path), random=weights is None)
            _loaded[key] = encoder
    return encoder


def _member(name: str, weights: str | Path | None) -> Encoder:
    """Return one of several encoders; of "shufflenet" the plain one, without what a configuration may add."""
    if name != SHUFFLENET:
        return load(name, weights)
    with own_random_state(0):
        own = ShuffleNetEncoder()
    if (path := locate_weights(weights)) is not None:
        load_pretrained(own, path)
    return own


def table() -> pd.DataFrame:
    """Return what is known of all encoders, a row each."""
    rows = {
        one.name: {
            "encoder": one.title,
            "parameters (M)": one.parameters,
            "features": one.dimension,
            "pooled": one.pooled,
            "px": one.px,
            "um per px": one.mpp,
            "weights": one.hub or "see below",
            "extra": one.extra,
            "licence": one.licence,
            "commercial use": one.commercial,
            "on request": one.gated,
        }
        for one in _known.values()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
