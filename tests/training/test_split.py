import numpy as np
import pytest

from hggep_sc.training.split import BLOCKS_PER_SIDE, hold_out_blocks


def block_of(xy, side):
    """Spots of a square 0..100, by the block that they lie in."""
    return np.digitize(xy[:, 0], np.linspace(0, 100, side + 1)[1:-1]) * side + np.digitize(
        xy[:, 1], np.linspace(0, 100, side + 1)[1:-1]
    )


@pytest.fixture
def square():
    corners = np.array([[0.0, 0.0], [100.0, 100.0]])
    return np.concatenate([corners, 100 * np.random.default_rng(0).random((998, 2))])


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_whole_blocks_are_held_out(square, fraction):
    side = BLOCKS_PER_SIDE
    held_out = hold_out_blocks(square, np.ones(1000, bool), fraction, seed=0)
    block = block_of(square, side)
    assert held_out.dtype == bool
    for number in range(side**2):
        assert len(set(held_out[block == number])) == 1
    sizes = np.bincount(block[held_out], minlength=side**2)
    assert held_out.mean() >= fraction
    assert (held_out.sum() - sizes[sizes > 0].max()) / 1000 < fraction  # not a block more than needed


def test_blocks_are_seeded(square):
    masks = [hold_out_blocks(square, np.ones(1000, bool), 0.2, seed) for seed in (0, 0, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
    assert not np.array_equal(masks[2], masks[3])


def test_the_fraction_is_of_the_observed_spots(square):
    observed = square[:, 0] < 40
    held_out = hold_out_blocks(square, observed, 0.3, seed=1)
    assert 0.3 <= held_out[observed].mean() < 0.45


def test_blocks_of_spots_on_a_line():
    held_out = hold_out_blocks(np.column_stack([np.arange(50.0), np.zeros(50)]), np.ones(50, bool), 0.2, seed=0)
    assert held_out.sum() == 10
