"""Capsules with self-attention in place of routing, as THItoGene has them; names are those of its state dict.

Mazzia, Salvetti, Chiaberge: "Efficient-CapsNet: capsule network with self-attention routing", Scientific Reports, 2021.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dynamic_convolution import LoneNorm

TINY = 1e-20


def squash(v: Tensor) -> Tensor:
    """Shorten vectors along the last axis to a length below 1: (1 - e^-|v|) v / |v|."""
    length = v.norm(dim=-1, keepdim=True)
    return -torch.expm1(-length) * v / (length + TINY)  # 1 - 1 / e^|v| has no gradient from a length of 88.7 on


class PrimaryCapsules(nn.Module):
    """Each channel of a map weighed to a number, and these taken together to capsules.

    Parameters
    ----------
    channels
        Of the map.
    side
        Of the map.
    width
        Channels in a capsule.
    """

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.depthwise_conv = nn.Conv2d(channels, channels, side, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, side, side) to (N, channels / width, width)."""
        return squash(self.depthwise_conv(x).view(len(x), -1, self.width))


class DigitCapsules(nn.Module):
    """v_c = squash(sum_i (w_ci + b_ci) u_ci), u_ci = p_i W_ci, w = softmax over c of u_ci . sum_k u_ck / sqrt(width).

    Parameters
    ----------
    n_in, width_in
        Number and length of the capsules p.
    n_out, width_out
        Likewise of v.
    """

    def __init__(self, n_in: int, width_in: int, n_out: int, width_out: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(n_out, n_in, width_in, width_out) / width_in**0.5)
        self.b = nn.Parameter(torch.zeros(n_out, n_in, 1))

    def forward(self, p: Tensor) -> Tensor:
        """(N, n_in, width_in) to (N, n_out, width_out)."""
        u = torch.einsum("nij,cijw->nciw", p, self.W)
        agreement = (u * u.sum(2, keepdim=True)).sum(-1, keepdim=True) / u.shape[-1] ** 0.5
        return squash(((agreement.softmax(1) + self.b) * u).sum(2))


class CapsuleLayer(nn.Module):
    """Four convolutions, the last of stride 2, primary capsules, and digit capsules.

    Parameters
    ----------
    channels
        Of the map that comes in, and after each convolution.
    side
        Of the map that comes in.
    primary_width
        Length of a primary capsule.
    n_capsules, width
        Number and length of the digit capsules.
    """

    def __init__(
        self, channels: tuple[int, int, int, int, int], side: int, primary_width: int, n_capsules: int, width: int
    ) -> None:
        super().__init__()
        in_, one, two, three, four = channels
        self.conv1, self.batch_norm1 = nn.Conv2d(in_, one, 5), nn.BatchNorm2d(one)
        self.conv2, self.batch_norm2 = nn.Conv2d(one, two, 3), nn.BatchNorm2d(two)
        self.conv3, self.batch_norm3 = nn.Conv2d(two, three, 3), nn.BatchNorm2d(three)
        self.conv4, self.batch_norm4 = nn.Conv2d(three, four, 3, stride=2), LoneNorm(four)
        self.primary_caps = PrimaryCapsules(four, self.side_of_maps(side), primary_width)
        self.digit_caps = DigitCapsules(four // primary_width, primary_width, n_capsules, width)

    @staticmethod
    def side_of_maps(side: int) -> int:
        """Return the side of what the convolutions make of a map; below 1 where it is too small."""
        return (side - 4 - 2 - 2 - 3) // 2 + 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, side, side) to (N, n_capsules, width)."""
        return self.digit_caps(self.primary_caps(self.maps(x)))

    def maps(self, x: Tensor) -> Tensor:
        """Return what the convolutions make of it."""
        x = F.relu(self.batch_norm1(self.conv1(x)))
        x = F.relu(self.batch_norm2(self.conv2(x)))
        x = F.relu(self.batch_norm3(self.conv3(x)))
        return F.relu(self.batch_norm4(self.conv4(x)))
