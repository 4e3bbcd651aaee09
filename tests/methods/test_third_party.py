"""A method of a user's goes wherever those of the package go."""

import logging

import numpy as np
import pytest

import hggep_sc as hggep
from helpers import TINY
from hggep_sc import tl
from hggep_sc.methods import registry
from third_party import ByColour

RIDGE = {"patch_size": 32, "fields_um": (60.0,), "fields_px": (60.0,)}
METHODS = {
    "by colour": {"method": ByColour()},
    "wide": {"method": ByColour(field=80.0)},
    "low_rank_ridge": {"config": RIDGE},
    "hggep": {"config": {**TINY, "epochs": 1}},
}
HOW = {"genes": 12, "weights": None, "device": "cpu", "progress": False}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    return hggep.methods.register(ByColour())


@pytest.fixture
def training(sections):
    return {name: sections[name] for name in ("S1", "S2")}


def cross_validated(sections, **how):
    result = tl.cross_validate(sections, methods=METHODS, **HOW, **how)
    assert result.folds["error"].eq("").all()
    return result


def test_fit_predict_evaluate_by_name_and_as_object(training, sections, registered):
    assert hggep.methods.list()[-1] == "by_colour"
    assert hggep.methods.get("by_colour") is registered
    model = tl.fit(training, method="by_colour", genes=12, progress=False)
    assert model.id == tl.fit(training, method=ByColour(), genes=12, progress=False).id
    assert model.id != tl.fit(training, method=ByColour(80.0), genes=12, progress=False).id
    tl.predict(sections["S3"], model, device="cpu", progress=False)
    scores = tl.evaluate(sections["S3"])
    assert scores.loc[model.genes, "rmse"].notna().all()
    record = sections["S3"].uns["hggep"]
    assert (record["method"], list(record["sections"]["role"])) == ("by_colour", ["unknown"])


def test_predict_slides(training, sections, tmp_path):
    model = tl.fit(training, method=ByColour(), genes=12, progress=False)
    table = tl.predict_slides({"S3": sections["S3"]}, model, path=tmp_path, device="cpu", progress=False)
    assert len(table) == 1


def test_cross_validation_beside_hggep(sections, tmp_path, monkeypatch):
    result = cross_validated(sections, path=tmp_path)
    assert set(result.folds["algorithm"]) == {"by_colour", "low_rank_ridge", "hggep"}
    rmse = result.table.query("metric == 'rmse'").groupby("method")["value"].mean()
    assert np.isfinite(rmse).all()
    assert rmse["by colour"] != rmse["wide"]  # which are told apart on disk, too
    monkeypatch.setattr(ByColour, "fit", lambda *_, **__: pytest.fail("it was run"))
    again = cross_validated(sections, path=tmp_path)
    assert again.table.equals(result.table)


def test_a_registered_name_in_cross_validation(sections, registered):
    result = tl.cross_validate(sections, methods=["by_colour", "gene_mean"], key_added="cv", **HOW)
    assert result.folds["error"].eq("").all()
    assert "cv_by_colour" in sections["S1"].layers


def test_on_a_dask_cluster(sections):
    from distributed import Client, LocalCluster

    here = cross_validated(sections)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL) as one,
        Client(one) as client,
    ):
        there = cross_validated(sections, executor=client.get_executor())
    figures = [result.table.query("algorithm == 'by_colour'")["value"].to_numpy() for result in (here, there)]
    np.testing.assert_allclose(*figures, rtol=1e-5)


def test_another_scale_is_said(sections, monkeypatch, warned):
    monkeypatch.setattr("third_party.ColourModel.scale", hggep.methods.ExpressionScale(target_sum=100))
    tl.cross_validate(sections, methods={"by colour": {"method": ByColour()}, "gene_mean": {}}, **HOW)
    assert "on different expression scales ('by colour': library total scaled to 100; 'gene_mean'" in warned.text


class Renamed(ByColour):
    method = "ridge"


class Broken(ByColour):
    method = "broken"

    def fit(self, sections, **_):
        model = super().fit(sections, genes=5)
        model.slopes = model.slopes[:, :3]
        return model


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("by_color", ValueError, "method='by_color' is not known; there are 'hggep'"),
        (5, TypeError, r"method=5 is no method: it lacks method, takes, fit, load; see hggep_sc\.methods\.Method"),
        (ByColour, TypeError, r"is a class: give an object of it, ByColour\(\)"),
        (Renamed(), ValueError, "method='ridge' is one of hggep_sc: choose another name"),
    ],
)
def test_what_is_no_method(training, method, error, message):
    with pytest.raises(error, match=message):
        tl.fit(training, method=method, progress=False)
    with pytest.raises(error, match=message):
        tl.cross_validate(training, methods={"a": {"method": method}}, **HOW)


@pytest.mark.parametrize("option", [{"validation": 0.2}, {"encoder": "X"}, {"normalize": "panel"}, {"config": {}}])
def test_options_that_it_does_not_take(training, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}= .*: method='by_colour' has no use for it"):
        tl.fit(training, method=ByColour(), progress=False, **option)
    with pytest.raises(ValueError, match="preset='paper' is one of the network's: method='by_colour' has none"):
        tl.fit(training, method=ByColour(), preset="paper")


def test_a_prediction_of_another_shape_is_refused(training, sections):
    model = tl.fit(training, method=Broken(), progress=False)
    with pytest.raises(ValueError, match=r"'by_colour' predicts values of shape \(40, 3\), and .* are \(40, 5\)"):
        tl.predict(sections["S3"], model, progress=False)


def test_what_cannot_be_pickled_is_refused_before_the_work(sections):
    method = ByColour()
    method.transform = lambda x: x
    with pytest.raises(TypeError, match=r"method='by_colour' cannot be pickled .*top level of a module"):
        tl.cross_validate(sections, methods={"a": {"method": method}}, **HOW)


def test_two_of_one_name_need_labels(sections):
    with pytest.raises(ValueError, match=r"same name twice \(by_colour, by_colour\): give a dict"):
        tl.cross_validate(sections, methods=[ByColour(), ByColour(80.0)], **HOW)
