"""Ridges against scikit-learn's."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge

from hggep_sc.methods.baselines import LowRankRidge, Ridge
from hggep_sc.methods.baselines.trunk import Trunk
from hggep_sc.metrics import pearson
from hggep_sc.section import grouped
from hggep_sc.section.expression import ExpressionScale
from hggep_sc.training.ridge import RidgePath, principal_components
from hggep_sc.training.split import hold_out_blocks

GENES = 20


def sklearn_ridge(X, Y, alpha):
    return SklearnRidge(alpha=alpha, fit_intercept=False, solver="svd").fit(X.astype(np.float64), Y)


@pytest.fixture
def data_of(plain_features, weights):
    """Features, centred targets, centres and means per section, spots without counts left out; computed plainly."""

    def data(sections, model):
        X, Y, xy, means = [], [], [], []
        for section in sections:
            seen = section.library() > 0
            expression = np.log1p(1e4 * section.counts(model.genes).toarray()[seen] / section.library()[seen, None])
            X.append(plain_features(section, model.config, model.mpp, Trunk.pretrained(weights, 0))[seen])
            Y.append(expression - expression.mean(0))
            xy.append(section.xy[seen])
            means.append(expression.mean(0))
        return X, Y, xy, np.mean(means, axis=0)

    return data


@pytest.mark.parametrize("shape", [(50, 8), (20, 60), (30, 30)], ids=["tall", "wide", "square"])
def test_path_is_sklearns_ridge(shape):
    rng = np.random.default_rng(0)
    X, Y, new = rng.normal(size=shape), rng.normal(size=(shape[0], 4)), rng.normal(size=(9, shape[1]))
    X[:, 1] = X[:, 0]  # of less than full rank
    path, alphas = RidgePath(X, Y), (0.01, 1.0, 100.0)
    for alpha, predicted in zip(alphas, path.predict(new, alphas), strict=True):
        expected = sklearn_ridge(X, Y, alpha)
        np.testing.assert_allclose(path.coefficients(alpha), expected.coef_.T, atol=1e-8)
        np.testing.assert_allclose(predicted, expected.predict(new), atol=1e-8)


def test_features_that_say_nothing():
    path = RidgePath(np.zeros((5, 9)), np.ones((5, 2)))
    np.testing.assert_array_equal(path.coefficients(1.0), np.zeros((9, 2)))


class TestRidge:
    @pytest.fixture
    def model(self, opened, config, weights):
        return Ridge.fit(opened[:2], config, genes=GENES, weights=weights, device="cpu", progress=False)

    def test_is_sklearns_on_the_same_features(self, model, opened, data_of):
        X, Y, _, mean = data_of(opened[:2], model)
        expected = sklearn_ridge(np.concatenate(X), np.concatenate(Y), model.alpha)
        np.testing.assert_allclose(model.arrays["coefficients"], expected.coef_.T, atol=1e-6)
        new = data_of(opened[2:], model)[0][0]
        predicted, latent = model.predict(opened[2], device="cpu")
        assert latent is None
        assert predicted.dtype == np.float32
        np.testing.assert_allclose(predicted, mean + expected.predict(new), atol=2e-6)

    def test_alpha_is_the_best_over_sections_left_out_in_turn(self, model, opened, data_of):
        X, Y, _, _ = data_of(opened[:2], model)
        scores = {}
        for alpha in model.config.alphas:
            r = []
            for training, held_out in ((0, 1), (1, 0)):
                predicted = sklearn_ridge(X[training], Y[training], alpha).predict(X[held_out])
                r.append(np.nanmean(pearson(predicted, Y[held_out])))
            scores[alpha] = np.mean(r)
        assert max(scores.values()) - min(scores.values()) > 1e-3
        assert model.alpha == max(scores, key=scores.get)

    def test_sections_of_a_group_are_left_out_together(self, opened, config, weights, data_of):
        sections = grouped(opened[:3], {section.name: group for section, group in zip(opened, "aba", strict=False)})
        model = Ridge.fit(sections, config, genes=GENES, weights=weights, device="cpu", progress=False)
        X, Y, _, _ = data_of(opened[:3], model)
        group = np.repeat(["a", "b", "a"], [len(y) for y in Y])
        X, Y = np.concatenate(X), np.concatenate(Y)
        scores = {}
        for alpha in model.config.alphas:
            predicted = {
                out: sklearn_ridge(X[group != out], Y[group != out], alpha).predict(X[group == out]) for out in "ab"
            }
            scores[alpha] = np.mean([np.nan_to_num(pearson(predicted[out], Y[group == out])).mean() for out in "ab"])
        assert model.alpha == max(scores, key=scores.get)

    def test_one_section_has_blocks_left_out(self, opened, config, weights, data_of):
        model = Ridge.fit(opened[1:2], config, genes=GENES, weights=weights, seed=4, device="cpu", progress=False)
        (X,), (Y,), (xy,), _ = data_of(opened[1:2], model)
        scores = np.zeros(len(config.alphas))
        for draw in range(5):
            out = hold_out_blocks(xy, np.ones(len(xy), dtype=bool), 0.2, 4 + draw)
            for i, alpha in enumerate(config.alphas):
                scores[i] += np.nan_to_num(
                    pearson(sklearn_ridge(X[~out], Y[~out], alpha).predict(X[out]), Y[out])
                ).mean()
        assert model.alpha == config.alphas[scores.argmax()]

    def test_a_single_alpha_is_taken(self, opened, config):
        model = Ridge.fit(
            opened[:1], config.replace(alphas=(7,)), genes=GENES, weights=None, device="cpu", progress=False
        )
        assert model.alpha == 7

    def test_too_few_spots_to_choose_on(self, opened, config):
        few = opened[1].subset(np.arange(1))
        with pytest.raises(ValueError, match=r"config\.alphas cannot be chosen on 1 spots.*single value"):
            Ridge.fit([few], config, genes=["CYC01"], weights=None, device="cpu", progress=False)

    def test_without_a_trunk(self, opened, config):
        model = Ridge.fit(opened[:2], config, genes=GENES, weights=None, device="cpu", progress=False)
        assert model.trunk is None
        assert model.arrays["coefficients"].shape == (2 * 48, GENES)
        assert np.isfinite(model.predict(opened[2], device="cpu")[0]).all()

    def test_learns_what_the_image_shows(self, model, opened):
        """Synthetic genes follow the tissue: a section that was left out is predicted better than by chance."""
        predicted, _ = model.predict(opened[2], device="cpu")
        counts = opened[2].counts(model.genes)
        observed = ExpressionScale().transform(counts, opened[2].library())
        assert np.nanmean(pearson(predicted, observed)) > 0.1


class TestLowRank:
    @pytest.fixture
    def model(self, opened, config, weights):
        config = config.replace(rank=3)
        return LowRankRidge.fit(opened[:2], config, genes=GENES, weights=weights, device="cpu", progress=False)

    def test_is_pca_then_sklearns_ridge(self, model, opened, data_of):
        X, Y, _, mean = data_of(opened[:2], model)
        pca = PCA(3, svd_solver="full").fit(np.concatenate(Y))
        ridge = sklearn_ridge(np.concatenate(X), pca.transform(np.concatenate(Y)), model.alpha)
        new = data_of(opened[2:], model)[0][0]
        predicted, latent = model.predict(opened[2], device="cpu")
        assert latent.shape == (len(opened[2].xy), 3)
        assert latent.dtype == np.float32
        np.testing.assert_allclose(np.abs(latent), np.abs(ridge.predict(new)), atol=1e-5)
        np.testing.assert_allclose(predicted, mean + ridge.predict(new) @ pca.components_, atol=1e-5)
        np.testing.assert_allclose(
            predicted, model.arrays["gene_mean"] + latent @ model.arrays["components"], atol=1e-5
        )

    def test_alpha_is_chosen_with_components_of_the_sections_left_in(self, model, opened, data_of):
        X, Y, _, _ = data_of(opened[:2], model)
        scores = {}
        for alpha in model.config.alphas:
            r = []
            for training, held_out in ((0, 1), (1, 0)):
                pca = PCA(3, svd_solver="full").fit(Y[training])
                latent = sklearn_ridge(X[training], pca.transform(Y[training]), alpha).predict(X[held_out])
                r.append(np.nanmean(pearson(latent @ pca.components_, Y[held_out])))
            scores[alpha] = np.mean(r)
        assert model.alpha == max(scores, key=scores.get)

    def test_all_components_give_the_plain_ridge(self, opened, config, weights):
        settings = {"genes": GENES, "weights": weights, "device": "cpu", "progress": False}
        config = config.replace(rank=GENES, alphas=(1.0,))
        low, plain = (baseline.fit(opened[:2], config, **settings) for baseline in (LowRankRidge, Ridge))
        np.testing.assert_allclose(low.predict(opened[2])[0], plain.predict(opened[2])[0], atol=1e-5)

    def test_no_more_components_than_there_are(self):
        assert principal_components(np.random.default_rng(0).normal(size=(4, 9)), 8).shape == (4, 9)
