import logging
from types import SimpleNamespace

import numpy as np
import pytest

from hggep_sc.config import Config
from hggep_sc.image import SectionImage
from hggep_sc.patches import fields_of_view, model_mpp, read_patches, say_if_coarse, say_if_scale_differs

DEFAULT, PAPER = Config.from_preset("default"), Config.from_preset("paper")


@pytest.mark.parametrize("section", [None, 0.3])
def test_unknown_scale_takes_pixels(section):
    assert fields_of_view(DEFAULT, None, section) == DEFAULT.fields_px
    assert fields_of_view(PAPER, None, section) == (112.0,)


def test_fields_in_um_at_the_sections_scale():
    um = np.array(DEFAULT.fields_um)
    for section in (0.25, 0.5, 0.7, 2.0):
        np.testing.assert_allclose(fields_of_view(DEFAULT, 0.5, section), um / section)
    np.testing.assert_allclose(fields_of_view(DEFAULT, 0.5, None), um / 0.5)


def test_fields_in_px_follow_the_training_sections_scale():
    assert fields_of_view(PAPER, 0.5, 0.5) == (112.0,)
    assert fields_of_view(PAPER, 0.5, None) == (112.0,)
    np.testing.assert_allclose(fields_of_view(PAPER, 0.5, 0.25), (224.0,))
    np.testing.assert_allclose(fields_of_view(PAPER, 0.5, 1.0), (56.0,))


@pytest.mark.parametrize(
    ("section", "resampled"),
    [(0.5 / 1.019, False), (0.5 / 0.981, False), (0.5 / 1.021, True), (0.5 / 0.979, True)],
)
def test_scales_within_2_percent_are_taken_as_equal(section, resampled):
    expected = 112 * 0.5 / section if resampled else 112
    assert fields_of_view(PAPER, 0.5, section) == pytest.approx((expected,), rel=1e-9)


def test_patches_of_every_field_are_read():
    """Each field is centred on the spot: the mean of a linear ramp is its value there."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None], (200, 200))
    xy = np.array([[80.0, 60.0], [100.0, 120.0]])
    with SectionImage.from_array(ramp, name="ramp") as image:
        found = read_patches(image, xy, (8.0, 40.0), 8)
        out = np.zeros_like(found)
        assert read_patches(image, xy, (8.0, 40.0), 8, out=out) is out
    assert found.shape == (2, 2, 3, 8, 8)
    assert np.allclose(found.mean((2, 3, 4)), xy[:, 1:] - 0.5, atol=0.6)
    assert np.array_equal(out, found)
    spans = np.ptp(found[:, :, 0, :, 0].astype(int), axis=-1)
    assert np.array_equal(spans[:, 0], [7, 7])
    assert np.all(np.abs(spans[:, 1] - 35) <= 1)


@pytest.mark.parametrize(("fields", "said"), [((60.0, 300.0), False), ((55.0, 300.0), True)])
def test_coarse_images_are_told(caplog, fields, said):
    section = SimpleNamespace(name="A", image_name="hires")
    with caplog.at_level(logging.WARNING):
        say_if_coarse(section, fields, 112)
    assert ("full-resolution" in caplog.text) is said


@pytest.mark.parametrize(
    ("mpp", "said"),
    [
        (0.5, None),
        (0.7, None),
        (0.35, None),
        (0.8, "was scanned at 0.8"),
        (0.3, "was scanned at 0.3"),
        (None, "unknown"),
    ],
)
def test_scales_from_one_and_a_half_times_the_models_on_are_told(caplog, mpp, said):
    say_if_scale_differs(SimpleNamespace(name="S1", mpp=mpp), 0.5)
    assert (said is None) == (not caplog.text)
    assert said is None or ("section 'S1'" in caplog.text and said in caplog.text)
    caplog.clear()
    say_if_scale_differs(SimpleNamespace(name="S1", mpp=mpp), None)  # what is a px of a model without a scale?
    assert not caplog.text


def test_model_scale_is_the_finest():
    sections = [SimpleNamespace(mpp=mpp, name=name) for name, mpp in (("A", 0.5), ("B", 0.25))]
    assert model_mpp(sections) == 0.25
    assert model_mpp([SimpleNamespace(mpp=None, name="A")]) is None
    with pytest.raises(ValueError, match=r"unknown for \['C'\].*mpp="):
        model_mpp([*sections, SimpleNamespace(mpp=None, name="C")])
