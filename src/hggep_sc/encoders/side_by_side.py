"""Several encoders at once: "uni2_h+h_optimus_1"."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..nn import Encoder
from ..runtime.validators import path_of
from ..storage.paths import require_there
from .card import EncoderInfo
from .named import NamedEncoder
from .weights import PRETRAINED

JOINS = "+"  # names of encoders that see side by side


class SideBySide(Encoder):
    """Encoders whose features of a patch follow one another; each sees the slide in its own way.

    Parameters
    ----------
    info
        What `together` told of them.
    members
        The encoders; none is trained.
    random
        Whether their weights are.
    """

    stored = False

    def __init__(self, info: EncoderInfo, members: Sequence[Encoder], *, random: bool = False) -> None:
        super().__init__()
        self.info, self.random = info, random
        self._members = nn.ModuleList(member.requires_grad_(False).eval() for member in members)
        self.groups = tuple(group for member in members for group in member.groups)
        self.sight = members[0].sight  # of what is described at once; each encodes by its own

    @property
    def members(self) -> tuple[Encoder, ...]:
        """The encoders, in their order."""
        return tuple(member for member in self._members if isinstance(member, Encoder))

    @property
    def id(self) -> str:
        """Those of all."""
        return JOINS.join(member.id for member in self.members)

    def train(self, mode: bool = True) -> "SideBySide":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, patches: Tensor) -> Tensor:
        return torch.cat([member(patches) for member in self.members], dim=1)


Known = NamedEncoder | SideBySide  # by a name


def together(name: str, parts: Sequence[EncoderInfo]) -> EncoderInfo:
    """Return what is known of encoders side by side.

    Raises
    ------
    InputError
        If one is named twice, or they are made for patches of other sizes or scales.
    """
    first = parts[0]
    if len(set(parts)) < len(parts):
        raise InputError(f"encoder={name!r} names an encoder twice")
    if other := next((part for part in parts if (part.px, part.mpp) != (first.px, first.mpp)), None):
        raise InputError(
            f"encoder={name!r}: {first.name!r} was made for patches of {_patches(first)}, {other.name!r} for "
            f"{_patches(other)}; side by side they see the same ones"
        )
    dimensions = [part.dimension for part in parts]
    return replace(
        first,
        name=name,
        build=_by_load,
        title=" beside ".join(part.title or part.name for part in parts),
        pooled="; ".join(dict.fromkeys(part.pooled for part in parts)),
        dimension=None if None in dimensions else sum(number or 0 for number in dimensions),
        parameters=sum(part.parameters or 0.0 for part in parts),
        hub=None,
        licence="; ".join(dict.fromkeys(part.licence for part in parts)),
        commercial=all(part.commercial for part in parts),
        gated=any(part.gated for part in parts),
        reference="; ".join(part.reference for part in parts),
    )


def _by_load(path: Path | None) -> nn.Module:
    raise TypeError("encoders side by side are built by hggep_sc.encoders.load")


def _patches(info: EncoderInfo) -> str:
    return f"{info.px} px" + ("" if info.mpp is None else f" at {info.mpp:g} um per px")


def weights_of_member(name: str, weights: str | Path | None) -> str | Path | None:
    """Return the weights of one of several encoders.

    Parameters
    ----------
    name
        Its name.
    weights
        Of all: "pretrained", None, or a folder with a file or a folder for those of them that are on this machine,
        called by their names: "uni2_h" or "uni2_h.safetensors". Others have their own.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    InputError
        If it is a file, or holds two of that name.
    """
    if weights is None or weights in PRETRAINED:
        return weights
    folder = path_of("weights", weights)
    require_there(folder, "weights")
    if not folder.is_dir():
        raise InputError(
            f"weights={str(folder)!r} is a file: for several encoders it is a folder with a file or a folder for each, "
            f"called {name!r} and so on"
        )
    found = [path for path in sorted(folder.iterdir()) if name in (path.name, path.stem)]
    if len(found) > 1:
        raise InputError(f"weights={str(folder)!r} holds {name!r} twice: {found[0].name}, {found[1].name}")
    return found[0] if found else PRETRAINED[0]
