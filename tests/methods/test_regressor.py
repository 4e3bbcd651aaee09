"""Regressors of scikit-learn's on any encoder's features."""

import joblib
import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.ensemble import RandomForestRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import CPU, MeanColour
from hggep_sc import tl
from hggep_sc.methods import Method, Model, Regressor
from hggep_sc.section import open_sections

SMALL = {"patch_size": 32, "fields_um": (60.0, 120.0), "fields_px": (32.0, 64.0)}
HOW = {"genes": 12, "config": SMALL, **CPU}
ESTIMATORS = [
    PLSRegression(3),
    RandomForestRegressor(5, max_depth=3),
    KernelRidge(kernel="rbf"),
    make_pipeline(StandardScaler(), RandomForestRegressor(3)),
]


@pytest.fixture
def training(sections):
    return {name: sections[name] for name in ("S1", "S2")}


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_fit_and_predict(estimator, training, sections, tmp_path):
    method = Regressor(estimator)
    model = tl.fit(training, method=method, **HOW)
    assert isinstance(method, Method)
    assert isinstance(model, Model)
    assert model.id == tl.fit(training, method=Regressor(estimator), **HOW).id  # the seed is the fit's
    assert not hasattr(estimator, "n_features_in_")  # it is a clone that is fitted
    tl.predict(sections["S3"], model, device="cpu", progress=False)
    predicted = sections["S3"][:, model.genes].layers["hggep"]
    assert predicted.std(0).min() > 1e-4
    assert sections["S3"].uns["hggep"]["sections"]["role"].tolist() == ["held out"]
    with pytest.raises(TypeError, match=r"cannot be saved without pickle.*joblib\.dump\(model, file\) or skops"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    joblib.dump(model, tmp_path / "model.joblib")
    again = joblib.load(tmp_path / "model.joblib")
    (test,) = open_sections({"S3": sections["S3"]})
    np.testing.assert_array_equal(again.predict(test, device="cpu")[0], predicted)
    with pytest.raises(TypeError, match="read it as you wrote it"):
        method.load(tmp_path / "m")


def test_another_seed_is_another_forest(training):
    ids = {tl.fit(training, method=Regressor(ESTIMATORS[1]), seed=seed, **HOW).id for seed in (0, 1)}
    assert len(ids) == 2


@pytest.mark.parametrize("encoder", ["shufflenet", "X_emb", MeanColour()])
def test_ridge_of_scikit_learn_s_is_the_baseline(training, sections, encoder):
    for section in sections.values():
        section.obsm["X_emb"] = np.random.default_rng(0).normal(size=(section.n_obs, 5))
    (test,) = open_sections({"S3": sections["S3"]})
    how = {**HOW, "config": {**SMALL, "alphas": (3.0,)}, "encoder": encoder}
    own = tl.fit(training, method=Regressor(Ridge(3.0, fit_intercept=False)), **how)
    baseline = tl.fit(training, method="ridge", **how)
    np.testing.assert_allclose(
        own.predict(test, device="cpu")[0], baseline.predict(test, device="cpu")[0], rtol=1e-4, atol=1e-4
    )


def test_cross_validation(sections, tmp_path):
    methods = {
        "PLS": {"method": Regressor(PLSRegression(3))},
        "PLS 2": {"method": Regressor(PLSRegression(2))},
        "low_rank_ridge": {},
    }
    result = tl.cross_validate(sections, methods=methods, path=tmp_path, **HOW)
    assert result.folds["error"].eq("").all()
    assert dict(zip(result.folds["method"], result.folds["algorithm"], strict=True))["PLS"] == "regressor"
    assert len(list(tmp_path.glob("*_regressor_*.h5ad"))) == 6


def test_what_is_no_regressor():
    with pytest.raises(TypeError, match="estimator=5 must be a regressor of scikit-learn's"):
        Regressor(5)
