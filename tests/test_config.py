import dataclasses
import json

import numpy as np
import pytest

from hggep_sc.config import PRESETS, Config
from hggep_sc.methods.baselines import BaselineConfig


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = Config.from_preset(name)
    text = json.dumps(config.to_dict())
    assert Config.from_dict(json.loads(text)) == config
    other = config.replace(fields_px=(64.0,), fields_um=None, epochs=7, n_components=None, dropout=0.3)
    assert other != config
    assert Config.from_dict(json.loads(json.dumps(other.to_dict()))) == other


def test_presets_know_their_name():
    assert set(PRESETS) == {"default", "paper", "published"}
    assert {name: Config.from_preset(name).preset for name in PRESETS} == {name: name for name in PRESETS}
    assert Config() == Config.from_preset("default")


def test_paper_as_specified():
    config = Config.from_preset("paper")
    wanted = {
        "patch_size": 112, "fields_px": (112.0,), "fields_um": None,
        "gem": True, "cbam": True, "vit": True, "ham": True, "lstm": True, "residual": False,
        "width": 1024, "vit_depth": 4, "vit_heads": 8, "n_neighbors": 3, "lstm_layers": 4,
        "count_loss": "zinb", "count_weight": 0.25, "correlation_weight": 0.0,
        "n_components": None, "center_sections": False, "flips": False, "stain_jitter": 0.0,
        "learning_rate": 1e-5, "backbone_learning_rate": 1e-5, "epochs": 400,
        "stages": ("stage3", "stage4", "conv5"), "standardize": False, "feature_shift": 0.0,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_the_default_sees_through_a_frozen_encoder():
    config = Config()
    assert not config.learns_backbone
    assert not config.learns_from_pixels
    assert len(config.fields_um) == len(config.fields_px) == 4


@pytest.mark.parametrize(
    ("settings", "backbone", "pixels"),
    [
        ({"gem": True}, False, True),
        ({"cbam": True}, False, True),
        ({"backbone_learning_rate": 1e-4}, True, True),
        ({"vit": False, "learning_rate": 1e-2}, False, False),
    ],
)
def test_what_learns(settings, backbone, pixels):
    config = Config(**settings)
    assert (config.learns_backbone, config.learns_from_pixels) == (backbone, pixels)


@pytest.mark.parametrize(
    "other", [{"gem": False}, {"lstm": False}, {"patch_size": 64}, {"width": 512}, {"cross_fit": True}], ids=str
)
def test_the_published_network_has_no_other_settings(other):
    with pytest.raises(ValueError, match=rf"config\.{next(iter(other))}: the published network has"):
        Config.from_preset("published", **other)


def test_published_scale():
    config = Config.from_preset("published")
    assert (config.normalize, config.target_sum, config.log_base) == ("panel", 1e4, "10")
    assert (config.epochs, config.count_weight, config.learning_rate) == (500, 0.25, 1e-5)


def test_overrides_leave_the_rest():
    config = Config.from_preset("paper", width=64, vit_heads=4)
    assert (config.width, config.vit_heads) == (64, 4)
    changed = {"width": 1024, "vit_heads": 8}
    assert dataclasses.replace(config, **changed) == Config.from_preset("paper")
    assert Config.from_preset("paper").replace(epochs=3).epochs == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset='papre'.*'default', 'paper', 'published'"):
        Config.from_preset("papre")


def test_unknown_settings():
    with pytest.raises(ValueError, match=r"no setting 'depth', 'with'; it has .*vit_depth.*width"):
        Config.from_preset("default", depth=3, **{"with": 4})
    with pytest.raises(ValueError, match="no setting 'lr'"):
        Config().replace(lr=1e-3)


def test_the_preset_is_no_setting():
    with pytest.raises(ValueError, match="no setting 'preset'"):
        Config().replace(preset="paper")


POSITIVE = [
    "patch_size", "target_sum", "width", "vit_heads", "n_neighbors", "lstm_layers", "epochs", "learning_rate",
    "patience", "n_components", "chunk_spots",
]  # fmt: skip
NOT_NEGATIVE = [
    "vit_depth",
    "count_weight",
    "correlation_weight",
    "stain_jitter",
    "dropout",
    "feature_shift",
    "weight_decay",
    "gradient_clip",
]
BAD = [
    *((name, value) for name in POSITIVE for value in (0, -1, float("nan"))),
    *((name, value) for name in NOT_NEGATIVE for value in (-1, float("nan"))),
    ("backbone_learning_rate", -1),
    ("dropout", 1.0),
    ("epochs", "5"),
    ("epochs", 2.5),
    ("fields_px", (0.0, 100.0)),
    ("normalize", "spot"),
    ("log_base", 10),
    ("count_loss", "poisson"),
    ("schedule", "cosine"),
    ("stages", ()),
    ("stages", ("stage1",)),
    ("stages", ("stage2", "stage2")),
    ("stages", "stage2"),
    ("fields_um", (87.0,)),
    ("fields_um", (87.0, 87.0, 87.0, 0.0)),
    ("fields_px", (112.0, 224.0, 336.0)),
    ("vit_heads", 3),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"config\..*{name}|config\.{name}"):
        Config.from_preset("default", **{name: value})


@pytest.mark.parametrize("name", ["n_components", "chunk_spots", "fields_um"])
def test_none_is_a_value(name):
    assert getattr(Config.from_preset("default", **{name: None}), name) is None


def test_odd_patches_are_taken():
    assert Config.from_preset("paper", patch_size=113).patch_size == 113
    assert Config.from_preset("default", gem=True, patch_size=113).patch_size == 113


SWITCHES = [field.name for field in dataclasses.fields(Config) if isinstance(getattr(Config(), field.name), bool)]


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["no", "off", 0, 1, None, [True], float("nan")])
def test_words_and_numbers_are_no_switches(name, value):
    with pytest.raises(ValueError, match=rf"config\.{name} must be True or False"):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fields_um", (float("nan"),) * 4),
        ("fields_um", (float("inf"),) * 4),
        ("fields_um", "80"),
        ("fields_um", 80),
        ("fields_um", (True,) * 4),
        ("fields_px", ("112",) * 4),
        ("fields_px", None),
        ("fields_px", {1.0, 2.0, 3.0, 4.0}),
        ("target_sum", float("inf")),
        ("target_sum", 10**400),
        ("learning_rate", True),
        ("width", None),
        ("ensemble", 10**8),
        ("vit_depth", 10**8),
        ("lstm_layers", 10**8),
        ("preset", ["default"]),
        ("normalize", ["library"]),
        ("stages", 5),
        ("stages", None),
        ("stages", [["stage2"]]),
        ("epochs", np.array([3, 4])),
    ],
)
def test_kinds_and_ranges(name, value):
    with pytest.raises(ValueError, match=rf"config\.{name} must"):
        Config(**{name: value})


@pytest.mark.parametrize("name", ["alphas", "rank", "n_neighbors"])
@pytest.mark.parametrize("value", ["ab", 0, -1, (), (float("nan"),), [True], float("inf"), {1.0}])
def test_kinds_and_ranges_of_baselines(name, value):
    with pytest.raises(ValueError, match=rf"config\.{name} must"):
        BaselineConfig(**{name: value})


def test_numpys_scalars_become_pythons():
    config = Config(gem=np.True_, width=np.int64(64), dropout=np.float32(0.5), fields_um=np.array([1, 2, 3, 4]))
    assert (config.gem, config.width, config.dropout, config.fields_um) == (True, 64, 0.5, (1.0, 2.0, 3.0, 4.0))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert BaselineConfig(rank=np.int64(3), alphas=np.array([1, 2])).to_dict()["alphas"] == (1.0, 2.0)


def test_the_nearest_name_is_told():
    with pytest.raises(ValueError, match=r"no setting 'epoch'; .* Did you mean 'epochs'\?"):
        Config.from_preset("default", epoch=3)
    with pytest.raises(ValueError, match="no setting 'drop_out'"):
        Config.from_dict({"drop_out": 0.1})
    with pytest.raises(ValueError, match="no setting 'name', 'self'"):
        Config.from_preset("default", **{"name": 1, "self": 2})
