from types import SimpleNamespace

import numpy as np
import pytest

import hggep_sc as hggep
from hggep_sc.config import Config
from hggep_sc.features.patches import (
    fields_of_view,
    model_mpp,
    model_reduction,
    read_patches,
    say_if_coarse,
    say_if_scale_differs,
    say_if_spacing_differs,
    training_spacing,
)
from hggep_sc.image import SectionImage

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


def test_where_um_are_unknown_full_resolution_px_are_taken_as_equal():
    """A px of a hires copy holds as many as it was reduced by."""
    um = np.array(DEFAULT.fields_um)
    np.testing.assert_allclose(fields_of_view(DEFAULT, 0.5, None, 6.0), um / 0.5 / 6)
    np.testing.assert_allclose(fields_of_view(DEFAULT, 3.0, None, 1 / 6), um / 0.5)  # trained on copies
    np.testing.assert_allclose(fields_of_view(PAPER, None, None, 4.0), (28.0,))
    np.testing.assert_allclose(fields_of_view(PAPER, None, 0.3, 4.0), (28.0,))
    np.testing.assert_allclose(fields_of_view(DEFAULT, 0.5, 0.25, 6.0), um / 0.25)  # known ones say it


def test_a_models_reduction_is_that_of_its_finest_section():
    sections = [SimpleNamespace(mpp=mpp, reduction=reduction) for mpp, reduction in ((2.0, 8.0), (0.5, 1.0))]
    assert model_reduction(sections) == 1.0
    assert model_reduction([SimpleNamespace(mpp=None, reduction=part) for part in (8.0, 4.0)]) == 4.0


@pytest.mark.parametrize(
    ("spacing_um", "said"), [(16.0, True), (2.0, True), (90.0, True), (100.0, False), (400.0, False), (450.0, True)]
)
def test_spots_much_closer_or_farther_apart_than_in_training_are_told(warned, spacing_um, said):
    say_if_spacing_differs(SimpleNamespace(name="S1", spacing_um=spacing_um), (200.0, 200.0))
    assert (f"section 'S1': its spots lie {spacing_um:.3g} um apart" in warned.text) is said
    assert not said or ("trained on 200 um" in warned.text and "spot_pitch" in warned.text)
    warned.clear()
    say_if_spacing_differs(SimpleNamespace(name="S1", spacing_um=100.0), (50.0, 220.0))
    say_if_spacing_differs(SimpleNamespace(name="S1", spacing_um=None), (200.0, 200.0))
    say_if_spacing_differs(SimpleNamespace(name="S1", spacing_um=16.0), None)
    assert not warned.text


def test_training_spots_far_from_alike_are_told_once(warned):
    def sections(*spacings):
        return [SimpleNamespace(name=f"S{i}", spacing_um=um) for i, um in enumerate(spacings)]

    assert training_spacing(sections(None, None)) is None
    assert training_spacing(sections(100.0, None, 200.0, 141.0)) == (100.0, 200.0)  # Visium and legacy arrays
    assert not warned.messages
    assert training_spacing(sections(100.0, 16.0, 8.0)) == (8.0, 100.0)
    (said,) = warned.messages
    assert "8 um apart in training section 'S2' and 100 in 'S0'" in said


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
def test_coarse_images_are_told(warned, fields, said):
    section = SimpleNamespace(name="A", image_name="hires")
    say_if_coarse(section, fields, 112)
    assert ("full-resolution" in warned.text) is said


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
def test_scales_from_one_and_a_half_times_the_models_on_are_told(warned, mpp, said):
    section = SimpleNamespace(name="S1", mpp=mpp, reduction=1.0, has_image=True)
    say_if_scale_differs(section, 0.5)
    assert (said is None) == (not warned.text)
    assert said is None or ("section 'S1'" in warned.text and said in warned.text)
    warned.clear()
    say_if_scale_differs(
        SimpleNamespace(name="S1", mpp=mpp, reduction=1.0, has_image=True), None
    )  # what is a px of a model without a scale?
    assert not warned.text


def test_model_scale_is_the_finest():
    sections = [SimpleNamespace(mpp=mpp, name=name, has_image=True) for name, mpp in (("A", 0.5), ("B", 0.25))]
    assert model_mpp(sections) == 0.25
    assert model_mpp([SimpleNamespace(mpp=None, name="A", has_image=True)]) is None
    with pytest.raises(ValueError, match=r"unknown for \['C'\].*mpp="):
        model_mpp([*sections, SimpleNamespace(mpp=None, name="C", has_image=True)])


@pytest.mark.parametrize("n", [1, 2, 8])
def test_so_few_spots_that_they_are_compared_with_chance_are_told(sections, warned, n):
    """By models that standardise features over the section; gene means do not look."""
    training = {name: sections[name] for name in ("S1", "S2")}
    how = {"genes": 10, "weights": None, "progress": False}
    some = sections["S3"][:n].copy()
    for method, config, said in (("gene_mean", {}, False), ("ridge", {"patch_size": 16}, n < 8)):
        warned.clear()
        model = hggep.tl.fit(training, method=method, config=config, **how)
        hggep.tl.predict(some, model, progress=False)
        assert ("few_spots" in warned.text) is said
        assert not said or f"section 'S3' has {n} spot" in warned.text
