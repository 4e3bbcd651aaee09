"""The correction by measured spots, against scikit-learn's Gaussian process and on fields that are known."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Matern, WhiteKernel

from hggep_sc.metrics import pearson
from hggep_sc.prediction import measured
from hggep_sc.prediction.measured import Measured, corrected
from hggep_sc.section.expression import ExpressionScale

SCALE = ExpressionScale("library")
DEPTH = 3000


def tissue(n=300, n_genes=60, wrong=0.6, seed=0):
    """Positions, a prediction, and counts of an expression that differs from it smoothly in space."""
    random = np.random.default_rng(seed)
    xy = random.uniform(0, 5000, (n, 2))
    programs = random.normal(size=(3, n_genes)) / 2
    shown = np.column_stack([np.sin(xy[:, 0] / 900), np.cos(xy[:, 1] / 700), random.normal(size=n)])
    error = wrong * np.column_stack([np.cos(xy[:, 0] / 1100 + 1), np.sin(xy.sum(1) / 1500), np.zeros(n)])
    base = random.normal(3, 0.7, n_genes)
    truth = base + random.normal(0, 0.3, n_genes) + (shown + error) @ programs
    rates = np.expm1(truth.clip(0)) / 1e4 * DEPTH
    counts = sparse.csr_matrix(random.poisson(rates).astype(np.float32))
    return xy, (base + shown @ programs).astype(np.float32), truth, counts


def given(counts, spots):
    return Measured(spots, counts[spots], np.full(len(spots), float(DEPTH)))


@pytest.fixture(scope="module")
def made():
    xy, predicted, truth, counts = tissue()
    spots = np.sort(np.random.default_rng(1).choice(300, 60, replace=False))
    return xy, predicted, truth, counts, spots, corrected(predicted, xy, given(counts, spots), SCALE)


def test_kernel_and_posterior_are_those_of_scikit_learn():
    """At given hyperparameters: one ratio of signal to noise, one component."""
    random = np.random.default_rng(0)
    places, scores = random.normal(size=(40, 5)), random.normal(size=(40, 1))
    theta = np.log([0.5, 0.3, 0.4, 1.2])
    weights, ratio = np.array([0.5, 0.3, 1.0]) / 1.8, 7
    certain = np.zeros((len(measured.RATIOS), 1))
    certain[ratio] = 1
    noise = 0.3
    signal = noise * measured.RATIOS[ratio]
    field = measured._Field(theta, certain, np.full_like(certain, noise))
    mean, variance = field.given(places, scores).at(others := random.normal(size=(9, 5)))

    class On:
        """A kernel on some of the columns."""

        def __init__(self, kernel, columns):
            self.kernel, self.columns = kernel, columns

        def __call__(self, a, b):
            return self.kernel(a[:, self.columns], b[:, self.columns])

    xy, look = slice(0, 2), slice(2, None)
    parts = [On(Matern(0.4, nu=1.5), xy), On(DotProduct(0), look), On(RBF(1.2), look)]

    def kernel(a, b):
        return signal * sum(w * part(a, b) for w, part in zip(weights, parts, strict=True))

    np.testing.assert_allclose(
        measured._kernel(places, others, theta) * signal, kernel(places, others), rtol=1e-10, atol=1e-12
    )
    # the same process in the coordinates in which scikit-learn has one kernel: its own Cholesky factor
    solved = np.linalg.solve(kernel(places, places) + noise * np.eye(40), kernel(places, others))
    np.testing.assert_allclose(mean, solved.T @ scores, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        variance, np.diag(kernel(others, others)) - np.sum(kernel(places, others) * solved, axis=0), rtol=1e-8
    )


def test_posterior_of_position_alone_is_scikit_learns():
    random = np.random.default_rng(0)
    places = np.hstack([random.normal(size=(50, 2)), np.zeros((50, 1))])
    others = np.hstack([random.normal(size=(9, 2)), np.zeros((9, 1))])
    scores = np.sin(2 * places[:, :1]) + 0.1 * random.normal(size=(50, 1))
    ratio, noise = 9, 0.02
    certain = np.zeros((len(measured.RATIOS), 1))
    certain[ratio] = 1
    theta = np.array([0.0, -50.0, np.log(0.6), 0.0])  # no slopes; a constant look is a constant of the same weight
    mean, variance = measured._Field(theta, certain, np.full_like(certain, noise)).given(places, scores).at(others)
    signal = noise * measured.RATIOS[ratio] / 2
    kernel = ConstantKernel(signal) * Matern(0.6, nu=1.5) + ConstantKernel(signal) + WhiteKernel(noise)
    process = GaussianProcessRegressor(kernel, optimizer=None).fit(places[:, :2], scores[:, 0])
    expected, deviation = process.predict(others[:, :2], return_std=True)
    np.testing.assert_allclose(mean[:, 0], expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(variance, deviation**2 - noise, rtol=1e-5)


def test_likelihood_is_scikit_learns():
    random = np.random.default_rng(0)
    places = np.hstack([random.normal(size=(30, 2)), np.zeros((30, 1))])
    scores = random.normal(size=(30, 2))
    theta = np.array([0.0, -50.0, np.log(0.6), 0.0])
    log_likelihood, noises = measured._likelihoods(places, scores, np.array([0.0, 5.0]), theta)
    for ratio in (0, 4, 9):
        for component in (0, 1):
            noise = noises[ratio, component]
            signal = noise * measured.RATIOS[ratio] / 2 + 1e-300
            kernel = ConstantKernel(signal) * Matern(0.6, nu=1.5) + ConstantKernel(signal) + WhiteKernel(noise)
            process = GaussianProcessRegressor(kernel, optimizer=None, alpha=0).fit(places[:, :2], scores[:, component])
            expected = process.log_marginal_likelihood_value_ + 15 * np.log(2 * np.pi)
            assert log_likelihood[ratio, component] == pytest.approx(expected, rel=1e-6)
    assert (noises[:, 1] == 5).all()  # no less than counting noise
    assert (noises[:, 0] < 5).all()


def test_nearer_to_the_truth(made):
    _, predicted, truth, _, spots, better = made
    others = np.setdiff1d(np.arange(300), spots)
    before = np.nanmean(pearson(predicted[others], truth[others]))
    assert np.nanmean(pearson(better.expression[others], truth[others])) > before + 0.03
    error = np.square(better.expression - truth)[others].mean()
    assert error < 0.5 * np.square(predicted - truth)[others].mean()


def test_uncertainty_falls_near_measured_spots_and_holds(made):
    xy, _, truth, _, spots, better = made
    others = np.setdiff1d(np.arange(300), spots)
    distance = np.linalg.norm(xy[others][:, None] - xy[spots], axis=2).min(1)
    near = distance < np.median(distance)
    told = better.uncertainty[others] ** 2
    assert told[near].mean() < 0.9 * told[~near].mean()
    assert better.uncertainty[spots].mean() < better.uncertainty[others].mean()
    error = better.expression[others] - truth[others]
    found = np.square(error - error.mean(0)).mean()
    assert 0.5 < told.mean() / found < 2


def test_a_right_prediction_stays():
    """Noise alone is not taken for error."""
    xy, predicted, truth, counts = tissue(wrong=0.0)
    spots = np.arange(0, 300, 10)
    better = corrected(predicted, xy, given(counts, spots), SCALE)
    change = (better.expression - predicted) - (better.expression - predicted).mean(0)
    assert np.square(change).mean() < 0.1 * np.square(predicted - predicted.mean(0)).mean()
    level = (truth - predicted).mean(0)  # of each gene, which is wrong
    assert np.corrcoef((better.expression - predicted).mean(0), level)[0, 1] > 0.9


def test_a_constant_prediction_is_kriged(made):
    """Of a method that sees no image."""
    xy, predicted, truth, counts, spots, _ = made
    constant = np.broadcast_to(predicted.mean(0), predicted.shape)
    better = corrected(constant, xy, given(counts, spots), SCALE)
    others = np.setdiff1d(np.arange(300), spots)
    assert np.isfinite(better.expression).all()
    assert np.nanmean(pearson(better.expression[others], truth[others])) > 0.2


def test_base_10(made):
    """The same correction on another scale: expression in its unit, uncertainty in natural log units."""
    xy, predicted, _, counts, spots, better = made
    tenth = corrected(predicted / np.log(10), xy, given(counts, spots), ExpressionScale("library", log_base="10"))
    np.testing.assert_allclose(tenth.expression * np.log(10), better.expression, atol=2e-3)
    np.testing.assert_allclose(tenth.uncertainty, better.uncertainty, rtol=1e-2)


def test_unit_and_origin_of_positions_do_not_matter(made):
    xy, predicted, _, counts, spots, better = made
    moved = corrected(predicted, xy * 0.37 + 1e4, given(counts, spots), SCALE)
    np.testing.assert_allclose(moved.expression, better.expression, atol=1e-3)


def test_again_is_the_same_and_nothing_is_changed(made):
    xy, predicted, _, counts, spots, better = made
    before = predicted.copy()
    again = corrected(predicted, xy, given(counts, spots), SCALE)
    assert np.array_equal(again.expression, better.expression)
    assert np.array_equal(again.uncertainty, better.uncertainty)
    assert np.array_equal(predicted, before)


def test_by_the_nearest_where_there_are_many(made, monkeypatch):
    """Groups of spots, each with the measured ones around it: close to what all of them give."""
    xy, predicted, truth, counts, _, _ = made
    spots = np.arange(0, 300, 2)
    whole = corrected(predicted, xy, given(counts, spots), SCALE)
    monkeypatch.setattr(measured, "AT_ONCE", 60)
    monkeypatch.setattr(measured, "CHUNK", 7)
    groups = measured._groups(xy, spots)
    assert len(groups) > 3
    assert np.array_equal(np.sort(np.concatenate([group for group, _ in groups])), np.arange(300))
    for group, near in groups:
        assert len(near) == 60
        assert set(np.intersect1d(group, spots)) <= set(spots[near])
    local = corrected(predicted, xy, given(counts, spots), SCALE)
    assert not np.array_equal(local.expression, whole.expression)
    others = np.setdiff1d(np.arange(300), spots)
    errors = [np.square(found.expression - truth)[others].mean() for found in (whole, local)]
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("n", [5, 7])
def test_few_spots(made, n):
    xy, predicted, truth, counts, spots, _ = made
    better = corrected(predicted, xy, given(counts, spots[:n]), SCALE)
    assert np.isfinite(better.expression).all()
    assert np.isfinite(better.uncertainty).all()
    assert np.square(better.expression - truth).mean() < 1.2 * np.square(predicted - truth).mean()


def test_nothing_counted_of_the_genes(made):
    """The library is of others: no residual varies, and nothing is NaN."""
    xy, predicted, _, counts, spots, _ = made
    nothing = Measured(spots, counts[spots] * 0, np.full(len(spots), float(DEPTH)))
    for shown in (predicted, np.ones_like(predicted)):
        better = corrected(shown, xy, nothing, SCALE)
        assert np.isfinite(better.expression).all()
        assert np.isfinite(better.uncertainty).all()
        np.testing.assert_allclose(better.expression[spots].mean(), 0, atol=0.2)


def test_spots_at_one_position_are_corrected_by_look(made):
    _, predicted, _, counts, spots, _ = made
    found = corrected(predicted, np.full((len(predicted), 2), 7.0), given(counts, spots), SCALE)
    assert np.isfinite(found.expression).all()
    assert np.isfinite(found.uncertainty).all()
