import numpy as np

from hggep_sc.features import moments as module
from hggep_sc.features.moments import Moments


def test_constant_columns_are_zero():
    block = np.array([[1.0, 0.0, 3.0], [1.0 + 1e-9, 0.0, 5.0]])
    np.testing.assert_allclose(Moments.of(block).standardised(block) * np.sqrt(3), [[0, 0, -1], [0, 0, 1]], atol=1e-6)


def test_moments_gathered_in_parts_are_those_of_the_whole(monkeypatch):
    """Against NumPy's, in double precision; also where the mean is far larger than the spread."""
    block = np.random.default_rng(0).normal([0, 1000, -3, 5], [1, 0.01, 7, 0], size=(1000, 4)).astype(np.float32)
    moments = Moments()
    for part in np.split(block, [1, 400, 977]):
        moments.add(part)
    whole = block.astype(np.float64)
    np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-12)
    spread = np.where(whole.std(axis=0) > 0, whole.std(axis=0), np.inf)
    expected = (whole - whole.mean(axis=0)) / spread / 2
    monkeypatch.setattr(module, "ROWS", 300)
    for found in (moments.standardised(block), Moments.of(block).standardised(block)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
