"""The ConvMixer of Hist2ST, each block with two depthwise convolutions; names are those of its state dict."""

from torch import Tensor, nn

from .views import ViewNorm


class ConvMixerBlock(nn.Module):
    """y = x + GELU(BN(D2 GELU(BN(D1 x)))), then BN(GELU(P y)): depthwise D1 and D2, pointwise P.

    Parameters
    ----------
    channels
        Of the maps.
    kernel
        Side of the depthwise kernels, odd.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def depthwise() -> nn.Conv2d:
            return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)

        self.dw = nn.Sequential(depthwise(), ViewNorm(channels), nn.GELU(), depthwise(), ViewNorm(channels), nn.GELU())
        self.pw = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), ViewNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return self.pw(x + self.dw(x))
