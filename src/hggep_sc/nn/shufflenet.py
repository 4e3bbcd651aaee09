"""ShuffleNetV2 x0.5 (Ma et al., 2018) with the entry names of torchvision, without its classifier."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .folding import folded

STEM, CHANNELS, REPEATS, LAST = 24, (48, 96, 192), (4, 8, 4), 1024


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


class FoldedBranch:
    """The convolutions of a branch, each of which does what the batch normalisation after it did, and their ReLUs.

    A function that computes what the branch does in eval mode, where its weights are now: calls of so many small
    modules take a tenth of an encoder's time on a CPU, as only one thread at a time can be in Python.
    """

    def __init__(self, branch: nn.Sequential, memory_format: torch.memory_format) -> None:
        self.steps: list[tuple[tuple[Any, ...], bool]] = []  # a convolution, and whether a ReLU follows
        modules = list(branch)
        for conv, norm, after in zip(modules, modules[1:], [*modules[2:], None], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                one = folded(conv, norm)
                weight = one.weight.contiguous(memory_format=memory_format)
                how = weight, one.bias, one.stride, one.padding, one.dilation, one.groups
                self.steps.append((how, isinstance(after, nn.ReLU)))

    def __call__(self, x: Tensor) -> Tensor:
        for how, relu in self.steps:
            x = torch.conv2d(x, *how)
            if relu:
                torch.relu_(x)
        return x


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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of stages 2 to 4 and of the last convolution; x: (N, 3, H, W).

        Of a 112 px patch these are (48, 28, 28), (96, 14, 14), (192, 7, 7) and (1024, 7, 7); with the stem's max-pool
        of half the size.
        """
        return tuple(self.maps(x))

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """Yield them one by one, holding no more than the next takes: memory that is held does not serve the cache."""
        x = self.pool(self.conv1(x))
        for units in (self.stage2, self.stage3, self.stage4):
            for unit in units:
                x = unit(x)
            yield x
        yield self.conv5(x)

    def fold(self, memory_format: torch.memory_format) -> None:
        """Replace every branch by a function, on what has this memory format: for inference, and not to be moved."""
        for module in list(self.modules()):
            for name, branch in list(module.named_children()):
                if isinstance(branch, nn.Sequential) and any(isinstance(part, nn.BatchNorm2d) for part in branch):
                    delattr(module, name)
                    setattr(module, name, FoldedBranch(branch, memory_format))
