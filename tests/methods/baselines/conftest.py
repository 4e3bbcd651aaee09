import numpy as np
import pytest
import torch
from scipy import sparse

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
