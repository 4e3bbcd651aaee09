import numpy as np
import pytest
import torch

from hggep_sc.nn.cbam import CBAM, ChannelAttention, SpatialAttention


def numpy_of(*tensors):
    return [t.detach().double().numpy() for t in tensors]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def channel_gate(x, module):
    """Equation 6, with the pooled features summed before the MLP."""
    w1, b1, w2, b2 = numpy_of(module.mlp[0].weight, module.mlp[0].bias, module.mlp[2].weight, module.mlp[2].bias)
    out = np.empty((*x.shape[:2], 1, 1))
    for n, image in enumerate(x):
        pooled = np.array([channel.mean() + channel.max() for channel in image])
        out[n, :, 0, 0] = sigmoid(w2 @ np.maximum(w1 @ pooled + b1, 0) + b2)
    return out


def spatial_gate(x, module):
    """Equation 8: 7 x 7 convolution over [mean, max] of the channels, zeros outside the map."""
    weight, bias = numpy_of(module.conv.weight, module.conv.bias)
    n, _, height, width = x.shape
    out = np.empty((n, 1, height, width))
    for image in range(n):
        pooled = np.pad(np.stack([x[image].mean(0), x[image].max(0)]), ((0, 0), (3, 3), (3, 3)))
        for i in range(height):
            for j in range(width):
                out[image, 0, i, j] = sigmoid((weight[0] * pooled[:, i : i + 7, j : j + 7]).sum() + bias[0])
    return out


@pytest.fixture
def features():
    return torch.randn(3, 32, 5, 8, generator=torch.Generator().manual_seed(0))


def test_equation_6(features):
    torch.manual_seed(1)
    attention = ChannelAttention(32, reduction=16)
    assert attention.mlp[0].out_features == 2
    gate = attention(features)
    assert gate.shape == (3, 32, 1, 1)
    np.testing.assert_allclose(gate.detach().numpy(), channel_gate(*numpy_of(features), attention), atol=1e-6)


def test_equation_8(features):
    torch.manual_seed(1)
    attention = SpatialAttention()
    gate = attention(features)
    assert gate.shape == (3, 1, 5, 8)
    np.testing.assert_allclose(gate.detach().numpy(), spatial_gate(*numpy_of(features), attention), atol=1e-6)


@pytest.mark.parametrize("channels", [96, 192, 1024])
def test_equations_7_and_9(channels):
    torch.manual_seed(2)
    cbam = CBAM(channels)
    x = torch.randn(2, channels, 4, 4)
    refined = channel_gate(*numpy_of(x), cbam.channel) * x.numpy()
    expected = spatial_gate(refined, cbam.spatial) * refined
    np.testing.assert_allclose(cbam(x).detach().numpy(), expected, atol=1e-5)


def test_gradients_reach_every_parameter(features):
    torch.manual_seed(1)
    cbam = CBAM(32, reduction=4)
    x = features.requires_grad_()
    cbam(x).square().sum().backward()
    for name, values in [("x", x), *cbam.named_parameters()]:
        assert torch.isfinite(values.grad).all(), name
        assert values.grad.abs().sum() > 0, name
