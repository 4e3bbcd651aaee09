"""ShuffleNetV2 x0.5 (Ma et al., 2018) with the entry names of torchvision, without its classifier."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

STEM, CHANNELS, REPEATS, LAST = 24, (48, 96, 192), (4, 8, 4), 1024


class FeatureMaps(NamedTuple):
    """Maps of one forward pass; the sizes are those of a 112 px patch without / with the stem's max-pool."""

    stage2: Tensor  # (N, 48, 28 / 14, ...)
    stage3: Tensor  # (N, 96, 14 / 7, ...)
    stage4: Tensor  # (N, 192, 7 / 4, ...)
    conv5: Tensor  # (N, 1024, 7 / 4, ...)


def pointwise(channels_in: int, channels_out: int) -> list[nn.Module]:
    """1x1 convolution, batch normalisation, ReLU."""
    return [
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]


def depthwise(channels: int, stride: int) -> list[nn.Module]:
    """3x3 convolution of each channel by itself, batch normalisation."""
    return [
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
    ]


def shuffle(first: Tensor, second: Tensor) -> Tensor:
    """Interleave the channels of two (N, C, H, W), so that the next unit's branches see both: (N, 2 C, H, W)."""
    if second.is_contiguous():
        return torch.stack([first, second], dim=2).flatten(1, 2)
    last = first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1)
    # of single precision as real and imaginary part, for single channels are slow to copy; there is no such bfloat16
    pairs = torch.view_as_real(torch.complex(*last)) if second.dtype == torch.float32 else torch.stack(last, dim=-1)
    return pairs.flatten(3).permute(0, 3, 1, 2)


class Unit(nn.Module):
    """Keeps half of the channels and convolves the other half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch2 = nn.Sequential(*pointwise(half, half), *depthwise(half, 1), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        kept, worked = x.chunk(2, dim=1)
        return shuffle(kept, self.branch2(worked))


class DownUnit(nn.Module):
    """Halves height and width; both branches see all channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.branch1 = nn.Sequential(*depthwise(channels_in, 2), *pointwise(channels_in, half))
        self.branch2 = nn.Sequential(*pointwise(channels_in, half), *depthwise(half, 2), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H/2, W/2)."""
        return shuffle(self.branch1(x), self.branch2(x))


def stem() -> nn.Sequential:
    """3x3 convolution of stride 2 from the three colours, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, STEM, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True)
    )


def stage(channels_in: int, channels_out: int, repeats: int) -> nn.Sequential:
    """One unit that halves the map, and `repeats - 1` that keep its size."""
    return nn.Sequential(DownUnit(channels_in, channels_out), *(Unit(channels_out) for _ in range(repeats - 1)))


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 x0.5 trunk whose state dict is torchvision's without `fc`.

    Parameters
    ----------
    stem_pool
        Whether the stem halves its map once more by max-pooling, as torchvision's does; HGGEP leaves it out.
    """

    def __init__(self, stem_pool: bool) -> None:
        super().__init__()
        self.conv1 = stem()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else nn.Identity()
        self.stage2 = stage(STEM, CHANNELS[0], REPEATS[0])
        self.stage3 = stage(CHANNELS[0], CHANNELS[1], REPEATS[1])
        self.stage4 = stage(CHANNELS[1], CHANNELS[2], REPEATS[2])
        self.conv5 = nn.Sequential(*pointwise(CHANNELS[2], LAST))

    def forward(self, x: Tensor) -> FeatureMaps:
        """Compute the maps of stages 2 to 4 and of the last convolution; x: (N, 3, H, W)."""
        stage2 = self.stage2(self.pool(self.conv1(x)))
        stage3 = self.stage3(stage2)
        stage4 = self.stage4(stage3)
        return FeatureMaps(stage2, stage3, stage4, self.conv5(stage4))
