"""Baselines on what another encoder sees: embeddings in obsm, and modules of the user's."""

import numpy as np
import pytest

import hggep_sc as hggep
from helpers import CPU, MeanColour
from hggep_sc import tl
from hggep_sc.features.moments import Moments
from hggep_sc.section import open_sections

SMALL = {"patch_size": 32, "fields_um": (60.0, 120.0), "fields_px": (32.0, 64.0)}
HOW = {"genes": 12, "config": SMALL, **CPU}
MIXING = np.random.default_rng(0).normal(size=(3, 5))
methods = pytest.mark.parametrize("method", ["ridge", "low_rank_ridge", "nearest_patches", "hest_ridge"])


@pytest.fixture
def embedded(sections):
    """Each spot has in obsm["X_emb"] what the module sees of it."""
    for name, section in sections.items():
        (opened,) = open_sections({name: section})
        with opened.open_image() as image:
            fields = [round(um / opened.mpp) for um in SMALL["fields_um"]]
            seen = [image.read_patches(opened.xy, field=px, size=32).mean((2, 3)) / 255 for px in fields]
        section.obsm["X_emb"] = np.hstack([colour @ MIXING for colour in seen]).astype(np.float32)
    return sections


@pytest.fixture
def training(embedded):
    return {name: embedded[name] for name in ("S1", "S2")}


@methods
def test_a_module_gives_what_its_embeddings_give(method, training, embedded):
    by_module = tl.fit(training, method=method, encoder=MeanColour(MIXING), **HOW)
    by_slot = tl.fit(training, method=method, encoder="X_emb", **HOW)
    assert by_module.trunk is by_slot.trunk is None
    assert by_module.n_features == by_slot.n_features == 10
    (test,) = open_sections({"S3": embedded["S3"]})
    one, other = (model.predict(test, device="cpu")[0] for model in (by_module, by_slot))
    np.testing.assert_allclose(one, other, atol=0.02)
    assert one.std(0).min() > 1e-4  # it sees the spots


def test_the_ridge_is_that_of_the_standardised_embeddings(training):
    model = tl.fit(training, method="ridge", encoder="X_emb", **{**HOW, "config": {"alphas": (3.0,)}})
    embeddings = [section.obsm["X_emb"] for section in training.values()]
    X = np.concatenate([Moments.of(part).standardised(part) for part in embeddings]).astype(float)
    Y = []
    for section in open_sections(training):
        expression = model.scale.transform(section.counts(model.genes), section.library())
        Y.append(expression - expression.mean(0))
    expected = np.linalg.solve(X.T @ X + 3 * np.eye(10), X.T @ np.concatenate(Y))
    np.testing.assert_allclose(model.arrays["coefficients"], expected, atol=1e-4)


@methods
def test_embeddings_need_no_image(method, training, embedded, tmp_path):
    for section in embedded.values():
        del section.uns["spatial"]
    model = tl.fit(training, method=method, encoder="X_emb", **HOW)
    model.save(tmp_path / "m")
    again = type(model).load(tmp_path / "m")
    assert (again.id, again.embeddings, again.reads_image) == (model.id, "X_emb", False)
    for each in (model, again):
        tl.predict(embedded["S3"], each, key_added=f"m{each is model}", device="cpu", progress=False)
    np.testing.assert_array_equal(embedded["S3"].layers["mTrue"], embedded["S3"].layers["mFalse"])
    with pytest.raises(ValueError, match="encoder= is not wanted: it was fitted with encoder='X_emb'"):
        type(model).load(tmp_path / "m", encoder=MeanColour(MIXING))


def test_a_module_is_given_again_to_load(training, embedded, tmp_path):
    model = tl.fit(training, method="ridge", encoder=MeanColour(MIXING), **HOW)
    model.save(tmp_path / "m")
    assert not list((tmp_path / "m").glob("network-*"))
    again = hggep.baselines.Ridge.load(tmp_path / "m", encoder=MeanColour(MIXING))
    assert again.id == model.id
    (test,) = open_sections({"S3": embedded["S3"]})
    np.testing.assert_array_equal(again.predict(test)[0], model.predict(test)[0])
    with pytest.raises(ValueError, match=r"fitted with a module of yours: give it with load\(\.\.\., encoder=module\)"):
        hggep.baselines.Ridge.load(tmp_path / "m")
    with pytest.raises(ValueError, match="another module, or has other weights"):
        hggep.baselines.Ridge.load(tmp_path / "m", encoder=MeanColour(MIXING + 1))


def test_lengths_that_differ_are_refused(training, embedded):
    model = tl.fit(training, method="ridge", encoder="X_emb", **HOW)
    embedded["S3"].obsm["X_emb"] = embedded["S3"].obsm["X_emb"][:, :4]
    with pytest.raises(ValueError, match=r"obsm\['X_emb'\] has 4 columns; the model learnt from 10"):
        tl.predict(embedded["S3"], model, progress=False)
    with pytest.raises(ValueError, match=r"section 'S3': obsm\['X_emb'\] has 4 columns, and 10 in section 'S1'"):
        tl.fit({**training, "S3": embedded["S3"]}, method="ridge", encoder="X_emb", **HOW)


def test_the_mean_has_no_use_for_an_encoder(training):
    with pytest.raises(ValueError, match=r"encoder= is for .*'ridge'.*: method='gene_mean' has no use for it"):
        tl.fit(training, method="gene_mean", encoder="X_emb", **HOW)


def test_cross_validation_gives_the_encoder_to_all_that_take_one(embedded, tmp_path):
    methods = {"ridge": {}, "gene_mean": {}, "low rank": {"method": "low_rank_ridge", "encoder": MeanColour(MIXING)}}
    result = tl.cross_validate(embedded, methods=methods, encoder="X_emb", path=tmp_path, **HOW)
    assert result.folds["error"].eq("").all()
    other = tl.cross_validate(embedded, methods={"ridge": {}}, path=tmp_path, **HOW)
    pcc = [run.table.query("method == 'ridge' and metric == 'pcc'")["value"].mean() for run in (result, other)]
    assert pcc[0] != pcc[1]  # which are told apart on disk


def test_a_prediction_goes_on_where_it_was_interrupted(training, embedded, tmp_path):
    model = tl.fit(training, method="ridge", encoder=MeanColour(MIXING), **HOW)
    how = {"device": "cpu", "progress": False, "checkpoint_dir": tmp_path / "c"}
    tl.predict(embedded["S3"], model, key_added="a", **how)
    model.encoder.module.forward = lambda *_: pytest.fail("it was called")
    tl.predict(embedded["S3"], model, key_added="b", **how)
    np.testing.assert_array_equal(embedded["S3"].layers["a"], embedded["S3"].layers["b"])
