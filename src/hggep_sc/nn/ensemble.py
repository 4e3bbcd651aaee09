"""Networks that see parts of the features, averaged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from .encoder import Encoder
from .hggep import HGGEPNetwork
from .interface import Output

if TYPE_CHECKING:
    from ..config import Config


LEAST = 3  # networks, where nothing is said


class Seen(NamedTuple):
    """Which groups of features a network sees: from `first` to before `end`."""

    first: int
    end: int

    def columns(self, groups: Sequence[int]) -> slice:
        """Return their columns among features of groups of these sizes."""
        return slice(sum(groups[: self.first]), sum(groups[: self.end]))


class Ensemble(nn.Module):
    """The mean of networks that share a frozen encoder (Lakshminarayanan et al., NeurIPS 2017).

    Each may see a part of the features, so that they err differently (random subspaces, Ho, IEEE TPAMI 1998; here the
    parts are the resolutions of an encoder).

    Parameters
    ----------
    networks
        Trained with the same encoder, which is taken out of them; or without one, where features are given.
    groups
        Sizes of the groups of the features; those of the networks, where none are given.
    seen
        Which of them each network sees; all, where none are given.
    """

    centres = staticmethod(HGGEPNetwork.centres)
    positions = staticmethod(HGGEPNetwork.positions)

    def __init__(self, networks: Sequence[HGGEPNetwork], groups: Sequence[int] = (), seen: Sequence[Seen] = ()) -> None:
        super().__init__()
        self.groups = tuple(groups) or networks[0].groups
        self.seen = list(seen) or [Seen(0, len(self.groups)) for _ in networks]
        self.encoder: Encoder | None = networks[0].encoder
        for network in networks:
            network.encoder = None
        self.networks = nn.ModuleList(networks)

    @property
    def config(self) -> "Config":
        """The configuration that all were trained with."""
        return self._members[0].config

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
            network.decode(features[..., part.columns(self.groups)], positions)
            for network, part in zip(self._members, self.seen, strict=True)
        ]
        expression = torch.stack([out.expression for out in outputs]).mean(0)
        return Output(expression, torch.cat([out.latent for out in outputs], dim=1), None)

    def scale_output(self, factor: float) -> None:
        """Multiply what is predicted around the gene means."""
        for network in self._members:
            network.scale_output(factor)


def averaged(
    networks: Sequence[HGGEPNetwork], groups: Sequence[int] = (), seen: Sequence[Seen] = ()
) -> HGGEPNetwork | Ensemble:
    """Return the ensemble of several networks, see `Ensemble`, and the one where there is one."""
    return Ensemble(networks, groups, seen) if len(networks) > 1 else networks[0]


def networks_for(n_groups: int) -> int:
    """Return how many networks an ensemble has where nothing is said: as many for each group, and three at least."""
    return n_groups * -(-LEAST // n_groups)


def seen_by_each(n_groups: int, n: int) -> list[Seen]:
    """Tell which groups of features each of `n` networks sees: one, in turn; one network alone sees all.

    Where there are fewer networks than groups, each sees some that follow one another.
    """
    parts = min(n, n_groups)
    edges = [part * n_groups // parts for part in range(parts + 1)]
    return [Seen(edges[network % parts], edges[network % parts + 1]) for network in range(n)]
