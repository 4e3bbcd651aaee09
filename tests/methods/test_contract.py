"""What every method there is keeps to."""

import inspect

import numpy as np
import pytest

from helpers import TINY, TINY_RIVALS, TINY_SPOT_RIVALS
from hggep_sc import methods, tl
from hggep_sc.methods.registry import UNSET, config_class, fit_method, method_config
from hggep_sc.section import open_sections
from third_party import ByColour

EVERY = {**{name: methods.get(name) for name in methods.list()}, "by_colour": ByColour()}
SHORT = {"hggep": {**TINY, "epochs": 1}, **TINY_RIVALS, **TINY_SPOT_RIVALS}
SMALL = {"patch_size": 32, "fields_um": (60.0,), "fields_px": (60.0,)}
OTHERS = {"validation": 0.2, "devices": 2, "strategy": "ddp", "num_nodes": 2, "checkpoint_dir": "here", "resume": True}


@pytest.fixture(params=EVERY)
def method(request):
    return EVERY[request.param]


@pytest.fixture
def opened(sections):
    return open_sections(sections)


def fit(method, opened, seed=0, **options):
    config = {} if config_class(method) is None else SHORT.get(method.method, SMALL)
    options = {"weights": None, "device": "cpu", "progress": False, **options}
    return fit_method(
        opened[:2], method, config=method_config(method, config=config or None), genes=12, seed=seed, **options
    )


def test_it_is_a_method_and_fits_a_model(method, opened):
    assert isinstance(method, methods.Method)
    model = fit(method, opened)
    assert isinstance(model, methods.Model)
    assert model.method == method.method
    assert len(model.genes) == len(set(model.genes)) == 12
    assert isinstance(model.scale, methods.ExpressionScale)
    named = {*inspect.signature(method.fit).parameters, *inspect.signature(model.predict).parameters}
    assert method.takes | model.takes <= named


def test_predicts_a_finite_value_of_every_spot_and_gene_without_counts(method, opened, sections):
    model = fit(method, opened)
    expression, latent = model.predict(opened[2], device="cpu")
    assert np.shape(expression) == (40, 12)
    assert np.isfinite(expression).all()
    assert latent is None or len(latent) == 40
    sections["S3"].X = 7 * sections["S3"].X[::-1]
    (other,) = open_sections({"S3": sections["S3"]})
    np.testing.assert_array_equal(model.predict(other, device="cpu")[0], expression)


def test_the_same_seed_gives_the_same_model(method, opened):
    one, other = fit(method, opened, seed=3), fit(method, opened, seed=3)
    assert one.id == other.id
    assert list(one.genes) == list(other.genes)
    np.testing.assert_array_equal(one.predict(opened[2])[0], other.predict(opened[2])[0])


def test_other_sections_give_another_model(method, opened):
    assert fit(method, opened).id != fit(method, opened[1:]).id


def test_round_trip(method, opened, tmp_path):
    model = fit(method, opened)
    model.save(tmp_path / "m")
    again = method.load(tmp_path / "m")
    assert (again.id, list(again.genes), again.scale) == (model.id, list(model.genes), model.scale)
    np.testing.assert_array_equal(again.predict(opened[2], device="cpu")[0], model.predict(opened[2], device="cpu")[0])
    with pytest.raises(FileExistsError):
        model.save(tmp_path / "m")
    model.save(tmp_path / "m", overwrite=True)


def test_options_that_it_does_not_take_are_refused(method, sections):
    for name in OTHERS.keys() - method.takes:
        assert name in UNSET
        with pytest.raises(ValueError, match=f"{name}= is for .*: method={method.method!r} has no use for it"):
            tl.fit(sections, method=method, **{name: OTHERS[name]}, weights=None)


def test_is_one_of_a_cross_validation_in_which_held_out_counts_have_no_part(method, sections):
    """Nothing leaks: whatever was counted in the section that is left out, its prediction is the same."""
    config = {} if config_class(method) is None else {"config": SHORT.get(method.method, SMALL)}
    how = {"genes": 12, "weights": None, "device": "cpu", "progress": False, "only": ["S1"], "key_added": "cv"}
    predicted = []
    for _ in range(2):
        result = tl.cross_validate(sections, methods={"it": {"method": method, **config}}, **how, overwrite=True)
        assert result.folds["error"].tolist() == [""]
        predicted.append(np.array(sections["S1"].layers["cv_it"]))
        sections["S1"].X = 7 * sections["S1"].X[::-1, ::-1]
    assert np.isfinite(predicted[0]).any(axis=0).sum() == 12
    np.testing.assert_array_equal(*predicted)
