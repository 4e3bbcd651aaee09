import json

import numpy as np
import pytest

from hggep_sc.methods.baselines import BaselineConfig


def test_survives_json():
    config = BaselineConfig(normalize="panel", alphas=(np.float32(0.5), 2), rank=np.int64(3), fields_um=None)
    again = BaselineConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert (again.alphas, again.rank, again.fields_um) == ((0.5, 2.0), 3, None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"normalize": "median"}, r"config\.normalize must be one of"),
        ({"log_base": "2"}, r"config\.log_base must be one of"),
        ({"target_sum": 0}, r"config\.target_sum must be at least"),
        ({"patch_size": 4}, r"config\.patch_size must be at least 16"),
        ({"fields_um": (80.0,)}, "same number of fields of view"),
        ({"fields_px": (-1.0, 2.0, 3.0, 4.0)}, r"config\.fields_px must hold finite numbers above 0"),
        ({"alphas": ()}, r"config\.alphas must hold numbers, in a list or tuple"),
        ({"alphas": (0.0, 1.0)}, r"config\.alphas must hold finite numbers above 0"),
        ({"alphas": ("1",)}, r"config\.alphas must hold numbers, in a list or tuple"),
        ({"rank": 0}, r"config\.rank must be a whole number"),
        ({"rank": 2.5}, r"config\.rank must be a whole number"),
        ({"n_neighbors": True}, r"config\.n_neighbors must be a whole number"),
    ],
)
def test_values_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        BaselineConfig().replace(**setting)


def test_unknown_setting():
    with pytest.raises(ValueError, match=r"no setting 'epochs'; it has .*alphas"):
        BaselineConfig().replace(epochs=3)


def test_odd_patches_are_allowed():
    assert BaselineConfig(patch_size=33).patch_size == 33
