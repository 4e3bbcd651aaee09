"""EfficientNet-Lite (of efficientnet_lite_pytorch) as the maps of its resolutions."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import folded

CACHE = 2**23  # bytes of expanded maps, above which a CPU computes this many channels of them at once
CHANNELS = 16
ALL = slice(None)


def resolutions(network: Any, pixels: Tensor) -> list[Tensor]:
    """Return the last map of each resolution."""
    return _ends(network._swish(network._bn0(network._conv_stem(pixels))), network._blocks)


def _ends(maps: Tensor, blocks: Iterable[Any]) -> list[Tensor]:
    """Pass maps through blocks; return the last of each resolution."""
    found: list[Tensor] = []
    for block in blocks:
        deeper = block(maps)
        if deeper.shape[-1] < maps.shape[-1]:
            found.append(maps)
        maps = deeper
    return [*found, maps]


class Folded(nn.Module):
    """Gives the same maps in eval mode, in half the time on a CPU.

    Each convolution does what the batch normalisation after it did, and pads by itself; activations and additions are
    done in place.

    Parameters
    ----------
    network
        The network, which stays as it is.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem = FoldedConvolution(network._conv_stem, network._bn0, activated=True)
        self.blocks = nn.ModuleList(map(FoldedBlock, network._blocks))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, S, S) to the last map of each resolution."""
        return _ends(self.stem(pixels), self.blocks)


class FoldedBlock(nn.Module):
    """Expansion, where there is one, depthwise convolution and projection, and what was given where sizes stay."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        told = block._block_args
        self.adds = told.id_skip and told.stride == 1 and told.input_filters == told.output_filters
        expands = told.expand_ratio != 1
        self.expansion = FoldedConvolution(block._expand_conv, block._bn0, activated=True) if expands else None
        self.depthwise = FoldedConvolution(block._depthwise_conv, block._bn1, activated=True)
        self.projection = FoldedConvolution(block._project_conv, block._bn2, activated=False)

    def forward(self, maps: Tensor) -> Tensor:
        found = self.projection(self.depthwise(maps) if self.expansion is None else self._expanded(maps))
        return found.add_(maps) if self.adds else found

    def _expanded(self, maps: Tensor) -> Tensor:
        """Expand and convolve some channels at a time, where all of them would not fit a CPU's cache."""
        assert self.expansion is not None
        n = len(self.expansion.weight)
        large = maps.device.type == "cpu" and maps[:, :1].numel() * n * maps.element_size() > CACHE
        at_once = CHANNELS if large else n
        parts = [
            self.depthwise(self.expansion(maps, some), some)
            for some in (slice(start, start + at_once) for start in range(0, n, at_once))
        ]
        return torch.cat(parts, dim=1) if large else parts[0]


class FoldedConvolution(nn.Module):
    """ReLU6(W * maps + b), or without the ReLU6."""

    def __init__(self, conv: Any, norm: nn.BatchNorm2d, *, activated: bool) -> None:
        super().__init__()
        one = folded(conv, norm)
        left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
        # where less is padded above and left, zeros in the kernel are in its place: a padded copy takes longer
        self.weight = nn.Parameter(F.pad(one.weight, (right - left, 0, bottom - top, 0)), requires_grad=False)
        assert one.bias is not None  # it holds the normalisation's
        self.bias = one.bias
        self.how = {"stride": one.stride, "padding": (bottom, right), "dilation": one.dilation}
        self.depthwise = one.groups > 1
        self.activated = activated

    def forward(self, maps: Tensor, channels: slice = ALL) -> Tensor:
        """(N, C_in, H, W) to some of the channels (N, C, H', W'); of a depthwise one `maps` holds these alone."""
        weight, bias = self.weight[channels], self.bias[channels]
        found = F.conv2d(maps, weight, bias, groups=len(weight) if self.depthwise else 1, **self.how)
        return found.clamp_(0, 6) if self.activated else found
