import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from hggep_sc.nn.transformer import Attention, ViT


def numpy_of(*tensors):
    return [t.detach().double().numpy() for t in tensors]


def linear(x, module):
    weight, bias = numpy_of(module.weight, module.bias)
    return x @ weight.T + bias


def layer_norm(x, module):
    weight, bias = numpy_of(module.weight, module.bias)
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + module.eps) * weight + bias


def self_attention(x, module):
    """Equations 10 and 11: every head by itself, over the spots, and their concatenation."""
    q, k, v = np.split(linear(x, module.qkv), 3, axis=1)
    heads = []
    for part in np.split(np.arange(x.shape[1]), module.heads):
        scores = q[:, part] @ k[:, part].T / np.sqrt(len(part))
        heads.append(softmax(scores, axis=1) @ v[:, part])
    return linear(np.concatenate(heads, axis=1), module.out)


def feed_forward(x, module):
    hidden = linear(x, module[0])
    return linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, module[3])


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_attention(heads):
    torch.manual_seed(0)
    attention = Attention(16, heads, dropout=0.0)
    x = torch.randn(7, 16)
    np.testing.assert_allclose(attention(x).detach().numpy(), self_attention(*numpy_of(x), attention), atol=1e-6)


def test_stack_of_blocks():
    torch.manual_seed(0)
    vit = ViT(width=16, depth=3, heads=4, dropout=0.5).eval()
    x = torch.randn(9, 16)
    (z,) = numpy_of(x)
    assert len(vit) == 3
    for block in vit:
        z = z + self_attention(layer_norm(z, block.attention_norm), block.attention)
        z = z + feed_forward(layer_norm(z, block.ffn_norm), block.ffn)
    np.testing.assert_allclose(vit(x).detach().numpy(), z, atol=1e-5)


def test_no_order_of_spots_and_one_spot():
    torch.manual_seed(0)
    vit = ViT(16, 2, 4, 0.1).eval()
    x = torch.randn(9, 16)
    order = torch.randperm(9)
    torch.testing.assert_close(vit(x[order]), vit(x)[order])
    assert torch.isfinite(vit(x[:1])).all()


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    vit, x = ViT(16, 1, 4, 0.5), torch.randn(9, 16)
    assert not torch.equal(vit(x), vit(x))
    vit.eval()
    assert torch.equal(vit(x), vit(x))


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    vit, x = ViT(16, 2, 4, 0.1), torch.randn(9, 16, requires_grad=True)
    vit(x).square().sum().backward()
    for name, values in [("x", x), *vit.named_parameters()]:
        assert torch.isfinite(values.grad).all(), name
        assert values.grad.abs().sum() > 0, name


def test_depth_0_is_the_identity():
    vit, x = ViT(16, 0, 4, 0.1), torch.randn(3, 16)
    assert torch.equal(vit(x), x)
    assert not list(vit.parameters())
