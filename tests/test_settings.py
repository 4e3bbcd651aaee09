from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hggep_sc._settings import CHECKS, Settings, settings
from hggep_sc.runtime import checks as _checks


@pytest.fixture
def skipping():
    kept = settings.skip_checks
    yield settings
    settings.skip_checks = kept


def test_folders_are_taken_as_str():
    mine = Settings()
    mine.cache_dir = "~/cache"
    assert mine.cache_dir == Path.home() / "cache"


def test_bytes_are_any_number():
    mine = Settings()
    mine.tile_cache = np.int64(5)
    assert mine.tile_cache == 5


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("cache_dir", 5, TypeError),
        ("dataset_dir", None, TypeError),
        ("tile_cache", -1, ValueError),
        ("patch_memory", "4 GiB", ValueError),
        ("feature_memory", float("nan"), ValueError),
        ("progress", "no", TypeError),
        ("device", 0, TypeError),
        ("feature_route", "map", ValueError),
        ("feature_route", None, ValueError),
        ("encoder_precision", "float16", ValueError),
        ("encoder_precision", None, ValueError),
        ("skip_checks", "images_agree", TypeError),
        ("skip_checks", {"no such check"}, ValueError),
        ("skip_checks", [["images_agree"]], ValueError),
        ("cache_dir", "", ValueError),
        ("tile_cash", 5, AttributeError),
    ],
)
def test_what_is_no_setting_is_refused_by_name(name, value, error):
    mine = Settings()
    before = asdict(mine)
    with pytest.raises(error, match=name):
        setattr(mine, name, value)
    assert asdict(mine) == before


def test_a_route_to_features_is_one_of_three():
    mine = Settings()
    assert mine.feature_route == "auto"
    for route in ("maps", "crops", "auto"):
        mine.feature_route = route
        assert mine.feature_route == route


def test_another_process_takes_all_settings():
    mine, other = Settings(), Settings()
    mine.skip_checks, mine.progress, mine.cache_dir = {"orientation"}, False, "/elsewhere"
    mine.feature_route = "crops"
    other.take(asdict(mine))
    assert other == mine


def test_a_check_refuses_and_names_itself():
    with pytest.raises(ValueError, match=r"off by two\. If all is right: .*skip_checks = \{'scales_agree'\}"):
        _checks.refuse("scales_agree", "off by two")


def test_a_check_warns_and_names_itself(warned):
    _checks.warn("spot_pitch", "far apart")
    assert "far apart" in warned.text
    assert "'spot_pitch'" in warned.text


def test_a_check_that_is_switched_off_says_nothing(skipping, warned):
    skipping.skip_checks = ["scales_agree", "spot_pitch"]
    _checks.refuse("scales_agree", "off by two")
    _checks.warn("spot_pitch", "far apart")
    assert not warned.text
    assert not _checks.is_on("spot_pitch")
    assert _checks.is_on("images_agree")


def test_an_unknown_check_is_a_mistake_of_ours():
    with pytest.raises(KeyError, match="no_such"):
        _checks.is_on("no_such")
    assert all(sentence[0].islower() for sentence in CHECKS.values())
