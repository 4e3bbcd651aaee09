import numpy as np
import pytest
from scipy.sparse import csr_matrix

from helpers import section_of
from hggep_sc.cross_validation import leave_out
from hggep_sc.cross_validation.folds import spatial_blocks
from hggep_sc.section import grouped


def named(names):
    from anndata import AnnData

    return [section_of(AnnData(csr_matrix(np.ones((3, 2)))), np.zeros((3, 2)), name) for name in names]


def names_of(folds):
    assert all(tested.spots is None and tested.scored is tested.section for fold in folds for tested in fold.test)
    return [(fold.name, [t.section.name for t in fold.test], [s.name for s in fold.training]) for fold in folds]


def test_every_section_is_left_out_once_and_never_trained_on_for_itself():
    assert names_of(leave_out(named("abc"), None)) == [
        ("a", ["a"], ["b", "c"]),
        ("b", ["b"], ["a", "c"]),
        ("c", ["c"], ["a", "b"]),
    ]


def test_a_group_is_left_out_as_a_whole():
    groups = {"a1": "a", "b1": "b", "a2": "a", "c1": "c"}
    folds = names_of(leave_out(grouped(named(groups), groups), None))
    assert folds[0] == ("a", ["a1", "a2"], ["b1", "c1"])
    for _, test, training in folds:
        assert not {groups[name] for name in test} & {groups[name] for name in training}


def test_sections_are_dealt_over_fewer_folds():
    folds = names_of(leave_out(named("abcde"), 2))
    assert [test for _, test, _ in folds] == [["a", "c", "e"], ["b", "d"]]


@pytest.mark.parametrize(
    ("names", "groups", "n_folds", "message"),
    [
        ("abc", None, 4, r"n_folds=4 must be between 2 and the number of sections, 3"),
        ("abc", None, 1, r"n_folds=1 must be between 2"),
        ("a", None, 1, r"n_folds=1 must be at least 2: so many spatial blocks"),
        ("a", None, 2, r"section 'a' of 3 spots is too small"),
        ("abc", {"a": "x", "b": "y"}, None, r"no group for c; the sections are a, b, c"),
        ("ab", {"a": "x", "b": "y", "z": "y"}, None, r"no section called z"),
        ("abc", {"a": "x", "b": "y", "c": "y"}, 3, r"n_folds=3 must be between 2 and the number of groups, 2"),
    ],
)
def test_impossible_folds_are_refused(names, groups, n_folds, message):
    with pytest.raises(ValueError, match=message):
        leave_out(grouped(named(names), groups), n_folds)


def grid(name="a", nx=12, ny=9, pitch=10.0, seed=0):
    """Spots on a slightly jittered grid, in no order."""
    from anndata import AnnData

    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(nx), np.arange(ny))
    xy = pitch * np.column_stack([x.ravel(), y.ravel()]) + rng.uniform(-0.5, 0.5, (nx * ny, 2))
    return section_of(AnnData(csr_matrix(np.ones((nx * ny, 2)))), rng.permutation(xy), name)


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_blocks_are_compact_and_hold_as_many_spots_whatever_the_order(n):
    xy = grid().xy
    block = spatial_blocks(xy, n)
    sizes = np.bincount(block, minlength=n)
    assert len(sizes) == n
    assert np.ptp(sizes) <= 1 + n // 3
    order = np.random.default_rng(1).permutation(len(xy))
    np.testing.assert_array_equal(spatial_blocks(xy[order], n), block[order])
    # compact: a block's bounding box holds few spots of others, no more than a ragged row at each side
    for number in range(n):
        low, high = xy[block == number].min(0), xy[block == number].max(0)
        inside = ((xy >= low) & (xy <= high)).all(1)
        assert (block[inside] == number).mean() > 0.6


def test_one_section_is_left_out_in_blocks_and_patches_do_not_overlap():
    section, field = grid(), 24.0
    folds = leave_out([section], 4, {"a": field})
    assert [fold.name for fold in folds] == ["block 1", "block 2", "block 3", "block 4"]
    tested = np.concatenate([fold.test[0].spots for fold in folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(section.xy)))  # each spot once
    for fold in folds:
        (training,), (test,) = fold.training, fold.test
        assert test.section is section
        assert training.name == f"a (without {fold.name})"
        apart = np.abs(training.xy[:, None] - test.scored.xy).max(-1)  # squares overlap where both axes are near
        assert apart.min() >= field
        left_out = np.setdiff1d(np.arange(len(section.xy)), np.concatenate([training.obs_rows, test.spots]))
        near = np.abs(section.xy[left_out][:, None] - test.scored.xy).max(-1).min(1)
        assert len(left_out)
        assert (near < field).all()  # and no more than that is given up


def test_next_neighbours_are_left_out_where_patches_are_small():
    (fold, *_) = leave_out([grid()], 3, {"a": 1.0})
    apart = np.linalg.norm(fold.training[0].xy[:, None] - fold.test[0].scored.xy, axis=-1)
    assert apart.min() > 13  # the pitch is 10


def test_the_sections_of_the_only_group_are_left_out_in_blocks():
    sections = grouped([grid("a"), grid("b", seed=1)], {"a": "p", "b": "p"})
    folds = leave_out(sections, None, {"a": 5.0, "b": 5.0})
    assert len(folds) == 5
    assert [[t.section.name for t in fold.test] for fold in folds] == [["a", "b"]] * 5
    assert {section.group for fold in folds for section in fold.training} == {"p"}
