import numpy as np
import pytest
import torch

from hggep_sc.features.store import _memory
from hggep_sc.methods.baselines import Ridge
from hggep_sc.methods.baselines.trunk import Trunk
from hggep_sc.nn.shufflenet import ShuffleNetV2
from hggep_sc.section import open_sections

N_STATISTICS, N_POOLED = 48, 336  # per field of view
CPU = torch.device("cpu")


@pytest.fixture
def patches():
    return np.random.default_rng(0).integers(30, 250, size=(3, 3, 32, 32), dtype=np.uint8)


def features_of(section, config, trunk=None, batch_size=64):
    return Ridge._features(section, config, section.mpp, trunk, CPU, batch_size)


def test_standardised_within_each_section(opened, config, weights):
    trunk = Trunk.pretrained(weights, 0)
    for section in opened:
        features = features_of(section, config, trunk).astype(np.float64)
        assert features.shape == (len(section.xy), 2 * (N_STATISTICS + N_POOLED))
        np.testing.assert_allclose(features.mean(0), 0, atol=1e-6)
        for block in np.split(features, [2 * N_STATISTICS], axis=1):
            variance = block.var(axis=0) * block.shape[1]
            assert np.all(np.isclose(variance, 1, rtol=1e-4) | (variance == 0))
            assert (variance > 0).mean() > 0.8


def test_features_are_colours_and_the_trunks(opened, config, weights, plain_features):
    for trunk in (None, Trunk.pretrained(weights, 0)):
        expected = plain_features(opened[1], config, opened[1].mpp, trunk)
        np.testing.assert_allclose(features_of(opened[1], config, trunk), expected, atol=1e-4)


def test_trunk_pools_the_backbones_stages(patches, weights):
    backbone = ShuffleNetV2(stem_pool=False).eval()
    backbone.load_state_dict(torch.load(weights, weights_only=True))
    with torch.inference_mode():
        maps = backbone(torch.from_numpy(patches).float() / 255)
        expected = np.hstack([stage.numpy().mean((2, 3)) for stage in maps[:3]])
        found = Trunk.pretrained(weights, 0)(torch.from_numpy(patches))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_trunk_centres_pixels_as_its_weights_want(patches, weights, monkeypatch):
    import hashlib

    from hggep_sc.encoders import weights as weights_module

    monkeypatch.setattr(weights_module, "IMAGENET_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    trunk = Trunk.pretrained(weights, 0)
    np.testing.assert_allclose(trunk.pixel_mean.ravel(), [0.485, 0.456, 0.406], rtol=1e-6)
    np.testing.assert_allclose(trunk.pixel_std.ravel(), [0.229, 0.224, 0.225], rtol=1e-6)


def test_batches_make_no_difference(opened, config, weights):
    trunk = Trunk.pretrained(weights, 0)
    whole = features_of(opened[1], config, trunk)
    _memory._kept.clear()
    parts = features_of(opened[1], config, trunk, batch_size=7)
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_counts_make_no_difference(sections, config):
    (with_counts,) = open_sections(sections["S2"])
    emptied = sections["S2"].copy()
    emptied.X = emptied.X * 0
    (without,) = open_sections(emptied)
    assert np.array_equal(features_of(with_counts, config), features_of(without, config))


def test_random_state_is_left_alone(weights):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Trunk.pretrained(weights, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_entries_that_the_file_lacks_follow_the_seed(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    del state["stage4.0.branch1.0.weight"]
    torch.save(state, tmp_path / "part.pth")
    a, b, c = (Trunk.pretrained(tmp_path / "part.pth", seed).state_dict() for seed in (0, 0, 1))
    name = "backbone.stage4.0.branch1.0.weight"
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], c[name])
