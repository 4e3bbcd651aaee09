import numpy as np
import pytest
import torch

from hggep_sc.features.windows import middle, summed_area, window_sums
from plain_windows import summed_by_loop

HEIGHT, WIDTH = 7, 9
WINDOWS = {  # left, top, right, bottom, in cells
    "whole cells": (2, 1, 6, 4),
    "cut cells": (1.25, 2.5, 6.75, 4.125),
    "within a cell": (3.2, 4.1, 3.7, 4.8),
    "across a corner of cells": (3.9, 4.9, 4.1, 5.1),
    "all": (0, 0, WIDTH, HEIGHT),
    "at the left and upper border": (0, 0, 2.5, 3.5),
    "at the right and lower border": (5.5, 3.25, WIDTH, HEIGHT),
    "beyond the left and upper border": (-3.5, -1.25, 2.5, 3.5),
    "beyond the right and lower border": (5.5, 3.25, WIDTH + 2.25, HEIGHT + 4),
    "beyond every border": (-2, -3, WIDTH + 4.5, HEIGHT + 0.5),
    "left of all": (-5, 2, -1.5, 4),
    "below all": (2, HEIGHT + 0.5, 4, HEIGHT + 3),
    "nothing": (4.3, 2.7, 4.3, 2.7),
}


def random_maps(channels=3, height=HEIGHT, width=WIDTH, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(channels, height, width)).astype(np.float32))


def summed_over(maps, windows):
    corners = torch.tensor(windows, dtype=torch.double).view(-1, 4)
    return window_sums(summed_area(maps), corners[:, :2], corners[:, 2:])


def test_a_table_holds_the_sum_above_and_left_of_each_corner():
    maps = random_maps()
    table = summed_area(maps)
    assert table.shape == (HEIGHT + 1, WIDTH + 1, 3)
    assert table.dtype == torch.double
    for row in range(HEIGHT + 1):
        for column in range(WIDTH + 1):
            expected = maps[:, :row, :column].double().sum((1, 2))
            torch.testing.assert_close(table[row, column], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_against_a_loop_over_cells(window):
    maps = random_maps()
    (found,) = summed_over(maps, [WINDOWS[window]])
    assert found.dtype == torch.double
    np.testing.assert_allclose(found.numpy(), summed_by_loop(maps.numpy(), *WINDOWS[window]), atol=1e-12)


def test_many_windows_at_once():
    """Wherever their corners are, of maps in half precision too."""
    rng = np.random.default_rng(1)
    low = rng.uniform(-3, 9, size=(60, 2))
    windows = np.hstack([low, low + rng.uniform(0, 6, size=(60, 2))])
    for maps in (random_maps(), random_maps().bfloat16()):
        expected = [summed_by_loop(maps.float().numpy(), *window) for window in windows]
        np.testing.assert_allclose(summed_over(maps, windows).numpy(), expected, atol=1e-12)


def test_a_small_window_far_from_the_corner_of_large_values():
    """Sums over a million cells, of which a handful is left."""
    maps = 1000 + random_maps(channels=1, height=1000, width=1000)
    left, top = 990.375, 985.25
    expected = summed_by_loop(maps[:, 980:, 980:].numpy(), left - 980, top - 980, left - 980 + 3, top - 980 + 3)
    np.testing.assert_allclose(summed_over(maps, [(left, top, left + 3, top + 3)])[0], expected, rtol=1e-9)


def test_a_window_without_anything_is_nothing():
    """Not what rounding leaves of a difference of large sums: it would pass for a feature, where all windows are so."""
    maps = random_maps(channels=4, height=60, width=60).abs()
    maps[:, 20:, 20:] = 0
    low = np.random.default_rng(1).uniform(20, 55, size=(200, 2))
    found = summed_over(maps, np.hstack([low, low + 4.3]))
    assert torch.equal(found, torch.zeros(200, 4).double())


@pytest.mark.parametrize("side", [1, 2, 7, 8, 13])
@pytest.mark.parametrize("share", [1.0, 0.75, 0.6180339887, 1 / 3, 0.05])
def test_the_middle_against_a_loop_over_cells(side, share):
    maps = torch.stack([random_maps(5, side, side, seed) for seed in range(4)])
    low, high = side / 2 - share * side / 2, side / 2 + share * side / 2
    expected = [summed_by_loop(of_one.numpy(), low, low, high, high) / (high - low) ** 2 for of_one in maps]
    found = middle(maps, share)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    last = maps.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(middle(last, share), found, atol=1e-6, rtol=0)


def test_the_middle_of_constant_maps_is_their_value():
    torch.testing.assert_close(middle(torch.full((2, 3, 11, 11), 2.5), 0.37), torch.full((2, 3), 2.5))
