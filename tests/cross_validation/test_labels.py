import pytest

from hggep_sc.config import Config
from hggep_sc.cross_validation import settings_of
from hggep_sc.methods.baselines import BaselineConfig
from hggep_sc.methods.registry import names

FOR_ALL = {"genes": 12, "weights": None, "normalize": None, "device": "cpu"}


def algorithms(methods, **shared):
    return {label: found["method"].method for label, found in settings_of(methods, {**FOR_ALL, **shared}).items()}


def config_of(methods, label, **shared):
    return settings_of(methods, {**FOR_ALL, **shared})[label]["config"]


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_method_s_name_means_that_method(as_dict):
    found = algorithms({name: {} for name in names()} if as_dict else names(), normalize="library")
    assert found == {name: name for name in names()}


def test_labels_say_their_method_or_are_plainly_the_network():
    methods = {
        "rank 4": {"method": "low_rank_ridge", "config": {"rank": 4}},
        "ridge": {"method": "ridge"},
        "no GEM": {"config": {"gem": False}},
        "paper": {"preset": "paper", "config": {"normalize": "library"}},
        "held out": {"validation": 0.2},
        "embeddings": {"encoder": "X_emb"},
        "HGGEP": {"config": {"epochs": 3}},
    }
    expected = dict.fromkeys(methods, "hggep") | {"rank 4": "low_rank_ridge", "ridge": "ridge"}
    assert algorithms(methods) == expected


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ({"low_rank_rige": {}}, ValueError, r"did you mean 'low_rank_ridge'\?"),
        ({"low_rank_rige": {"config": {"patch_size": 32}}}, ValueError, r"did you mean 'low_rank_ridge'\?"),
        ({"Gene mean": {}}, ValueError, r"did you mean 'gene_mean'\?"),
        ({"my ridge": {"config": {"patch_size": 32}}}, ValueError, r"'my ridge'.*did you mean 'ridge'\?"),
        ({"low-rank ridge, small": {"weights": None}}, ValueError, r"did you mean 'low_rank_ridge'\?"),
        ({"HGGEP": {}}, ValueError, r"did you mean 'hggep'\?"),
        ({"default": {}}, ValueError, r"'default'\] does not tell its method: .*\{'default': \{'method': 'hggep'\}\}"),
        ({"default": {"weights": None}}, ValueError, r"does not tell its method"),
        ({"ridge": {"method": "hggep"}}, ValueError, r"methods\['ridge'\] has method='hggep': a label that is"),
        ({"a": {"method": "lasso"}}, ValueError, r"methods\['a'\]: method='lasso' is not known; there are 'hggep'"),
        (["lasso"], ValueError, r"method='lasso' is not known"),
        ({"a": {"method": "ridge", "rank": 3}}, ValueError, r"methods\['a'\] has rank; it may have config"),
        ({"a": "ridge"}, TypeError, r"methods\['a'\] must be a dict .*\{'a': \{'method': 'ridge'\}\}"),
        ({"a": None}, TypeError, r"methods\['a'\] must be a dict"),
        ({"a": {"config": {"rank": 4}}}, ValueError, r"config has no setting 'rank'"),
        (5, ValueError, r"methods=5 must be a list of names"),
    ],
)
def test_labels_that_could_be_misread_are_refused(methods, error, message):
    with pytest.raises(error, match=message):
        algorithms(methods)


def test_settings_for_all_reach_the_methods_that_have_them():
    methods = {"ridge": {}, "hggep": {}, "wide": {"config": {"width": 64, "epochs": 2}}}
    shared = {"config": {"patch_size": 64, "epochs": 5, "alphas": (1.0,)}, "validation": 0.2, "encoder": "X_emb"}
    found = settings_of(methods, {**FOR_ALL, **shared})
    assert found["ridge"]["config"] == BaselineConfig(patch_size=64, alphas=(1.0,))
    assert found["hggep"]["config"] == Config(patch_size=64, epochs=5)
    assert found["wide"]["config"] == Config(patch_size=64, epochs=2, width=64)
    assert [found[label]["validation"] for label in methods] == [None, 0.2, 0.2]
    assert [found[label]["encoder"] for label in methods] == ["X_emb", "X_emb", "X_emb"]


def test_whole_configurations_for_all():
    methods = {"ridge": {}, "hggep": {}, "short": {"config": {"epochs": 2}}, "own": {"config": Config(epochs=9)}}
    configs = {label: config_of(methods, label, config=Config(epochs=7, width=64)) for label in methods}
    assert configs == {
        "ridge": BaselineConfig(),
        "hggep": Config(epochs=7, width=64),
        "short": Config(epochs=2, width=64),
        "own": Config(epochs=9),
    }


def test_a_preset_for_all_is_the_network_s():
    methods = {"gene_mean": {}, "hggep": {}, "default": {"preset": "default"}}
    presets = [getattr(config_of(methods, label, preset="paper"), "preset", None) for label in methods]
    assert presets == [None, "paper", "default"]


@pytest.mark.parametrize(
    ("methods", "shared", "error", "message"),
    [
        (["ridge", "hggep"], {"config": {"epocs": 3}}, ValueError, r"config= has 'epocs', which is no setting of any"),
        (["ridge"], {"config": {"epochs": 3}}, ValueError, r"config= has 'epochs', which is no setting of any"),
        (["ridge"], {"config": Config()}, ValueError, r"config is a Config, which none of the methods takes"),
        (["ridge"], {"preset": "paper"}, ValueError, r"preset='paper' is for method 'hggep', which is none"),
        (["gene_mean"], {"encoder": "X_emb"}, ValueError, r"encoder='X_emb' is for methods that take one"),
        (["ridge"], {"config": 5}, TypeError, r"config=5 must be a dict of settings"),
    ],
)
def test_settings_for_all_that_nobody_takes_are_refused(methods, shared, error, message):
    with pytest.raises(error, match=message):
        settings_of(methods, {**FOR_ALL, **shared})
