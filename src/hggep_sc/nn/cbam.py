"""Convolutional block attention module (CBAM), equations 6-9 of the paper (after Woo et al. 2018)."""

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Equation 6: the gate sigmoid(MLP(AvgPool(F) + MaxPool(F))), (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels // reduction), nn.ReLU(), nn.Linear(channels // reduction, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)) + x.amax((2, 3))
        return torch.sigmoid(self.mlp(pooled))[:, :, None, None]


class SpatialAttention(nn.Module):
    """Equation 8: the gate sigmoid(conv7x7([mean over C, max over C])), (N, C, H, W) -> (N, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.mean(1), x.amax(1)], dim=1)
        return torch.sigmoid(self.conv(pooled))


class CBAM(nn.Module):
    """Equations 7 and 9: F' = M_c(F) * F, then F'' = M_s(F') * F'."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel(x) * x
        return self.spatial(x) * x
