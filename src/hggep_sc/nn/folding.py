"""Convolutions that do what the batch normalisation after them did, for inference."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a convolution that does what `conv` and `norm` do in eval mode, with the weights that they have now.

    A 1 x 1 convolution of a CPU is called dilated, which with a single weight changes nothing: torch hands one thread's
    undilated ones to another library, by which an encoder took half as long again (on an AMD processor).
    """
    fused = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
    if fused.kernel_size == (1, 1) and fused.weight.device.type == "cpu":
        fused.dilation = (2, 2)
    return fused
