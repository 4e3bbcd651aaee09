"""Networks trained from different seeds, averaged."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from .encoder import Encoder
from .hggep import HGGEPNetwork
from .interface import Output

if TYPE_CHECKING:
    from ..config import Config


class Seen(NamedTuple):
    """What a network sees of features: the columns, and the sizes of the groups in them."""

    columns: slice
    groups: tuple[int, ...]


class Ensemble(nn.Module):
    """The mean of networks that share a frozen encoder (Lakshminarayanan et al., NeurIPS 2017).

    Parameters
    ----------
    networks
        Trained with the same encoder, which is taken out of them; or without one, where features are given.
    seen
        What each of them sees of the features, as `seen_by_each` tells; everything where it is not given.
    """

    centres = staticmethod(HGGEPNetwork.centres)
    positions = staticmethod(HGGEPNetwork.positions)

    def __init__(self, networks: Sequence[HGGEPNetwork], seen: Sequence[Seen | None] = ()) -> None:
        super().__init__()
        self.columns = [slice(None) if part is None else part.columns for part in seen or [None for _ in networks]]
        self.encoder: Encoder | None = networks[0].encoder
        for network in networks:
            network.encoder = None
        self.networks = nn.ModuleList(networks)

    @property
    def config(self) -> "Config":
        """The configuration that all were trained with."""
        return self._members[0].config

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of the groups of features that the first network sees."""
        return self._members[0].groups

    @property
    def gene_mean(self) -> Tensor:
        """(G,) what all predict around."""
        return self._members[0].gene_mean

    @property
    def _members(self) -> list[HGGEPNetwork]:
        return cast("list[HGGEPNetwork]", list(self.networks))

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Mean expression, and all latent representations beside each other, as each has axes of its own."""
        outputs = [
            network.decode(features[..., columns], positions)
            for network, columns in zip(self._members, self.columns, strict=True)
        ]
        expression = torch.stack([out.expression for out in outputs]).mean(0)
        return Output(expression, torch.cat([out.latent for out in outputs], dim=1), None)

    def scale_output(self, factor: float) -> None:
        """Multiply what is predicted around the gene means."""
        for network in self._members:
            network.scale_output(factor)


def averaged(networks: Sequence[HGGEPNetwork], seen: Sequence[Seen | None] = ()) -> HGGEPNetwork | Ensemble:
    """Return the ensemble of several networks, see `Ensemble`, and the one where there is one."""
    return Ensemble(networks, seen) if len(networks) > 1 else networks[0]


def seen_by_each(encoder: object, n: int) -> list[Seen | None]:
    """Tell what each of `n` networks sees of encoders side by side: the features of one, in turn.

    Returns
    -------
    None for a network that sees everything: of a single encoder, of embeddings, and where there is one network.

    Raises
    ------
    ValueError
        If there are fewer networks than encoders, but more than one.
    """
    if n == 1 or not isinstance(encoder, Encoder) or len(encoder.members) == 1:
        return [None] * n
    members = [Seen(*part) for part in zip(encoder.columns, (one.groups for one in encoder.members), strict=True)]
    if n < len(members):
        raise ValueError(
            f"config.ensemble={n}: of {len(members)} encoders side by side each is seen through by a network of its "
            f"own, or all by a single one: set {len(members)} or more, or 1"
        )
    return list(islice(cycle(members), n))
