import pytest
import torch

from hggep_sc.nn.capsules import CapsuleLayer, DigitCapsules, squash


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-3, 1.0, 50.0, 100.0, 1e4])
def test_squash_and_its_gradient_are_finite(length):
    v = torch.tensor([0.6, -0.8]).mul(length).requires_grad_()
    found = squash(v)
    found.sum().backward()
    assert v.grad.isfinite().all()  # as published not from 88.7 on
    expected = (1 - torch.exp(torch.tensor(-length, dtype=torch.float64))) * torch.tensor([0.6, -0.8])
    torch.testing.assert_close(found.detach().double(), expected.double(), rtol=1e-5, atol=1e-7)


def test_digit_capsules_by_their_formula():
    layer = DigitCapsules(3, 2, 4, 5)
    layer.b.data.normal_()
    p = torch.randn(1, 3, 2)
    u = torch.stack([torch.stack([p[0, i] @ layer.W[c, i] for i in range(3)]) for c in range(4)])
    agreement = torch.stack([torch.stack([u[c, i] @ u[c].sum(0) for i in range(3)]) for c in range(4)]) / 5**0.5
    weights = agreement.softmax(0)  # over the capsules that come out
    expected = torch.stack([sum((weights[c, i] + layer.b[c, i]) * u[c, i] for i in range(3)) for c in range(4)])
    torch.testing.assert_close(layer(p)[0], squash(expected))


@pytest.mark.parametrize(("side", "maps"), [(28, 9), (12, 1), (11, 1)])
def test_maps_fit_the_primary_capsules(side, maps):
    layer = CapsuleLayer((2, 2, 2, 2, 8), side, 4, 3, 5).eval()
    assert layer.primary_caps.depthwise_conv.kernel_size == (maps, maps)
    assert layer(torch.randn(2, 2, side, side)).shape == (2, 3, 5)


def test_a_spot_alone_is_learnt_from():
    layer = CapsuleLayer((2, 2, 2, 2, 8), 12, 4, 3, 5).train()
    layer(torch.randn(1, 2, 12, 12)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters() if parameter.grad is not None)
