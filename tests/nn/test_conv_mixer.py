import torch
import torch.nn.functional as F

from hggep_sc.nn.conv_mixer import ConvMixerBlock


def test_a_block_by_its_formula():
    block = ConvMixerBlock(4, 5)
    x = torch.randn(3, 4, 6, 6)
    block(x)  # the running statistics are no longer those of nothing
    block.eval()
    first, norm1, _, second, norm2, _ = block.dw
    pointwise, _, norm3 = block.pw
    y = x + F.gelu(norm2(second(F.gelu(norm1(first(x))))))
    torch.testing.assert_close(block(x), norm3(F.gelu(pointwise(y))))
    changed = x.clone()
    changed[:, 0] += 1  # depthwise: no other channel of what is added knows
    assert torch.equal(block.dw(changed)[:, 1:], block.dw(x)[:, 1:])
