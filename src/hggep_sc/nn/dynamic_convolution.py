"""Omni-dimensional dynamic convolution, as THItoGene has it; names are those of its state dict.

Li, Zhou, Yao: "Omni-dimensional dynamic convolution", ICLR 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 16  # of the attentions, at least


class LoneNorm(nn.BatchNorm2d):
    """Batch normalisation, of a single value per channel (a spot alone, which has no variance) by the running one."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if self.training and x[:, 0].numel() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class KernelAttention(nn.Module):
    """Attentions over input channels, filters, places in the kernel and candidate kernels, from a patch's mean colour.

    Parameters
    ----------
    channels, filters
        In and out.
    kernel
        Side of the kernel.
    candidates
        Candidate kernels.
    """

    def __init__(self, channels: int, filters: int, kernel: int, candidates: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, HIDDEN, 1, bias=False)
        self.bn = LoneNorm(HIDDEN)
        self.channel_fc = nn.Conv2d(HIDDEN, channels, 1)
        self.filter_fc = nn.Conv2d(HIDDEN, filters, 1)
        self.spatial_fc = nn.Conv2d(HIDDEN, kernel * kernel, 1)
        self.kernel_fc = nn.Conv2d(HIDDEN, candidates, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, C, H, W) to weights (N, C), (N, filters), (N, kernel, kernel) and (N, candidates)."""
        h = F.relu(self.bn(self.fc(x.mean((2, 3), keepdim=True))))
        channel, out, place = (
            torch.sigmoid(layer(h)).flatten(1) for layer in (self.channel_fc, self.filter_fc, self.spatial_fc)
        )
        side = int(place.shape[1] ** 0.5)
        return channel, out, place.view(-1, side, side), self.kernel_fc(h).flatten(1).softmax(1)


class DynamicConvolution(nn.Module):
    """A convolution with a kernel of each patch's own: f * conv(a * x, sum_k k_k W_k * s), without padding or bias.

    Parameters
    ----------
    channels, filters, candidates
        As in `KernelAttention`.
    kernel
        Side of the kernel, and its stride.
    """

    def __init__(self, channels: int, filters: int, kernel: int, candidates: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(candidates, filters, channels, kernel, kernel))
        for candidate in self.weight:
            nn.init.kaiming_normal_(candidate, mode="fan_out", nonlinearity="relu")
        self.attention = KernelAttention(channels, filters, kernel, candidates)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, filters, H / kernel, W / kernel)."""
        a, f, s, k = self.attention(x)
        n, _, height, width = x.shape
        kernels = torch.einsum("nk,kocij,nij,nc,no->nocij", k, self.weight, s, a, f)  # a and f act linearly
        side = self.weight.shape[-1]
        # a group of the convolution for each patch
        maps = F.conv2d(x.reshape(1, -1, height, width), kernels.flatten(0, 1), stride=side, groups=n)
        return maps.view(n, -1, *maps.shape[-2:])
