import numpy as np
import pytest

from hggep_sc.methods.baselines import NearestPatches
from hggep_sc.methods.baselines.nearest import N_NEIGHBORS, mean_of_nearest
from hggep_sc.metrics import pearson

SETTINGS = {"genes": 20, "weights": None, "device": "cpu", "progress": False}


def slow_mean_of_nearest(X, Y, new, k):
    out = []
    for row in new:
        distance = [np.sqrt(((row - other) ** 2).sum()) for other in X]
        out.append(Y[sorted(range(len(X)), key=distance.__getitem__)[:k]].mean(0))
    return np.array(out)


def test_against_a_slow_loop():
    rng = np.random.default_rng(1)
    X, Y, new = rng.normal(size=(30, 6)), rng.normal(size=(30, 4)), rng.normal(size=(7, 6))
    ks = [1, 3, 10, 30]
    for k, found in zip(ks, mean_of_nearest(X, Y, new, ks), strict=True):
        np.testing.assert_allclose(found, slow_mean_of_nearest(X, Y, new, k), atol=1e-12)
    np.testing.assert_allclose(found, np.broadcast_to(Y.mean(0), (7, 4)), atol=1e-12)  # all of them


def test_prediction_and_choice_on_sections(opened, config, plain_features):
    model = NearestPatches.fit(opened[:2], config, **SETTINGS)
    X, Y, means = [], [], []
    for section in opened[:2]:
        seen = section.library() > 0
        X.append(plain_features(section, config, model.mpp, None)[seen])
        expression = np.log1p(1e4 * section.counts(model.genes).toarray()[seen] / section.library()[seen, None])
        means.append(expression.mean(0))
        Y.append(expression - means[-1])
    candidates = [k for k in N_NEIGHBORS if k <= min(map(len, X))]
    scores = [
        np.mean([np.nanmean(pearson(slow_mean_of_nearest(X[a], Y[a], X[b], k), Y[b])) for a, b in ((0, 1), (1, 0))])
        for k in candidates
    ]
    assert model.n_neighbors == candidates[int(np.argmax(scores))]
    new = plain_features(opened[2], config, model.mpp, None)
    expected = slow_mean_of_nearest(np.concatenate(X), np.concatenate(Y), new, model.n_neighbors)
    found, latent = model.predict(opened[2])
    assert latent is None
    np.testing.assert_allclose(found, expected + np.mean(means, axis=0), atol=1e-5)


def test_given_number_is_taken(opened, config):
    assert NearestPatches.fit(opened[:1], config.replace(n_neighbors=4), **SETTINGS).n_neighbors == 4


def test_more_neighbours_than_spots(opened, config):
    with pytest.raises(ValueError, match=r"config\.n_neighbors=500.*only 79 training spots"):
        NearestPatches.fit(opened[:2], config.replace(n_neighbors=500), **SETTINGS)
