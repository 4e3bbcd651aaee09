import numpy as np
import pytest
from scipy.sparse import csr_matrix

from helpers import section_of
from hggep_sc.cross_validation import leave_out
from hggep_sc.section import grouped


def named(names):
    from anndata import AnnData

    return [section_of(AnnData(csr_matrix(np.ones((3, 2)))), np.zeros((3, 2)), name) for name in names]


def names_of(folds):
    return [(fold.name, [s.name for s in fold.test], [s.name for s in fold.training]) for fold in folds]


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
        ("a", None, None, r"at least two sections; found a"),
        ("abc", {"a": "x", "b": "x", "c": "x"}, None, r"at least two groups; found x"),
        ("abc", {"a": "x", "b": "y"}, None, r"no group for c; the sections are a, b, c"),
        ("ab", {"a": "x", "b": "y", "z": "y"}, None, r"no section called z"),
        ("abc", {"a": "x", "b": "y", "c": "y"}, 3, r"n_folds=3 must be between 2 and the number of groups, 2"),
    ],
)
def test_impossible_folds_are_refused(names, groups, n_folds, message):
    with pytest.raises(ValueError, match=message):
        leave_out(grouped(named(names), groups), n_folds)
