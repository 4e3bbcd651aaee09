"""Gradient enhancement module (GEM): ordinary beside central-difference convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CentralDifferenceConv(nn.Conv2d):
    r"""Central-difference convolution, equation 2 of the paper.

    .. math:: y(p_0) = \sum_n w(p_n)\, x(p_0 + p_n) - \theta\, x(p_0) \sum_n w(p_n)

    With `theta = 0` it is an ordinary convolution. Kernel 3, stride 2, padding 1.
    """

    def __init__(self, in_channels: int, out_channels: int, theta: float = 0.7) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        centre = F.conv2d(x, self.weight.sum((2, 3), keepdim=True), stride=2)
        return super().forward(x) - self.theta * centre


class GEM(nn.Module):
    """BN(ReLU(MLP([BN(ReLU(TC(x))), BN(ReLU(DC(x)))]))): (N, 3, H, W) -> (N, 3, H/2, W/2)."""

    def __init__(self, channels: int = 3, branch_channels: int = 6, theta: float = 0.7) -> None:
        super().__init__()
        self.traditional = nn.Sequential(
            nn.Conv2d(channels, branch_channels, 3, stride=2, padding=1), nn.ReLU(), nn.BatchNorm2d(branch_channels)
        )
        self.difference = nn.Sequential(
            CentralDifferenceConv(channels, branch_channels, theta), nn.ReLU(), nn.BatchNorm2d(branch_channels)
        )
        self.mlp = nn.Sequential(nn.Conv2d(2 * branch_channels, channels, 1), nn.ReLU(), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(torch.cat([self.traditional(x), self.difference(x)], dim=1))
