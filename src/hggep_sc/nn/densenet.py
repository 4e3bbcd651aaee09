"""DenseNet-121 (Huang et al., CVPR 2017) without its classifier, with torchvision's entry names."""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

DEPTHS = (6, 12, 24, 16)  # layers of the four dense blocks
BOTTLENECK = 4  # times a layer's growth are between its convolutions


class DenseLayer(nn.Module):
    """conv2(ReLU(norm2(conv1(ReLU(norm1 x))))): what a layer adds to all that came before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        inner = BOTTLENECK * growth
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, growth, H, W)."""
        return self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())


class DenseBlock(nn.Sequential):
    """Each layer sees the block's input and what the layers before it added; the output is all of them."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + layers growth, H, W)."""
        for layer in self:
            x = torch.cat([x, layer(x)], dim=1)
        return x


def transition(channels: int) -> nn.Sequential:
    """Half the channels, and half the sides."""
    parts = [
        ("norm", nn.BatchNorm2d(channels)),
        ("relu", nn.ReLU(inplace=True)),
        ("conv", nn.Conv2d(channels, channels // 2, 1, bias=False)),
        ("pool", nn.AvgPool2d(2, stride=2)),
    ]
    return nn.Sequential(OrderedDict(parts))


def densenet_features(depths: Sequence[int] = DEPTHS, growth: int = 32, stem: int = 64) -> tuple[nn.Sequential, int]:
    """Return the layers up to `norm5`, and how many channels leave them.

    Parameters
    ----------
    depths
        Layers of each dense block.
    growth
        Channels that a layer adds.
    stem
        Channels of the first convolution.
    """
    parts: list[tuple[str, nn.Module]] = [
        ("conv0", nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)),
        ("norm0", nn.BatchNorm2d(stem)),
        ("relu0", nn.ReLU(inplace=True)),
        ("pool0", nn.MaxPool2d(3, stride=2, padding=1)),
    ]
    channels = stem
    for number, depth in enumerate(depths, 1):
        layers = [(f"denselayer{i + 1}", DenseLayer(channels + i * growth, growth)) for i in range(depth)]
        parts.append((f"denseblock{number}", DenseBlock(OrderedDict(layers))))
        channels += depth * growth
        if number < len(depths):
            parts.append((f"transition{number}", transition(channels)))
            channels //= 2
    parts.append((f"norm{len(depths) + 1}", nn.BatchNorm2d(channels)))
    return nn.Sequential(OrderedDict(parts)), channels


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's file under today's names: inside dense layers it has `norm.1` where `norm1` stands now."""
    return {re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", name): value for name, value in state.items()}
