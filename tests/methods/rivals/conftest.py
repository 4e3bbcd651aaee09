import pytest

from parity import stored


@pytest.fixture(scope="module")
def spots(shared):
    """Patches, array coordinates and counts of 32 real spots."""
    return stored(shared, "parity_c2_32spots.npz")
