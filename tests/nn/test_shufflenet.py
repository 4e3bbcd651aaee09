import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from hggep_sc.nn import STAGES
from hggep_sc.nn.shufflenet import ShuffleNetV2, shuffle


def fill(module: torch.nn.Module, shared: Path) -> None:
    spec = importlib.util.spec_from_file_location("fill", shared / "reference" / "fill.py")
    formula = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formula)
    formula.fill(module)


def test_agrees_with_torchvision(shared):
    stored = np.load(shared / "reference" / "shufflenet_v2_x0_5_torchvision.npz")
    network = ShuffleNetV2(stem_pool=True).eval()
    fill(network, shared)
    x = torch.from_numpy(stored["input"])
    with torch.no_grad():
        maps = network(x)
        stem = network.conv1(x)
    for name, found in {"conv1": stem, **dict(zip(STAGES, maps, strict=True))}.items():
        np.testing.assert_allclose(found.numpy(), stored[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("stem_pool", "size", "sides"),
    [(True, 112, (14, 7, 4, 4)), (False, 112, (28, 14, 7, 7)), (False, 56, (14, 7, 4, 4))],
)
def test_sizes_of_maps(stem_pool, size, sides):
    maps = ShuffleNetV2(stem_pool)(torch.rand(2, 3, size, size))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, side, side) for channels, side in zip((48, 96, 192, 1024), sides, strict=True)
    ]


def test_shuffle_interleaves_the_halves():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(*x.chunk(2, dim=1)).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shuffle_of_channels_last_is_the_same(dtype):
    first, second = torch.rand(2, 3, 4, 2, 5).to(dtype).unbind()
    expected = torch.cat([first, second], dim=1)[:, [0, 4, 1, 5, 2, 6, 3, 7]]
    last = [x.contiguous(memory_format=torch.channels_last) for x in (first, second)]
    found = shuffle(*last)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(shuffle(first, second), expected)
