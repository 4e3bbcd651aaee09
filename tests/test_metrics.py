import numpy as np
import pytest
from scipy.stats import pearsonr

from hggep_sc.metrics import pearson, rmse


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    observed = rng.gamma(2.0, size=(40, 6))
    return 0.5 * observed + rng.normal(size=(40, 6)), observed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_pearson_against_scipy(pair, dtype, offset):
    predicted, observed = ((a + offset).astype(dtype) for a in pair)
    expected = [pearsonr(*(a[:, j].astype(float) for a in (predicted, observed))).statistic for j in range(6)]
    found = pearson(predicted, observed)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.dtype == np.float64


def test_perfect_correlation_stays_within_1(pair):
    _, observed = pair
    np.testing.assert_allclose(pearson(3 * observed + 1, observed), 1.0)
    np.testing.assert_allclose(pearson(-observed, observed), -1.0)
    assert np.abs(pearson(0.1 * observed, observed)).max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("side", [0, 1])
def test_a_constant_has_no_correlation(pair, side, value):
    expected = pearson(*pair)
    pair[side][:, 2] = value  # 0.1 has a mean that differs from it by rounding
    expected[2] = np.nan
    np.testing.assert_array_equal(pearson(*pair), expected)


def test_one_spot_has_no_correlation(pair):
    for n in (0, 1):
        found = pearson(pair[0][:n], pair[1][:n])
        assert found.shape == (6,)
        assert np.isnan(found).all()


def test_pearson_refuses_other_shapes(pair):
    with pytest.raises(ValueError, match=r"\(39, 6\).*\(40, 6\)"):
        pearson(pair[0][1:], pair[1])


def test_the_arguments_are_left_as_they_were(pair):
    copies = [a.copy() for a in pair]
    pearson(*pair)
    rmse(*pair)
    for a, b in zip(pair, copies, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rmse(pair, dtype):
    predicted, observed = (a.astype(dtype) for a in pair)
    expected = [
        (sum((float(p) - float(o)) ** 2 for p, o in zip(predicted[:, j], observed[:, j], strict=True)) / 40) ** 0.5
        for j in range(6)
    ]
    np.testing.assert_allclose(rmse(predicted, observed), expected, rtol=1e-6)
    assert (rmse(observed, observed) == 0).all()
