"""Whatever is given for an argument: it works, or an error names the argument, and the data are as they were."""

import inspect
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hggep_sc as hggep
from helpers import assert_same
from hggep_sc import metrics

ODD = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, 2, -1, 0.5, 2.5, 10**400, float("nan"), float("inf"), 1j, b"S1", (), [], {}, set(),
         "", "a", "S1", "a/b", "auto", "spatial", "in_tissue", "counts", "\0", ["a"], {"a": 1}, {1: 1}, {None: 1},
         {"S1": None}, np.int64(1), np.float32(0.5), np.array(1), np.array([1.0, 2.0]), np.array(["a"]), object(),
         pd.DataFrame({"a": [1]}), int, len]
    ),
    st.integers(-3, 3),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(-2, 2), st.text(max_size=2), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(-1, 1), max_size=2),
)  # fmt: skip
EXPECTED = (TypeError, ValueError, KeyError, FileNotFoundError)
WORDS = {"key": "prediction", "genes": "gene"}  # by which messages call it
BOUNDED = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def odd_arguments(function, but=()):
    """One or two arguments of a function, by name, of any kind."""
    names = [name for name in inspect.signature(function).parameters if name not in but]
    pairs = st.tuples(st.sampled_from(names), ODD)
    return st.lists(pairs, min_size=1, max_size=2).map(dict)


def called(function, arguments, data=()):
    """Call it; return whether it worked. What it raises must be told of an argument."""
    before = [one.copy() for one in data]
    try:
        function(**arguments)
    except EXPECTED as error:
        text = str(error)
    else:
        return True
    assert any(name in text or WORDS.get(name, name) in text for name in arguments), text
    # of errors of other libraries that say nothing of it
    assert not any(words in text for words in ("unhashable", "not supported between", "has no attribute")), text
    assert not any(words in text for words in ("not iterable", "not subscriptable", "unsupported operand")), text
    for one, as_it_was in zip(data, before, strict=True):
        assert_same(one, as_it_was)
    return False


@pytest.fixture(scope="module")
def mean_model(_synthetic):
    return hggep.tl.fit({"S1": _synthetic["S1"].copy()}, method="gene_mean", genes=12, weights=None, progress=False)


@BOUNDED
@given(arguments=odd_arguments(hggep.tl.predict, but=("data", "model", "checkpoint_dir", "coordinate_system")))
def test_predict(sections, mean_model, arguments):
    data = sections["S3"].copy()
    called(partial(hggep.tl.predict, data, mean_model), arguments, [data])


@BOUNDED
@given(arguments=odd_arguments(hggep.tl.evaluate, but=("data", "null")))
def test_evaluate(sections, mean_model, arguments):
    data = sections["S3"][:, :12].copy()
    hggep.tl.predict(data, mean_model, progress=False)
    called(partial(hggep.tl.evaluate, data), arguments, [data])


@BOUNDED
@given(arguments=odd_arguments(hggep.tl.domains, but=("data",)))
def test_domains(sections, arguments):
    data = sections["S3"][:, :12].copy()
    called(partial(hggep.tl.domains, data), {"layer": None, **arguments}, [data])


@BOUNDED
@given(arguments=odd_arguments(hggep.tl.fit, but=("data", "method", "checkpoint_dir", "weights", "encoder")))
def test_fit(sections, arguments):
    data = sections["S1"][:, :12].copy()
    called(partial(hggep.tl.fit, data, method="gene_mean", weights=None), {"progress": False, **arguments}, [data])


@BOUNDED
@given(arguments=odd_arguments(hggep.tl.cross_validate, but=("data", "path", "weights")))
def test_cross_validate(sections, arguments):
    data = {name: sections[name][:, :10].copy() for name in ("S1", "S2")}
    how = {"methods": ["gene_mean"], "weights": None, "progress": False}
    try:
        called(partial(hggep.tl.cross_validate, data), how | arguments, list(data.values()))
    except RuntimeError as error:
        assert str(error).startswith("every fold failed")  # noqa: PT017 - else it fails


@BOUNDED
@given(arguments=odd_arguments(hggep.tl.predictability, but=("data", "weights", "encoder")))
def test_predictability(sections, arguments):
    data = {name: sections[name][:, :10].copy() for name in ("S1", "S2")}
    for section in data.values():
        section.obsm["X_seen"] = section.obsm["spatial"]  # quicker than the image
    how = {"encoder": "X_seen", "progress": False}
    called(partial(hggep.tl.predictability, data), how | arguments, list(data.values()))


@BOUNDED
@given(arguments=odd_arguments(hggep.tl.predict_slides, but=("model", "path")))
def test_predict_slides(sections, mean_model, tmp_path_factory, arguments):
    data = sections["S3"].copy()
    how = {"slides": {"S3": data}, "model": mean_model, "path": tmp_path_factory.mktemp("out"), "progress": False}
    called(hggep.tl.predict_slides, how | arguments)
    assert_same(data, sections["S3"])


@BOUNDED
@given(name=st.sampled_from(sorted(hggep.Config().to_dict())), value=ODD)
def test_config(name, value):
    called(hggep.Config, {name: value})
    if called(partial(hggep.Config.from_preset, "default"), {name: value}):
        config = hggep.Config(**{name: value})
        assert hggep.Config.from_dict(config.to_dict()) == config


@BOUNDED
@given(
    name=st.sampled_from(["pearson", "spearman", "rmse", "ssim", "noise_ceiling", "benjamini_hochberg"]),
    values=st.lists(ODD, min_size=3, max_size=3),
)
def test_metrics(name, values):
    function = getattr(metrics, name)
    n_arrays = {"ssim": 3, "noise_ceiling": 1, "benjamini_hochberg": 1}.get(name, 2)
    names = list(inspect.signature(function).parameters)[:n_arrays]
    called(function, dict(zip(names, values, strict=False)))
