"""A stain setting reaches every pixel that is encoded, in fit and in prediction, and no other."""

import numpy as np
import pytest
from PIL import Image

import hggep_sc as hggep
from helpers import CPU, TINY
from hggep_sc.features.stain import stained
from hggep_sc.image.stain import METHODS
from hggep_sc.section import open_sections

METHOD = ["macenko", "reinhard"]
RIDGE = {"method": "low_rank_ridge", "genes": 12, **CPU}
SMALL = {"patch_size": 32, "fields_um": (60.0,), "fields_px": (60.0,)}


@pytest.fixture
def restained(sections, tmp_path):
    """S3 by other dyes of other strength: its optical density mixed anew."""
    other = sections["S3"].copy()
    (entry,) = other.uns["spatial"].values()
    pixels = np.asarray(Image.open(entry["metadata"]["source_image_path"])).astype(float)
    mixing = np.array([[0.8, 0.05, 0.1], [0.0, 0.7, 0.05], [0.1, 0.0, 0.9]])
    density = np.maximum(np.log(241) - np.log(pixels + 1), 0) @ mixing
    path = tmp_path / "restained.png"
    Image.fromarray(np.clip(np.rint(241 * np.exp(-density) - 1), 0, 255).astype(np.uint8)).save(path)
    entry["metadata"]["source_image_path"] = str(path)
    del entry["images"]["hires"]
    return other


@pytest.mark.parametrize("method", METHOD)
def test_patches_are_those_of_the_method_by_hand(section, method):
    seen = stained(section, method)
    with section.open_image() as image, seen.open_image() as normalised:
        spots = np.unique(np.linspace(0, len(section.xy) - 1, 100).round().astype(int))
        sample = image.read_patches(section.xy[spots], field=112, size=112)
        recolour = METHODS[method](sample.transpose(0, 2, 3, 1).reshape(-1, 3), "S1")
        expected = recolour(image.read_patches(section.xy, field=50, size=32))
        np.testing.assert_array_equal(normalised.read_patches(section.xy, field=50, size=32), expected)
        assert np.abs(expected.astype(int) - image.read_patches(section.xy, field=50, size=32)).mean() > 5
    assert stained(section, method) is seen  # whose features are kept
    assert stained(section, None) is section


@pytest.mark.parametrize("method", METHOD)
def test_another_staining_looks_more_alike(sections, restained, method):
    def colours(data, stain):
        section = open_sections(data)[0]
        with stained(section, stain).open_image() as image:
            return image.read_patches(section.xy, field=60, size=32).mean((2, 3))

    before, after = (np.abs(colours(sections["S3"], s) - colours(restained, s)).mean() for s in (None, method))
    assert before > 5
    assert after < 0.5 * before


def test_the_setting_is_saved_and_prediction_does_the_same(sections, tmp_path):
    method = "reinhard"
    training = {name: sections[name] for name in ("S1", "S2")}
    plain = hggep.tl.fit(training, **RIDGE, config=SMALL)
    model = hggep.tl.fit(training, **RIDGE, config={**SMALL, "stain": method})
    assert model.id != plain.id
    assert model.config.stain == method
    model.save(tmp_path / "m")
    again = hggep.baselines.LowRankRidge.load(tmp_path / "m")
    assert again.config.stain == method
    section = open_sections(sections["S3"])[0]
    np.testing.assert_array_equal(again.predict(section)[0], model.predict(section)[0])
    again.config = again.config.replace(stain=None)  # the same coefficients on other colours
    assert not np.allclose(again.predict(section)[0], model.predict(section)[0])


def test_the_network_sees_it_too(sections, tmp_path):
    training = {name: sections[name] for name in ("S1", "S2")}
    model = hggep.tl.fit(training, genes=8, config={**TINY, "stain": "macenko"}, **CPU)
    model.save(tmp_path / "m")
    again = hggep.HGGEP.load(tmp_path / "m")
    section = open_sections(sections["S3"])[0]
    found = model.predict(section)[0]
    np.testing.assert_array_equal(again.predict(section)[0], found)
    model.config = again.config.replace(stain=None)
    np.testing.assert_array_equal(model.predict(stained(section, "macenko"))[0], found)


def test_counts_have_no_part(sections):
    found = []
    for factor in (1, 3):
        sections["S1"].X = sections["S1"].X * factor
        section = open_sections(sections["S1"])[0]
        with stained(section, "macenko").open_image() as image:
            found.append(image.read_patches(section.xy, field=30, size=16))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("config", [{"stain": "vahadane"}, {"stain": 1}])
@pytest.mark.parametrize("method", ["hggep", "ridge"])
def test_unknown_method(sections, method, config):
    with pytest.raises(ValueError, match=r"config\.stain must be one of \('macenko', 'reinhard'\)"):
        hggep.tl.fit(sections, method=method, config=config, **CPU)
