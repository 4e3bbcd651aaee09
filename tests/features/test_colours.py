import numpy as np
import pytest
import torch
from skimage.feature import local_binary_pattern

import hggep_sc as hggep
from hggep_sc.features.colours import CELL, N_STATISTICS, _binary_patterns, colour_maps, colour_statistics
from hggep_sc.section import open_sections
from plain_colours import plain_colour_statistics

MEANS, SPREADS, PATTERNS = slice(0, 14), slice(14, 28), slice(28, 48)
GRADIENTS = slice(6, 14)  # of means and of spreads: luminance and haematoxylin at four scales


def found(squares, margin=0):
    """Statistics of squares (n, 3, S, S), over all of their cells but a margin."""
    (maps,) = colour_maps(torch.from_numpy(np.ascontiguousarray(squares)))
    assert maps.shape == (len(squares), N_STATISTICS, squares.shape[2] // CELL, squares.shape[3] // CELL)
    cells = slice(margin // CELL, maps.shape[2] - margin // CELL)
    return colour_statistics(maps[:, :, cells, cells].double().mean((2, 3))).numpy()


def assert_as_plain(squares, margin=0):
    plain = np.array([plain_colour_statistics(square, margin) for square in squares])
    fast = found(squares, margin)
    np.testing.assert_allclose(fast[:, MEANS], plain[:, MEANS], atol=2e-6)
    np.testing.assert_allclose(fast[:, SPREADS] ** 2, plain[:, SPREADS] ** 2, atol=2e-6)  # a difference of squares
    np.testing.assert_allclose(fast[:, PATTERNS], plain[:, PATTERNS], atol=1e-6)


@pytest.mark.parametrize(("size", "margin"), [(64, 16), (80, 24), (48, 8)])
def test_noise(size, margin):
    rng = np.random.default_rng(size)
    assert_as_plain(rng.integers(0, 256, size=(3, 3, size, size), dtype=np.uint8), margin)
    assert_as_plain(rng.integers(200, 204, size=(3, 3, size, size), dtype=np.uint8), margin)  # with many ties


def test_real_tissue(shared, monkeypatch):
    monkeypatch.setattr(hggep.settings, "dataset_dir", shared / "data")
    (section,) = open_sections(hggep.datasets.her2st(["C5"]))
    with section.open_image() as image:
        for field in (176, 1100):
            assert_as_plain(image.read_patches(section.xy[::60], field=field, size=176), 32)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 0, 255), (81, 90, 70)])
def test_one_colour(colour):
    squares = np.broadcast_to(np.array(colour, np.uint8)[None, :, None, None], (1, 3, 32, 32))
    assert_as_plain(squares, 8)
    statistics = found(squares, 8)[0]
    np.testing.assert_allclose(statistics[SPREADS], 0, atol=1.5e-3)
    np.testing.assert_allclose(statistics[MEANS][GRADIENTS], 0, atol=1e-6)


def test_gradient_of_a_ramp():
    """Red, green and blue rise by 4 a column: so does the luminance, and twice as much at half the size."""
    ramp = np.broadcast_to((4 * np.arange(48, dtype=np.uint8))[None, None], (1, 3, 48, 48))
    statistics = found(ramp)[0]
    np.testing.assert_allclose(statistics[MEANS][GRADIENTS][::2], np.array([1, 2, 4, 8]) * 4 / 255, rtol=1e-5)
    np.testing.assert_allclose(statistics[SPREADS][GRADIENTS][::2], 0, atol=1e-4)


def test_spread_is_not_below_nothing():
    """Where rounding makes the mean square smaller than the square of the mean."""
    averages = torch.full((N_STATISTICS,), 0.3)
    averages[14:28] = 0.3**2 - 1e-9
    assert torch.equal(colour_statistics(averages)[14:28], torch.zeros(14))


def test_binary_patterns_where_neighbours_are_nearly_alike():
    """Every pixel is one of three shades: flat parts, and sums of differences around nothing."""
    shades = np.random.default_rng(0).integers(100, 103, size=(20, 24, 24))
    shares = _binary_patterns(torch.from_numpy(shades.astype(np.int16)), (3, 3)).numpy()
    for of_one, square in zip(shares, shades, strict=True):
        codes = local_binary_pattern(square.astype(np.uint8), 8, 1, "uniform")
        for row in range(3):
            for column in range(3):
                cell = codes[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                expected = [(cell == code).mean() for code in range(10)]
                np.testing.assert_allclose(of_one[:, row, column], expected, atol=1e-6)


def test_squares_are_described_each_by_itself():
    squares = np.random.default_rng(1).integers(0, 256, size=(7, 3, 16, 16), dtype=np.uint8)
    np.testing.assert_array_equal(found(squares)[[3]], found(squares[[3]]))
