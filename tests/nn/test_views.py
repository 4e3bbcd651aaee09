import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hggep_sc.nn.views import ViewNorm, augment, set_views


def draws(views):
    """What each view takes from the generator."""
    drawn = torch.rand(views, 3, generator=torch.Generator().manual_seed(0)).tolist()
    return [(grey < 0.1, (turn - 0.5) * 180, flip < 0.2) for grey, turn, flip in drawn]


def views_of(pixels, views):
    return augment(pixels, views, torch.Generator().manual_seed(0))


def test_views_turn_and_flip_as_pillow_does():
    rng = np.random.default_rng(0)
    coarse = rng.integers(1, 256, (2, 3, 14, 14), dtype=np.uint8).repeat(8, -1).repeat(8, -2)
    kinds = set()
    views = views_of(torch.from_numpy(coarse).float(), 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views_of(torch.from_numpy(coarse).float(), 40), views)
    for (grey, angle, flip), found in zip(draws(40), views.numpy(), strict=True):
        kinds.add((grey, flip))
        for spot in range(2):
            image = Image.fromarray(coarse[spot].transpose(1, 2, 0))
            turned = np.asarray(image.rotate(angle, Image.Resampling.NEAREST)).astype(float)
            expected = turned[:, ::-1] if flip else turned
            if grey:
                expected = (expected @ [0.2989, 0.587, 0.114])[..., None].repeat(3, -1)
            same = np.isclose(found[spot].transpose(1, 2, 0), expected, atol=0.01).all(-1)
            assert same.mean() > 0.95, angle  # rounding at the edges of the 8 px squares
    assert kinds >= {(False, False), (False, True), (True, False)}


def test_views_are_as_frequent_as_published():
    pixels = torch.rand(1, 3, 4, 4) + 1
    n = 1000
    greys = int((views_of(pixels, n).std(2) < 1e-5).flatten(1).all(1).sum())
    assert abs(greys - 0.1 * n) < 4 * math.sqrt(n * 0.1 * 0.9)
    _, angles, flips = zip(*draws(n), strict=True)
    assert -90 <= min(angles) < -85
    assert 85 < max(angles) <= 90
    assert abs(sum(flips) - 0.2 * n) < 4 * math.sqrt(n * 0.2 * 0.8)


@pytest.mark.parametrize("training", [True, False])
def test_each_view_is_normalised_by_itself(training):
    network = nn.Sequential(ViewNorm(3)).train(training)
    plain = nn.BatchNorm2d(3).train(training)
    plain.load_state_dict(copy.deepcopy(network[0].state_dict()))
    views = torch.randn(2, 4, 3, 5, 5) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1, 1)
    set_views(network, 2)
    together = network(views.flatten(0, 1))
    torch.testing.assert_close(together, torch.cat([plain(view) for view in views]))
    torch.testing.assert_close(network[0].running_var, plain.running_var)
    set_views(network, 1)
    torch.testing.assert_close(network(views[1]), plain(views[1]))
