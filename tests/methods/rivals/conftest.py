import pytest

from hggep_sc.section import open_sections
from parity import stored


@pytest.fixture(scope="module")
def spots(shared):
    """Patches, array coordinates and counts of 32 real spots."""
    return stored(shared, "parity_c2_32spots.npz")


@pytest.fixture
def opened(sections):
    """Three small synthetic sections."""
    return open_sections(sections)
