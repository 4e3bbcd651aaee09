"""The grid that spots lie on: from their array positions, else from where they are, however few are left."""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

ENOUGH = 16  # spots from which on a grid of every other place is no chance
FEW = 12  # spots below which the grid cannot be told from where they are
SAMPLE = 4096  # spots that a grid is fitted to
NEIGHBOURS = 8  # of a spot, whose directions and distances the grid explains
TOLERANCE = 0.25  # of the pitch, that a spot may be off, seen from a neighbour; in legacy arrays many are by 0.2
ROUGHLY = 0.3  # likewise, before a grid is fitted
TRIED = 64  # grids that are fitted
SHARE = 0.9  # of the neighbours that have to be in place

# how an array is counted: columns of a hexagonal one by twos, bins and square ones by ones (or the latter by twos)
Array = Literal["hexagonal", "square", "bins"]
_EVERY, _CHECKERBOARD, _BY_TWOS = ([[1, 0], [0, 1]], [[1, 1], [1, -1]], [[2, 0], [0, 2]])


@dataclass(frozen=True)
class Lattice:
    """A grid of places.

    Attributes
    ----------
    pitch
        px from a place to the nearest other; the geometric mean where a grid is stretched.
    hexagonal
        Whether a place has six neighbours; else it has four.
    skips
        Whether array positions of a square grid run in steps of two.
    """

    pitch: float
    hexagonal: bool
    skips: bool = False

    @classmethod
    def of(cls, basis: np.ndarray, *, skips: bool = False) -> "Lattice | None":
        """Return the grid of a (2, 2) basis, a vector a row; None where it spans no area."""
        area = abs(float(np.linalg.det(basis)))
        lengths = np.linalg.norm(basis, axis=1)
        if not area > 1e-6 * lengths.max() ** 2:
            return None
        short, long = basis[np.argsort(lengths)]
        while True:  # Lagrange: take the shorter from the longer as often as it shortens it
            long = long - np.rint(short @ long / (short @ short)) * short
            if long @ long >= short @ short * (1 - 1e-9):
                break
            short, long = long, short
        cosine = abs(short @ long) / np.sqrt((short @ short) * (long @ long))
        hexagonal = bool(cosine > 0.3)  # 0.5, and 0 of a square grid
        return cls(float(np.sqrt(area * 2 / np.sqrt(3)) if hexagonal else np.sqrt(area)), hexagonal, skips)


def array_lattice(places: np.ndarray, xy: np.ndarray, array: Array | None = None) -> Lattice | None:
    """Find the grid from array positions, which tell it however few spots are left.

    Parameters
    ----------
    places
        (n, 2) whole numbers, positions on the array (x, y).
    xy
        (n, 2) centres, px.
    array
        How it is counted, where that is known: then two spots will do.

    Returns
    -------
    None where there are too few spots, or positions and centres do not belong together.
    """
    rows = sampled(len(xy))
    places, xy = places[rows].astype(np.float64), np.asarray(xy, dtype=np.float64)[rows]
    odd = (places - places[0]) % 2
    even = not (odd.sum(axis=1) % 2).any()
    if array == "hexagonal":
        if not even:
            return None
        basis = _CHECKERBOARD
    elif array == "bins" or not even:
        basis = _EVERY
    elif len(xy) < ENOUGH:
        return None  # whether it is counted by twos or spots are missing
    else:
        basis = _CHECKERBOARD if odd.any() else _BY_TWOS
    found = _affine(places, xy)
    if found is not None:
        return Lattice.of(np.array(basis) @ found, skips=array != "hexagonal" and basis is not _EVERY)
    if array is None or (array == "square" and basis is not _EVERY):
        return None
    step = np.array([0.5, np.sqrt(0.75)]) if array == "hexagonal" else np.ones(2)  # in pitches
    pitch = _similarity(places * step, xy)
    return None if pitch is None else Lattice(pitch, array == "hexagonal")


def sampled(n: int) -> np.ndarray:
    """Return some of n spots at random, the same ones each time; all where they are few."""
    return np.arange(n) if n <= SAMPLE else np.sort(np.random.default_rng(0).choice(n, SAMPLE, replace=False))


def _affine(places: np.ndarray, xy: np.ndarray) -> np.ndarray | None:
    """(2, 2) px per array step, a row per axis, by a fit that outlying spots do not pull."""
    from scipy.optimize import least_squares

    centred = places - places.mean(axis=0)
    if len(xy) < 6 or np.linalg.svd(centred, compute_uv=False)[-1] < 0.5 * np.sqrt(len(xy)):
        return None  # in a line
    design = np.column_stack([centred, np.ones(len(xy))])
    step = np.median(np.abs(xy - np.median(xy, axis=0))) / max(np.median(np.abs(centred)), 0.5)
    if not step > 0:
        return None
    # a sum of absolute values, but for what is small
    columns = [
        least_squares(
            lambda fit, along=along: design @ fit - along,
            np.linalg.lstsq(design, along, rcond=None)[0],
            jac=lambda fit: design.copy(),  # which older SciPy writes into
            loss="soft_l1",
            f_scale=0.02 * step,
        ).x
        for along in xy.T
    ]
    fit = np.column_stack(columns)
    off = np.median(np.linalg.norm(xy - design @ fit, axis=1))
    return fit[:2] if off < 0.25 * np.sqrt(abs(np.linalg.det(fit[:2]))) else None


def _similarity(places: np.ndarray, xy: np.ndarray) -> float | None:
    """Px per pitch of a few spots whose places are known in pitches."""
    from scipy.spatial.distance import pdist

    few = slice(0, 64)
    apart = pdist(places[few])
    ratios = pdist(xy[few])[apart > 0] / apart[apart > 0]
    if not len(ratios):
        return None
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return float(middle) if 0 < high < 1.3 * low else None


def point_lattice(xy: np.ndarray) -> Lattice | None:
    """Find the grid from where spots are, of which most may be missing.

    Neighbours are apart by whole numbers of steps: what is sought is their greatest common divisor, among Gaussian
    integers for a square grid, among Eisenstein integers for a hexagonal one.

    Parameters
    ----------
    xy
        (n, 2) centres, px.

    Returns
    -------
    None where the spots are few, or on no grid.
    """
    if len(xy) < FEW:
        return None
    apart = _to_neighbours(xy)
    lengths = np.abs(apart)
    if not (lengths > 0).all():
        return None
    # half of them the shortest, which are most often a single step
    order = np.argsort(lengths)
    shortest = apart[np.unique(np.concatenate([order[:24], order[:: max(1, len(order) // 24)]]))]
    roots = (1j, np.exp(1j * np.pi / 3))
    found = [basis for root in roots if (basis := _greatest_divisor(shortest, apart, root)) is not None]
    return Lattice.of(max(found, key=lambda basis: abs(np.linalg.det(basis)))) if found else None


def _to_neighbours(xy: np.ndarray) -> np.ndarray:
    """From spots to their nearest ones, as complex numbers: of a large section, those in its middle."""
    from scipy.spatial import cKDTree

    if len(xy) > SAMPLE:
        far = ((xy - np.median(xy, axis=0)) ** 2).sum(axis=1)
        xy = xy[np.argpartition(far, SAMPLE)[:SAMPLE]]
    some = np.random.default_rng(0).permutation(len(xy))[:256]
    nearest = cKDTree(xy).query(xy[some], k=min(NEIGHBOURS + 1, len(xy)))[1][:, 1:]
    apart = (xy[nearest] - xy[some][:, None]).reshape(-1, 2)
    return apart[:, 0] + 1j * apart[:, 1]


def _greatest_divisor(shortest: np.ndarray, apart: np.ndarray, root: complex) -> np.ndarray | None:
    """Return the basis of the widest grid on which enough neighbours are in place, near to one of equal steps."""
    small = np.array([a + b * root for a, b in product(range(-3, 4), repeat=2)])
    angle = np.angle(small) % (2 * np.pi)
    # the other turns give the same grid
    small = small[(np.abs(small) > 0.5) & (np.abs(small) < 3.1) & (angle < np.angle(root) - 1e-9)]
    steps = (shortest[:, None] / small).ravel()
    near = np.sort(np.abs(apart))[len(apart) // 2]
    close = apart[np.abs(apart) <= near]  # which a stretched grid puts out of place the least
    shares = [_share(close / part[:, None], root) for part in np.array_split(steps, 16)]
    fitting = steps[np.concatenate(shares) >= SHARE - 0.15]
    for step in fitting[np.argsort(-np.abs(fitting))][:TRIED]:
        basis = np.array([[step.real, step.imag], [(step * root).real, (step * root).imag]])
        for considered in (close, close, apart):
            vectors = np.column_stack([considered.real, considered.imag])
            whole = np.rint(vectors @ np.linalg.inv(basis))
            good = _misplaced(vectors, whole, basis) < ROUGHLY
            if np.linalg.matrix_rank(whole[good]) < 2:
                break
            basis = np.linalg.lstsq(whole[good], vectors[good], rcond=None)[0]
            if not abs(np.linalg.det(basis)) > 0.1 * abs(step) ** 2 * root.imag:
                break
        else:
            vectors = np.column_stack([apart.real, apart.imag])
            whole = np.rint(vectors @ np.linalg.inv(basis))
            good = _misplaced(vectors, whole, basis) < TOLERANCE
            if good.mean() >= SHARE:
                basis = _coarsest(whole[good]) @ basis
                whole = np.rint(vectors[good] @ np.linalg.inv(basis))
                return np.linalg.lstsq(whole, vectors[good], rcond=None)[0]
    return None


def _coarsest(whole: np.ndarray) -> np.ndarray:
    """Basis of the widest grid that nearly all of some (n, 2) whole numbers are on."""
    basis = np.eye(2)
    for prime in (2, 2, 2, 3, 3, 5, 7):
        for grid in ([[prime, 0], [0, 1]], *([[1, turn], [0, prime]] for turn in range(prime))):
            steps = whole @ np.linalg.inv(np.array(grid) @ basis)
            if (np.abs(steps - np.rint(steps)).max(axis=1) < 1e-6).mean() >= SHARE:
                basis = np.array(grid) @ basis
                break
    return basis


def _share(steps: np.ndarray, root: complex) -> np.ndarray:
    """Return what share of each row of numbers is close to whole ones, a + b root."""
    b = np.rint(steps.imag / root.imag)
    a = np.rint(steps.real - steps.imag / root.imag * root.real)
    return (np.abs(steps - a - b * root) < ROUGHLY).mean(axis=1)


def _misplaced(vectors: np.ndarray, whole: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """How far vectors end from whole steps of a grid, in steps."""
    return np.linalg.norm(vectors - whole @ basis, axis=1) / np.sqrt(abs(np.linalg.det(basis)))
