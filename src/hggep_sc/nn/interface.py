"""What goes into every network of the package, and what comes out."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
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


class Network(Protocol):
    """What the networks of the package have in common."""

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Predict from features (N, ...) and positions (N, 2)."""


def average_views(network: Network, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over views of expression (N, G) and latent (N, D); features (N, views, ...)."""
    outputs = [network.decode(view, positions) for view in features.unbind(1)]
    expression = torch.stack([out.expression for out in outputs]).mean(0)
    return expression, torch.stack([out.latent for out in outputs]).mean(0)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device; a GPU's queue is not waited for, which takes pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass
class Batch:
    """Spots of one section (or of a compact chunk of it): their patches, or the features of a frozen encoder."""

    patches: Tensor | None  # (N, fields, 3, S, S) uint8
    features: Tensor | None  # (N, fields, D)
    positions: Tensor  # (N, 2)
    expression: Tensor  # (N, G) targets on the model's scale
    counts: Tensor  # (N, G) raw
    size_factors: Tensor  # (N,) spot total over the section's median
    observed: Tensor  # (M,) int64: the spots whose counts may reach the loss; a mask would have to be waited for
    section: str = ""  # name of the section
