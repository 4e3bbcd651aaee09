"""Random changes of patches, flips and rotations of the square and stain, and of a frozen encoder's features."""

from functools import cache

import torch
from torch import Tensor

# optical density of haematoxylin, eosin and residual, one per row (Ruifrok & Johnston 2001, rows of unit length)
STAINS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
STAINS = STAINS / STAINS.norm(dim=1, keepdim=True)
UNSTAINED = torch.linalg.inv(STAINS)


def dihedral(patches: Tensor, turns: Tensor, flips: Tensor) -> Tensor:
    """Turn each spot's patches by a multiple of 90 degrees after an optional mirroring.

    Parameters
    ----------
    patches
        (N, fields, 3, S, S); the fields of one spot are turned alike.
    turns
        (N,) quarter turns, 0..3, counter-clockwise.
    flips
        (N,) bool, mirrored left to right first.
    """
    turns, flips = (drawn.view(-1, 1, 1, 1, 1) for drawn in (turns, flips))
    upright = out = torch.where(flips, patches.flip(-1), patches)
    for quarter in (1, 2, 3):
        out = torch.where(turns == quarter, torch.rot90(upright, quarter, (-2, -1)), out)
    return out


def random_dihedral(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Apply one of the eight symmetries of the square to each spot, drawn evenly."""
    n, device = len(patches), patches.device
    turns = torch.randint(4, (n,), generator=generator, device=device)
    flips = torch.randint(2, (n,), generator=generator, device=device).bool()
    return dihedral(patches, turns, flips)


def stain_jitter(patches: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Scale each stain's optical density by exp(N(0, sigma)), drawn per spot.

    Parameters
    ----------
    patches
        (N, fields, 3, S, S), 0..255.

    Returns
    -------
    Float patches, 0..255.
    """
    factors = torch.exp(sigma * torch.randn(len(patches), 3, generator=generator, device=patches.device))
    stains, inverse = _stains(patches.device)
    density = -torch.log((patches.float() + 1) / 256).flatten(3)
    with torch.autocast(patches.device.type, enabled=False):  # pixels have as many bits as bfloat16
        # density' = density @ S^-1 @ diag(factors) @ S, one 3 x 3 matrix per spot
        mixing = inverse @ (factors[:, :, None] * stains)
        jittered = (mixing.transpose(1, 2)[:, None] @ density).view(patches.shape)
    return (256 * torch.exp(-jittered) - 1).clamp(0, 255)


@cache
def _stains(device: torch.device) -> tuple[Tensor, Tensor]:
    """`STAINS` and their inverse, uploaded once: a GPU would be waited for in every step."""
    return STAINS.to(device), UNSTAINED.to(device)


def random_shift(features: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Move all spots' features alike, by a normal draw of standard deviation `scale` (fields, D)."""
    return features + scale * torch.randn(scale.shape, generator=generator, device=features.device)
