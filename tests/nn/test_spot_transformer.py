import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from helpers import bfloat16
from hggep_sc.nn.spot_transformer import Attention, FeedForward, block, vit


def by_its_formula(attention, x):
    """Each head by itself, of columns one after the other."""
    n, heads = len(x), attention.heads
    q, k, v = (x @ attention.to_qkv.weight.T).chunk(3, dim=1)
    width = q.shape[1] // heads
    mixed = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = q[:, own] @ k[:, own].T / width**0.5
        weights = torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True)
        assert weights.shape == (n, n)
        mixed.append(weights @ v[:, own])
    return torch.cat(mixed, dim=1) @ attention.to_out[0].weight.T + attention.to_out[0].bias


def test_attention_whose_heads_are_not_as_wide_as_its_tokens():
    attention = Attention(10, 3, 0.0, head_width=4).double()
    assert attention.to_qkv.weight.shape == (36, 10)
    x = torch.randn(7, 10, dtype=torch.float64)
    torch.testing.assert_close(attention(x), by_its_formula(attention, x))


def test_attention_is_fused_so_that_no_weights_are_in_memory():
    """Of a plain section and of views; torch refuses where its fused kernel would not be taken."""
    attention = Attention(10, 3, 0.0, head_width=8).eval()
    x = torch.randn(7, 10)
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        torch.testing.assert_close(attention(x), by_its_formula(attention, x))
        torch.testing.assert_close(attention(torch.stack([x, -x]))[0], by_its_formula(attention, x))


def test_views_do_not_see_each_other():
    attention = Attention(10, 3, 0.0, head_width=4)
    views = torch.randn(2, 5, 10)
    torch.testing.assert_close(attention(views), torch.stack([attention(view) for view in views]))


def test_the_gelu_is_that_of_the_error_function():
    layer = FeedForward(6, 8, 0.0).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    hidden = layer.net[0](x)
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    torch.testing.assert_close(layer(x), layer.net[3](hidden), rtol=1e-12, atol=1e-12)
    layer.net[1] = nn.GELU("tanh")
    assert (layer(x) - layer.net[3](hidden)).abs().max() > 1e-6


def test_a_block_adds_to_its_input():
    half, other = block(6, 8, 2, 0.0, head_width=4)
    x = torch.randn(5, 6)
    first = x + half.fn(half.norm(x))
    torch.testing.assert_close(nn.Sequential(half, other)(x), first + other.fn(other.norm(first)))


def test_names():
    names = vit(2, 6, 8, 2, 0.1, head_width=4).state_dict().keys()
    assert {"transformer.layers.1.0.fn.to_qkv.weight", "transformer.layers.0.1.fn.net.3.bias"} <= names
    assert {"attn.fn.to_out.0.bias", "ff.norm.weight"} <= block(6, 8, 2, 0.1).state_dict().keys()


def test_dropout_is_where_it_was_published():
    """After the attention's last layer, after GELU, after the last layer; none on the attention's weights."""
    layers = block(6, 8, 2, 0.3, head_width=4)
    dropped = [name for name, module in layers.named_modules() if isinstance(module, nn.Dropout)]
    assert dropped == ["attn.fn.to_out.1", "ff.fn.net.2", "ff.fn.net.4"]


@pytest.mark.parametrize("n", [1, 5])
def test_under_autocast(n):
    with torch.no_grad(), bfloat16():
        assert vit(1, 6, 8, 2, 0.1, head_width=4)(torch.randn(n, 6)).isfinite().all()
