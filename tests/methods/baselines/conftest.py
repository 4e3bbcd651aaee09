import numpy as np
import pytest
import torch
from scipy import sparse

from hggep_sc.features.patches import fields_of_view
from hggep_sc.features.store import describe_section
from hggep_sc.methods.baselines import BaselineConfig
from hggep_sc.nn.shufflenet import ShuffleNetV2
from hggep_sc.section import open_sections

SMALL = {"patch_size": 32, "fields_um": (60.0, 120.0), "fields_px": (32.0, 64.0)}


@pytest.fixture
def config():
    return BaselineConfig(**SMALL)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of random weights, with the batch statistics of noise, so that its features are alive."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = ShuffleNetV2(stem_pool=False)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(torch.rand(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "trunk.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def opened(sections):
    """The synthetic sections as a model sees them; the first spot of S1 has no counts."""
    sections["S1"].X = sparse.diags(np.arange(sections["S1"].n_obs) > 0, dtype=np.float32) @ sections["S1"].X
    return open_sections(sections)


@pytest.fixture
def plain_features():
    """Return what baselines see of a section: all columns standardised by the plain formula, either kind by itself."""

    def features(section, config, mpp, trunk):
        fields = fields_of_view(config.shared, mpp, section.mpp)
        seen = describe_section(section, trunk, fields, config.patch_size, colours=True, device=torch.device("cpu"))
        kinds = [seen.colours] if trunk is None else [seen.colours, seen.encoded]
        blocks = [kind.reshape(len(kind), -1).astype(np.float64) for kind in kinds]
        return np.hstack([standardised(block) for block in blocks])

    def standardised(block):
        spread = block.std(axis=0)
        spread[spread <= 1e-6 * np.abs(block).max(axis=0)] = np.inf  # a constant column says nothing
        return (block - block.mean(axis=0)) / spread / block.shape[1] ** 0.5

    return features
