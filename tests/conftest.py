import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from helpers import CPU, TINY, Warned
from hggep_sc.errors import HggepWarning
from hggep_sc.section import open_sections


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real sections, reference vectors and weights; where HGGEP_SHARED is set it must be there."""
    location = os.environ.get("HGGEP_SHARED")
    if not location:
        pytest.skip("HGGEP_SHARED is not set: real sections and reference vectors are not at hand")
    path = Path(location)
    assert path.is_dir(), f"HGGEP_SHARED={location} is not a folder"
    return path


@pytest.fixture
def warned():
    """What the package warns of from here on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HggepWarning)
        yield Warned(caught)


@pytest.fixture(scope="session")
def _synthetic(tmp_path_factory):
    from hggep_sc import datasets, settings

    kept = settings.cache_dir
    settings.cache_dir = tmp_path_factory.mktemp("cache")
    try:
        return datasets.synthetic(n_sections=3, n_spots=40, n_genes=60, seed=3)
    finally:
        settings.cache_dir = kept


@pytest.fixture
def sections(_synthetic):
    """Three small synthetic sections, S1 to S3, fresh copies."""
    return {name: section.copy() for name, section in _synthetic.items()}


@pytest.fixture(scope="session")
def trained(_synthetic):
    """A tiny model trained on S1 and S2; not to be changed."""
    from hggep_sc import tl

    training = {name: _synthetic[name].copy() for name in ("S1", "S2")}
    return tl.fit(training, genes=20, config=TINY, **CPU)


@pytest.fixture
def section(sections):
    """On whole pixels, so that a patch is a slice of the image."""
    sections["S1"].obsm["spatial"] = np.floor(sections["S1"].obsm["spatial"])
    return open_sections(sections["S1"])[0]


@pytest.fixture(params=[1, 3])
def threads(request):
    """How many threads torch computes with, as long as the test runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
