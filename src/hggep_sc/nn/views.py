"""Augmented views of a section, for the self-distillation of Hist2ST and of the released HGGEP."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GREY, TURN, FLIP = 0.1, 90, 0.2  # probability; degrees, both ways; probability
LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue


class ViewNorm(nn.BatchNorm2d):
    """Batch normalisation of several views of a section in one batch, one view after the other.

    In training each view is normalised by its own statistics, and the running ones see them in turn.
    """

    views = 1  # equal parts of the batch

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (views * N, C, H, W)."""
        if self.views == 1 or not self.training:
            return super().forward(x)
        normalise = super().forward
        return torch.cat([normalise(view) for view in x.chunk(self.views)])


def set_views(network: nn.Module, views: int) -> None:
    """Tell a network's layers how many views a batch holds."""
    for module in network.modules():
        if isinstance(module, ViewNorm):
            module.views = views


def augment(pixels: Tensor, views: int, generator: torch.Generator) -> Tensor:
    """Augmented views of a section: in each all patches are alike, grey or not, rotated, flipped or not.

    Parameters
    ----------
    pixels
        (N, 3, S, S), float.
    views
        How many.
    generator
        Source of three random numbers for each view, on the device of the pixels.

    Returns
    -------
    (views, N, 3, S, S).
    """
    grey, turn, flip = torch.rand(views, 3, 1, 1, generator=generator, device=pixels.device).unbind(1)
    red, green, blue = pixels.unbind(1)
    luma = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
    coloured = torch.where(grey[..., None, None] < GREY, luma, pixels)
    # by hand: under autocast, `affine_grid` rounds to bfloat16, whose 8 bits do not tell a pixel from the next
    size = pixels.shape[-1]
    at = (2 * torch.arange(size, device=pixels.device) + 1) / size - 1
    x, y = torch.where(flip < FLIP, -at, at), at[:, None]
    angle = (turn - 0.5) * math.radians(2 * TURN)
    cos, sin = torch.cos(angle), torch.sin(angle)
    grid = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    # the patches of a view turn as one image of 3N channels
    turned = F.grid_sample(coloured.flatten(1, 2), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned.view_as(coloured)
