import torch
import torch.nn.functional as F

from hggep_sc.nn.dynamic_convolution import DynamicConvolution


def test_each_patch_has_a_kernel_of_its_own():
    layer = DynamicConvolution(3, 5, 4).eval().double()
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64) * torch.tensor([1.0, 5.0, 20.0]).view(3, 1, 1, 1)
    channel, out, place, candidate = layer.attention(x)
    assert (channel.shape, out.shape, place.shape, candidate.shape) == ((3, 3), (3, 5), (3, 4, 4), (3, 4))
    torch.testing.assert_close(candidate.sum(1), torch.ones(3, dtype=torch.float64))
    found = layer(x)
    assert found.shape == (3, 5, 4, 4)
    for spot in range(3):
        kernel = sum(candidate[spot, k] * layer.weight[k] * place[spot] for k in range(4))
        convolved = F.conv2d((channel[spot][:, None, None] * x[spot])[None], kernel, stride=4)[0]
        torch.testing.assert_close(found[spot], out[spot][:, None, None] * convolved)


def test_one_patch_is_normalised_by_the_running_statistics():
    layer = DynamicConvolution(3, 5, 4)
    x = torch.rand(1, 3, 8, 8)
    before = {name: value.clone() for name, value in layer.named_buffers()}
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))
    for name, value in layer.named_buffers():
        assert torch.equal(value, before[name]), name
    layer.train()(torch.rand(2, 3, 8, 8))
    assert not torch.equal(layer.attention.bn.running_mean, before["attention.bn.running_mean"])
