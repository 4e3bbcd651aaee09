import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hggep_sc.nn.gem import GEM, CentralDifferenceConv


def convolution(x, weight, bias, theta):
    """Equation 2 tap by tap: 3 x 3, stride 2, zeros outside the image."""
    n, channels, height, width = x.shape
    out = np.zeros((n, len(weight), (height + 1) // 2, (width + 1) // 2))
    for image, o, i, j in np.ndindex(*out.shape):
        row, column = 2 * i, 2 * j  # p_0
        value = bias[o]
        for c in range(channels):
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    w = weight[o, c, a + 1, b + 1]
                    if 0 <= row + a < height and 0 <= column + b < width:
                        value += w * x[image, c, row + a, column + b]
                    value -= theta * x[image, c, row, column] * w
        out[image, o, i, j] = value
    return out


def numpy_of(*tensors):
    return [t.detach().double().numpy() for t in tensors]


@pytest.mark.parametrize("theta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_equation_2(theta, size):
    torch.manual_seed(0)
    conv = CentralDifferenceConv(3, 4, theta)
    x = torch.randn(2, 3, *size)
    expected = convolution(*numpy_of(x, conv.weight, conv.bias), theta)
    np.testing.assert_allclose(conv(x).detach().numpy(), expected, atol=1e-5)


def test_theta_0_is_an_ordinary_convolution():
    torch.manual_seed(0)
    conv = CentralDifferenceConv(3, 6, theta=0.0)
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1))


def test_difference_is_blind_to_a_constant():
    torch.manual_seed(0)
    conv = CentralDifferenceConv(3, 6, theta=1.0)
    x = torch.randn(2, 3, 12, 12)
    inside = (slice(None), slice(None), slice(1, None), slice(1, None))  # away from the padding
    torch.testing.assert_close(conv(x + 5.0)[inside], conv(x)[inside], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(conv(x + 5.0), conv(x), atol=1e-2)


def normalised(x, bn):
    """Batch normalisation with stored statistics, after the ReLU."""
    weight, bias, mean, var = (a[:, None, None] for a in numpy_of(bn.weight, bn.bias, bn.running_mean, bn.running_var))
    return (np.maximum(x, 0) - mean) / np.sqrt(var + bn.eps) * weight + bias


def test_module():
    torch.manual_seed(0)
    gem = GEM(theta=0.7).eval()
    for bn in (gem.traditional[2], gem.difference[2], gem.mlp[2]):
        for values in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            torch.nn.init.uniform_(values, 0.5, 1.5)
    x = torch.randn(2, 3, 6, 6)
    branches = []
    for branch, theta in ((gem.traditional, 0.0), (gem.difference, 0.7)):
        branches.append(normalised(convolution(*numpy_of(x, branch[0].weight, branch[0].bias), theta), branch[2]))
    both = np.concatenate(branches, axis=1)
    assert both.shape == (2, 12, 3, 3)
    weight, bias = numpy_of(gem.mlp[0].weight, gem.mlp[0].bias)
    mixed = np.einsum("ncij,oc->noij", both, weight[:, :, 0, 0]) + bias[:, None, None]
    np.testing.assert_allclose(gem(x).detach().numpy(), normalised(mixed, gem.mlp[2]), atol=1e-5)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    gem = GEM()
    x = torch.randn(4, 3, 112, 112, requires_grad=True)
    out = gem(x)
    assert out.shape == (4, 3, 56, 56)
    (out * torch.randn_like(out)).sum().backward()
    for name, values in [("x", x), *gem.named_parameters()]:
        assert torch.isfinite(values.grad).all(), name
        assert values.grad.abs().sum() > 0, name
