"""What every network of the package returns."""

from typing import NamedTuple

from torch import Tensor


class CountParameters(NamedTuple):
    """Zero-inflated negative binomial of the raw counts, each (N, G), before size factors."""

    mean: Tensor  # > 0; multiplied by a spot's size factor
    dispersion: Tensor  # > 0; the negative binomial's r: variance = mean + mean^2 / r
    dropout: Tensor  # probability of an excess zero, 0..1


class Output(NamedTuple):
    """Prediction for the N spots of one section."""

    expression: Tensor  # (N, G) absolute log expression
    latent: Tensor  # (N, D)
    counts: CountParameters | None  # None where the network has no count head
