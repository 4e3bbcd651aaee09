import numpy as np
import pytest
import torch
from skimage.feature import local_binary_pattern

import hggep_sc as hggep
from hggep_sc.features.colours import N_STATISTICS, _binary_patterns, colour_and_texture
from hggep_sc.features.patches import read_patches
from hggep_sc.section import open_sections
from plain_colours import plain_colour_and_texture

MOMENTS, QUANTILES_OF_RGB, QUANTILES_OF_STAINS = slice(0, 12), slice(12, 33), slice(33, 54)
GRADIENTS, PATTERNS = slice(54, 70), slice(70, 90)


def found(patches):
    return colour_and_texture(torch.from_numpy(np.ascontiguousarray(patches))).numpy()


def assert_as_plain(patches):
    fast, plain = found(patches), plain_colour_and_texture(patches)
    assert fast.shape == plain.shape == (len(patches), N_STATISTICS)
    assert fast.dtype == np.float32
    for part in (MOMENTS, QUANTILES_OF_RGB, GRADIENTS):
        np.testing.assert_allclose(fast[:, part], plain[:, part], atol=2e-6)
    np.testing.assert_allclose(fast[:, QUANTILES_OF_STAINS], plain[:, QUANTILES_OF_STAINS], rtol=2**-11, atol=1e-6)
    np.testing.assert_allclose(fast[:, PATTERNS], plain[:, PATTERNS], atol=1e-6)


@pytest.mark.parametrize("size", [16, 32, 45])
def test_noise(size):
    rng = np.random.default_rng(size)
    assert_as_plain(rng.integers(0, 256, size=(3, 3, size, size), dtype=np.uint8))
    assert_as_plain(rng.integers(200, 204, size=(3, 3, size, size), dtype=np.uint8))  # with many ties


def test_real_patches(shared, monkeypatch):
    monkeypatch.setattr(hggep.settings, "dataset_dir", shared / "data")
    (section,) = open_sections(hggep.datasets.her2st(["C5"]))
    with section.open_image() as image:
        patches = read_patches(image, section.xy[::60], (117.0, 700.0), 112)
    assert_as_plain(patches.reshape(-1, 3, 112, 112))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 0, 255), (81, 90, 70)])
def test_one_colour(colour):
    patches = np.broadcast_to(np.array(colour, np.uint8)[None, :, None, None], (1, 3, 16, 16))
    assert_as_plain(patches)
    statistics = found(patches)[0]
    np.testing.assert_allclose(statistics[6:12], 0, atol=1e-6)
    np.testing.assert_allclose(statistics[GRADIENTS], 0, atol=1e-6)


def test_gradient_of_a_ramp():
    """Red, green and blue rise by 4 a column: so does the luminance, and twice as much at half the size."""
    ramp = np.broadcast_to((4 * np.arange(32, dtype=np.uint8))[None, None], (1, 3, 32, 32))
    gradients = found(ramp)[0, 54:62].reshape(4, 2)  # of the luminance: mean and sd at four scales
    np.testing.assert_allclose(gradients[:, 0], np.array([1, 2, 4, 8]) * 4 / 255, rtol=1e-5)
    np.testing.assert_allclose(gradients[:, 1], 0, atol=1e-6)


def test_binary_patterns_where_neighbours_are_nearly_alike():
    """Every pixel is one of three shades: flat parts, and sums of differences around nothing."""
    shades = np.random.default_rng(0).integers(100, 103, size=(20, 24, 24))
    shares = _binary_patterns(torch.from_numpy(shades.astype(np.int32))).numpy()
    for row, patch in zip(shares, shades, strict=True):
        codes = local_binary_pattern(patch.astype(np.uint8), 8, 1, "uniform")
        np.testing.assert_allclose(row, [(codes == code).mean() for code in range(10)], atol=1e-6)


def test_patches_are_described_each_by_itself():
    patches = np.random.default_rng(1).integers(0, 256, size=(7, 3, 16, 16), dtype=np.uint8)
    np.testing.assert_array_equal(found(patches)[[3]], found(patches[[3]]))
