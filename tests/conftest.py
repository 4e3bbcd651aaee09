import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real sections, reference vectors and weights; where HGGEP_SHARED is set it must be there."""
    location = os.environ.get("HGGEP_SHARED")
    if not location:
        pytest.skip("HGGEP_SHARED is not set: real sections and reference vectors are not at hand")
    path = Path(location)
    assert path.is_dir(), f"HGGEP_SHARED={location} is not a folder"
    return path
