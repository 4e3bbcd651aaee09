"""Stain normalisation, against stains that are known and the methods' steps written out."""

import numpy as np
import pytest

from hggep_sc.image import SectionImage
from hggep_sc.image.stain import CENTRE, CONCENTRATIONS, CONES, METHODS, OPPONENT, REFERENCE, SPREAD, macenko, reinhard

OTHER = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
OTHER = OTHER / np.linalg.norm(OTHER, axis=1, keepdims=True)


def mixed(stains, rng, strength=1.0, n=20_000):
    """Pixels (n, 3) of two stains in many proportions, with the amounts that they were made of; some are glass."""
    amounts = rng.gamma(2.0, 0.35, (n, 2)) * rng.choice([0.05, 1.0], (n, 2)) * strength
    amounts[: n // 10] = 0
    return np.clip(240 * np.exp(-amounts @ stains) - 1, 0, 255), amounts


def recoloured(function, pixels):
    """Of (n, 3) pixels."""
    return function(pixels.T.reshape(1, 3, 1, -1))[0, :, 0].T


def test_macenko_replaces_the_stains_and_keeps_the_amounts():
    pixels, amounts = mixed(OTHER, np.random.default_rng(0), strength=0.8)
    found = recoloured(macenko(np.rint(pixels).astype(np.uint8), "a"), np.rint(pixels).astype(np.uint8))
    seen = (240 * np.exp(-amounts @ OTHER) < 200).all(axis=1)
    scale = CONCENTRATIONS / np.percentile(amounts[(amounts @ OTHER > 0.15).all(axis=1)], 99, axis=0)
    expected = 240 * np.exp(-(amounts * scale) @ REFERENCE)
    assert np.abs(found - expected)[seen].mean() < 6
    assert np.abs(pixels - expected)[seen].mean() > 15


def test_macenko_makes_differently_stained_copies_alike():
    """One tissue by two dyes of other colours and strengths."""
    rng = np.random.default_rng(1)
    first, amounts = mixed(OTHER, rng, strength=0.6)
    second = 240 * np.exp(-(amounts * (1.5, 0.9)) @ REFERENCE) - 1
    a, b = (recoloured(macenko(p.astype(np.uint8), "a"), p.astype(np.uint8)).astype(float) for p in (first, second))
    assert np.abs(a - b).mean() < 0.5 * np.abs(first - second).mean()


def opponent(pixels):
    return np.log(np.maximum(pixels @ CONES.T, 1e-3)) @ OPPONENT.T


def test_reinhard_brings_means_and_spreads_to_the_reference():
    pixels = mixed(OTHER, np.random.default_rng(2), strength=0.5)[0].astype(np.uint8)
    found = recoloured(reinhard(pixels, "a"), pixels)
    stained = (np.log(240 / (pixels + 1.0)) > 0.15).all(axis=1)
    inside = ((found > 0) & (found < 255)).all(axis=1) & stained  # what is cut off has other statistics
    assert inside[stained].mean() > 0.8
    np.testing.assert_allclose(opponent(found[stained].astype(float)).mean(axis=0), CENTRE, atol=0.05)
    np.testing.assert_allclose(opponent(found[stained].astype(float)).std(axis=0), SPREAD, atol=0.05)


def test_opponent_space_is_that_of_the_paper():
    """l is brightness, and gray has no colour."""
    gray = opponent(np.array([[100.0, 100.0, 100.0]]))[0]
    assert gray[0] == pytest.approx(3**0.5 * np.log(100), abs=0.02)
    assert np.abs(gray[1:]).max() < 0.02
    np.testing.assert_allclose(OPPONENT @ OPPONENT.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_glass_cannot_be_fitted(method):
    glass = np.full((5000, 3), 235, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"image slide: 0 of 5000 pixels around the spots are stained.*config\.stain"):
        METHODS[method](glass, "slide")


def test_patches_of_an_image_are_recoloured():
    pixels = np.random.default_rng(0).integers(0, 255, (60, 70, 3), dtype=np.uint8)
    with SectionImage.from_array(pixels, name="a") as image:
        plain = image.read_patches([[30, 30], [0, 0]], field=20, size=20)
        far = image.read_patches([[30, 30]], field=90_000, size=16)
        image.recolour = lambda patches: 255 - patches
        np.testing.assert_array_equal(image.read_patches([[30, 30], [0, 0]], field=20, size=20), 255 - plain)
        np.testing.assert_array_equal(image.read_patches([[30, 30]], field=90_000, size=16), 255 - far)
        assert image.thumbnail(70).mean() == pytest.approx(pixels.mean())  # what is drawn keeps its colours
