"""The grid that spots lie on, against closed form: turned, stretched, of which most places are empty."""

import numpy as np
import pytest

from hggep_sc.section._lattice import Lattice, array_lattice, point_lattice


def array(hexagonal: bool, side: int) -> np.ndarray:
    """Array positions (x, y) as Visium counts them, by twos along a row, or by ones."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(side), np.arange(side)))
    return np.column_stack([2 * x + y % 2, y] if hexagonal else [x, y])


def pixels(places, hexagonal, *, pitch=61.7, angle=0.4, stretch=1.0, mirrored=False) -> np.ndarray:
    """Centres of places in px: a grid of some pitch, stretched along one axis, turned, mirrored and moved."""
    xy = places * np.array([0.5, np.sqrt(0.75)] if hexagonal else [1.0, 1.0]) * pitch * [stretch, 1 / stretch]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return xy * [-1 if mirrored else 1, 1] @ turn.T + [5000, 3000]


def some(n: int, share: float, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(n)[: round(share * n)])


@pytest.mark.parametrize("share", [1, 0.3, 0.1, 0.03])
@pytest.mark.parametrize("hexagonal", [True, False])
@pytest.mark.parametrize("shape", [{}, {"angle": 2.2, "mirrored": True}, {"stretch": 1.05, "angle": -1.0}])
def test_pitch_from_array_positions(share, hexagonal, shape) -> None:
    places = array(hexagonal, 30)
    rows = some(len(places), share)
    found = array_lattice(places[rows], pixels(places, hexagonal, **shape)[rows])
    # of a stretched grid the geometric mean, which is that of the grid before
    assert found.pitch == pytest.approx(61.7, rel=1e-4)
    assert found.hexagonal is hexagonal


@pytest.mark.parametrize("share", [1, 0.3, 0.1, 0.05])
@pytest.mark.parametrize("hexagonal", [True, False])
@pytest.mark.parametrize("shape", [{}, {"angle": 2.2, "mirrored": True}, {"stretch": 1.03, "angle": -1.0}])
def test_pitch_from_where_spots_are(share, hexagonal, shape) -> None:
    places = array(hexagonal, 30)
    rows = some(len(places), share)
    xy = np.rint(pixels(places, hexagonal, **shape)[rows])  # as many files hold them
    found = point_lattice(xy)
    assert found.pitch == pytest.approx(61.7, rel=2e-3)
    assert found.hexagonal is hexagonal
    # which the nearest distances do not tell
    gaps = np.linalg.norm(xy[:, None] - xy[None], axis=2) + np.diag(np.full(len(xy), np.inf))
    assert share > 0.1 or np.median(gaps.min(axis=1)) > 1.2 * 61.7


def test_outlying_spots_do_not_pull() -> None:
    places = array(True, 20)
    xy = pixels(places, True)
    rng = np.random.default_rng(1)
    wrong = some(len(places), 0.1, seed=2)
    moved = xy.copy()
    moved[wrong] += rng.uniform(-2000, 2000, (len(wrong), 2))
    assert array_lattice(places, moved).pitch == pytest.approx(61.7, rel=2e-3)
    uneven = xy + rng.normal(0, 0.06 * 61.7, xy.shape)
    assert array_lattice(places, uneven).pitch == pytest.approx(61.7, rel=5e-3)
    assert point_lattice(uneven).pitch == pytest.approx(61.7, rel=4e-2)


@pytest.mark.parametrize("how", ["hexagonal", "bins", "square"])
def test_two_spots_do_where_the_array_is_known(how) -> None:
    places = array(how == "hexagonal", 12)
    xy = pixels(places, how == "hexagonal")
    for n in (2, 3, 5):
        rows = np.random.default_rng(n).permutation(len(places))[:n]
        found = array_lattice(places[rows], xy[rows], how)
        if how == "square" and not np.ptp(places[rows].sum(axis=1) % 2):
            assert found is None  # whether they are counted by twos cannot be told
        else:
            assert found.pitch == pytest.approx(61.7, rel=1e-6)
    row = np.flatnonzero(places[:, 1] == 4)  # in a line
    assert array_lattice(places[row], xy[row], how).pitch == pytest.approx(61.7, rel=1e-6)
    assert array_lattice(places[:1], xy[:1], how) is None


def test_positions_counted_by_twos() -> None:
    """Legacy arrays: every other place of a square grid, or every fourth."""
    places = array(False, 24)
    xy = pixels(places, False)
    every_other = places.sum(axis=1) % 2 == 0
    found = array_lattice(places[every_other], xy[every_other])
    assert (found.skips, found.hexagonal) == (True, False)
    assert found.pitch == pytest.approx(61.7 * np.sqrt(2), rel=1e-6)
    fourth = (places % 2 == 0).all(axis=1)
    assert array_lattice(places[fourth], xy[fourth]).pitch == pytest.approx(61.7 * 2, rel=1e-6)
    few = np.flatnonzero(every_other)[::40]  # whether more were there, nobody can tell
    assert array_lattice(places[few], xy[few]) is None


def test_positions_of_another_section_are_not_believed() -> None:
    places = array(True, 20)
    xy = pixels(places, True)
    shuffled = np.random.default_rng(0).permutation(len(places))
    assert array_lattice(places[shuffled], xy) is None
    assert array_lattice(places[shuffled][:5], xy[:5], "hexagonal") is None
    assert array_lattice(places // [2, 1], xy, "hexagonal") is None  # columns are not counted by twos


def test_what_is_on_no_grid_has_none() -> None:
    rng = np.random.default_rng(0)
    for n in (12, 40, 400):
        assert point_lattice(rng.uniform(0, 1000, (n, 2))) is None
    assert point_lattice(pixels(array(True, 3), True)) is None  # nine spots: too few to tell
    assert point_lattice(np.column_stack([np.arange(40.0) * 50, np.zeros(40)])) is None  # in a line
    assert point_lattice(np.repeat(pixels(array(True, 4), True), 2, axis=0)) is None  # twice the same


def test_a_basis_is_brought_to_its_shortest() -> None:
    hexagon = np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]])
    skewed = np.array([[3, 2], [1, 1]]) @ hexagon * 7
    assert Lattice.of(skewed).pitch == pytest.approx(7)
    assert Lattice.of(skewed).hexagonal
    assert not Lattice.of(np.array([[1, 5], [0, 1]]) @ np.eye(2)).hexagonal
    assert Lattice.of(np.array([[1.0, 2.0], [2.0, 4.0]])) is None


def test_many_bins() -> None:
    places = array(False, 400)
    xy = pixels(places, False, pitch=7.3)
    assert array_lattice(places, xy, "bins").pitch == pytest.approx(7.3, rel=1e-6)
    assert point_lattice(xy).pitch == pytest.approx(7.3, rel=1e-6)
