"""Networks trained from different seeds, averaged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from .encoder import Encoder
from .hggep import HGGEPNetwork
from .interface import Output

if TYPE_CHECKING:
    from ..config import Config


class Ensemble(nn.Module):
    """The mean of networks that share a frozen encoder (Lakshminarayanan et al., NeurIPS 2017).

    Parameters
    ----------
    networks
        Trained with the same encoder, which is taken out of them; or without one, where features are given.
    """

    centres = staticmethod(HGGEPNetwork.centres)
    positions = staticmethod(HGGEPNetwork.positions)

    def __init__(self, networks: Sequence[HGGEPNetwork]) -> None:
        super().__init__()
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
        """Sizes of the groups of features."""
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
        outputs = [network.decode(features, positions) for network in self._members]
        expression = torch.stack([out.expression for out in outputs]).mean(0)
        return Output(expression, torch.cat([out.latent for out in outputs], dim=1), None)

    def scale_output(self, factor: float) -> None:
        """Multiply what is predicted around the gene means."""
        for network in self._members:
            network.scale_output(factor)


def averaged(networks: Sequence[HGGEPNetwork]) -> HGGEPNetwork | Ensemble:
    """Return the ensemble of several networks, and the one where there is one."""
    return Ensemble(networks) if len(networks) > 1 else networks[0]
