"""What goes into every network of the package, and what comes out."""

from dataclasses import dataclass
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


@dataclass
class Batch:
    """Spots of one section (or of a compact chunk of it)."""

    patches: Tensor  # (N, fields, 3, S, S) uint8
    positions: Tensor  # (N, 2)
    expression: Tensor  # (N, G) targets on the model's scale
    counts: Tensor  # (N, G) raw
    size_factors: Tensor  # (N,) spot total over the section's median
    observed: Tensor  # (N,) bool: spots whose counts may reach the loss
    section: str = ""  # name of the section
