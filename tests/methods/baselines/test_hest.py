"""HEST-Bench's probe against scikit-learn's own parts, on stored features."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from helpers import CPU
from hggep_sc import tl
from hggep_sc.metrics import pearson
from hggep_sc.section import open_sections

N_GENES = 12


@pytest.fixture
def stored(sections):
    """Features of very different spread, which tell of the counts; the first spot of S1 has no counts."""
    sections["S1"].X = sparse.diags(np.arange(sections["S1"].n_obs) > 0, dtype=np.float32) @ sections["S1"].X
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(60, 30)) * np.geomspace(0.01, 100, 30)
    for level, section in enumerate(sections.values()):
        noise = rng.normal(size=(section.n_obs, 30)) * np.geomspace(0.1, 30, 30)
        section.obsm["X_uni"] = (np.log1p(section.X.toarray()) @ mixing + noise + level).astype(np.float32)
    return sections


def expression_of(section, genes):
    (opened,) = open_sections(section)
    seen = opened.library() > 0
    return np.log1p(1e4 * opened.counts(genes).toarray()[seen] / opened.library()[seen, None]), seen


@pytest.mark.parametrize("n_components", [256, 7])
def test_it_is_pca_and_ridge_of_scikit_learn(stored, n_components, monkeypatch):
    """Standardised over all training spots, and not within sections; 30 features have 30 components."""
    monkeypatch.setattr("hggep_sc.methods.baselines.hest.N_COMPONENTS", n_components)
    test = stored.pop("S3")
    model = tl.fit(stored, method="hest_ridge", encoder="X_uni", genes=N_GENES, **CPU)
    pairs = [(expression_of(section, model.genes), section.obsm["X_uni"]) for section in stored.values()]
    X = np.concatenate([features[seen] for (_, seen), features in pairs]).astype(np.float64)
    Y = np.concatenate([expression for (expression, _), _ in pairs])
    scaler = StandardScaler().fit(X)
    pca = PCA(min(n_components, 30), svd_solver="full").fit(scaler.transform(X))
    assert model.alpha == pytest.approx(100 / (min(n_components, 30) * N_GENES))
    X, new = (pca.transform(scaler.transform(each)) for each in (X, test.obsm["X_uni"].astype(np.float64)))
    expected = Ridge(alpha=model.alpha, fit_intercept=False, solver="svd").fit(X, Y).predict(new)
    predicted, latent = model.predict(open_sections(test)[0], device="cpu")
    assert latent is None
    mean = np.mean([expression.mean(0) for (expression, _), _ in pairs], axis=0)
    np.testing.assert_allclose(predicted, expected + mean, atol=1e-4)
    theirs = Ridge(alpha=model.alpha, fit_intercept=False, solver="lsqr", max_iter=1000).fit(X, Y).predict(new)
    assert pearson(predicted, theirs).min() > 0.999  # their solver, which stops before the end


def test_it_is_not_relative_to_the_section(stored):
    """A part of a section is predicted as the whole is; by the ridge, whose features are relative, it is not."""
    test = stored.pop("S3")
    whole, part = open_sections(test)[0], open_sections(test[:20].copy())[0]
    same = {}
    for method in ("hest_ridge", "ridge"):
        model = tl.fit(stored, method=method, encoder="X_uni", genes=N_GENES, **CPU)
        one, other = model.predict(whole)[0][:20], model.predict(part)[0]
        same[method] = np.allclose(one, other, atol=1e-5)
    assert same == {"hest_ridge": True, "ridge": False}


def test_one_gene(stored):
    model = tl.fit(stored, method="hest_ridge", encoder="X_uni", genes=["CYC01"], **CPU)
    assert model.arrays["coefficients"].shape == (30, 1)
