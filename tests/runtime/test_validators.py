import numpy as np
import pandas as pd
import pytest

from hggep_sc.runtime import validators as v


@pytest.mark.parametrize(
    "given",
    [["b", "a"], ("b", "a"), np.array(["b", "a"]), pd.Index(["b", "a"]), pd.Series(["b", "a"]), {"b": 1, "a": 2},
     {"b": 1, "a": 2}.keys(), (name for name in "ba"), pd.Categorical(["b", "a"])],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_names_keep_their_order(given):
    found = v.names("genes", given)
    assert found == ["b", "a"]
    assert {type(name) for name in found} == {str}


@pytest.mark.parametrize("given", [{"b", "a", "c"}, frozenset("cab")])
def test_names_of_a_set_are_sorted(given):
    assert v.names("genes", given) == ["a", "b", "c"]


@pytest.mark.parametrize("given", ["FASN", b"FASN", 5, [1, 2], ["a", None], [["a"]], np.array([["a"]]), np.array("a")])
def test_what_is_no_list_of_names(given):
    with pytest.raises(TypeError, match=r"^genes.*names"):
        v.names("genes", given)


def test_whole_numbers_are_names_too():
    assert v.by_name("slides", {1: "a", np.int64(2): "b", "x": "c"}) == {"1": "a", "2": "b", "x": "c"}
    for keys in ({1: 0, "1": 0}, {"": 0}):
        with pytest.raises(ValueError, match=r"^slides: "):
            v.by_name("slides", keys)
    for keys in ({None: 0}, {True: 0}, {0.5: 0}, {(1, 2): 0}):
        with pytest.raises(TypeError, match=r"^slides: .* is no name"):
            v.by_name("slides", keys)
    with pytest.raises(TypeError, match=r"^slides must be a dict by name, not list"):
        v.by_name("slides", ["a"])


@pytest.mark.parametrize(
    ("check", "good", "expected", "wrong", "outside"),
    [
        (lambda x: v.whole("n", x), [1, np.int32(3), np.uint8(4)], [1, 3, 4], ["1", 2.0, True, None, [1]], [0, -1]),
        (lambda x: v.seed_of("n", x), [0, 2**32 - 1], [0, 2**32 - 1], ["a", 0.5, None, False], [-1, 2**32]),
        (lambda x: v.number("n", x, above=0, most=1), [1, np.float32(0.5)], [1.0, 0.5], ["0.5", True, None, 1j],
         [0, -1, 1.01, np.nan, np.inf, -np.inf]),
        (lambda x: v.flag("n", x), [True, np.False_], [True, False], ["no", 0, 1, None], []),
        (lambda x: v.text("n", x), ["a", np.str_("b")], ["a", "b"], [5, None, b"a", ["a"]], [""]),
        (lambda x: v.choice("n", x, ("a", "b")), ["a", "b"], ["a", "b"], [], ["c", 5, None, ["a"], {}]),
    ],
    ids=["whole", "seed", "number", "flag", "text", "choice"],
)  # fmt: skip
def test_kind_and_range(check, good, expected, wrong, outside):
    for value, plain in zip(good, expected, strict=True):
        found = check(value)
        assert found == plain
        assert type(found) is type(plain)
    for value in wrong:
        with pytest.raises(TypeError, match=r"^n="):
            check(value)
    for value in outside:
        with pytest.raises(ValueError, match=r"^n="):
            check(value)


def test_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert v.path_of("path", "~/run") == tmp_path / "run"
    assert v.path_of("path", tmp_path) == tmp_path
    assert v.path_or_none("path", None) is None
    for value in (5, None, b"run", ["run"]):
        with pytest.raises(TypeError, match=r"^path="):
            v.path_of("path", value)
    for value in ("", "a\0b"):
        with pytest.raises(ValueError, match=r"^path="):
            v.path_of("path", value)


def test_what_takes_no_tasks_is_no_executor():
    for value in (5, "processes", [None], object()):
        with pytest.raises(TypeError, match=r"^executor=.* must be a concurrent\.futures\.Executor"):
            v.executor_or_none("executor", value)


def test_arrays():
    assert v.array("r", [1, 2]).tolist() == [1, 2]
    for value in (["a"], [None], np.array([1j]), "ab"):
        with pytest.raises(TypeError, match=r"^r must hold numbers"):
            v.array("r", value)
    with pytest.raises(ValueError, match="rows of one length"):
        v.array("r", [[1, 2], [3]])
    with pytest.raises(ValueError, match=r"must have 1 dimension; found shape \(1, 1\)"):
        v.array("r", [[1]], ndim=1)


def test_long_values_are_cut_in_messages():
    with pytest.raises(TypeError) as raised:
        v.whole("n", "x" * 10_000)
    assert len(str(raised.value)) < 300
