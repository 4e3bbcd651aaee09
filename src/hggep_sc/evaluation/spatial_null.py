"""A null for smooth maps: the section moved over itself.

Neighbouring spots are alike, in expression and in tissue. Two maps of one section that have nothing to do with each
other therefore agree better, or worse, than two whose spots are shuffled one by one, and a test by shuffling calls
most pairs of smooth maps related. A map that is moved rigidly (turned, mirrored, shifted) stays as smooth as it
was, while its places no longer match those of the other map: that is what an observed agreement is compared with.
"""

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import entr

from ..runtime.validators import array, whole

MIN_SPOTS = 10  # fewer have hardly a motion that differs from another
MIN_OVERLAP = 0.5  # share of the spots that lie on the moved section
MIN_MOVE = 0.5  # root mean square way of a spot, in radii of gyration: closer to where it was, a map meets itself
MAX_DRAWS = 200  # motions tried per motion wanted
N_PROBES = 300  # spots by which overlap and way of a motion are judged
ROUNDING = 1e-9  # figures closer than this are equal


def moved_maps(xy: np.ndarray, n_maps: int, *, seed: int, targets: np.ndarray | None = None) -> np.ndarray:
    """Move a section rigidly over itself, and tell which spot comes to lie on which.

    A motion turns the section about its centre by any angle, mirrors it in half of the cases and shifts it, along
    its principal axes by up to one standard deviation of its spots. Motions that leave less than half of the
    spots covered are drawn again, and so are those that are nearly none: where spots move by less than half the
    radius of gyration. If `value` holds a value per spot, `value[maps[k]]` is the map moved by motion k, valid
    where `maps[k] >= 0`.

    Parameters
    ----------
    xy
        (n_spots, 2) coordinates of one section's spots, in any unit, on any grid or none.
    n_maps
        How many motions.
    seed
        Determines the motions.
    targets
        (n_spots,) bool: those that are to be covered, where values are compared at some spots alone; None for all.

    Returns
    -------
    (n_maps, n_spots) int64: for each motion, the spot whose value comes to lie on each spot: the nearest, within
    a spot spacing (the median distance to the nearest neighbour); -1 where there is none.

    Raises
    ------
    ValueError
        If coordinates are not finite or coincide, if there are fewer than 10 spots, or if the section's shape has
        too few such motions.
    """
    xy, n_maps = array("xy", xy).astype(np.float64), whole("n_maps", n_maps)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise ValueError(f"coordinates must be finite numbers of shape (n_spots, 2); found shape {xy.shape}")
    if len(xy) < MIN_SPOTS:
        raise ValueError(f"moving a section over itself needs at least {MIN_SPOTS} spots; found {len(xy)}")
    centred = xy - xy.mean(axis=0)
    tree = cKDTree(centred)
    spacing = float(np.median(tree.query(centred, k=2)[0][:, 1]))
    if spacing == 0:
        raise ValueError("most spots have the coordinates of another: give one section at a time")

    if targets is not None and (np.shape(targets) != (len(xy),) or not np.any(targets)):
        raise ValueError(f"targets must say of each of {len(xy)} spots whether it is to be covered, and name some")
    rng = np.random.default_rng(seed)
    variances, axes = np.linalg.eigh(np.cov(centred.T))
    semi_axes = np.sqrt(variances.clip(min=0))
    shortest_way = MIN_MOVE * np.sqrt(variances.sum())
    probes = rng.permutation(centred if targets is None else centred[targets])[:N_PROBES]

    maps = np.empty((n_maps, len(xy)), dtype=np.int64)
    found = 0
    for _ in range(MAX_DRAWS * n_maps):
        if found == n_maps:
            break
        turn, shift = _turn(rng), axes @ (semi_axes * _in_disc(rng))
        origins = (probes - shift) @ turn  # where a spot's new value comes from
        covered = np.isfinite(tree.query(origins, distance_upper_bound=spacing)[0])
        if covered.mean() < MIN_OVERLAP:
            continue
        way = np.sqrt(((origins - probes)[covered] ** 2).sum(axis=1).mean())
        if way < shortest_way:
            continue
        _, nearest = tree.query((centred - shift) @ turn, distance_upper_bound=spacing)
        maps[found] = np.where(nearest < len(xy), nearest, -1)
        found += 1
    if found < n_maps:
        raise ValueError(
            f"the section's shape allows too few motions over itself: of {MAX_DRAWS * n_maps} tried, {found} kept "
            f"{MIN_OVERLAP:.0%} of the spots ({len(xy)}) covered and moved them far enough; {n_maps} are wanted"
        )
    return maps


def agreement(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure how far two partitions agree: adjusted Rand index and normalised mutual information.

    Parameters
    ----------
    tables
        (..., a, b) contingency tables: how many spots are in cluster i of one partition and j of the other.

    Returns
    -------
    Two arrays (...): Hubert and Arabie's index from the counts of pairs, and mutual information over the mean of
    the entropies (natural logarithms). Both are 1 where the two partitions are the same.
    """
    tables = np.asarray(tables, dtype=np.float64)
    n = tables.sum(axis=(-2, -1))
    in_both, in_rows, in_columns = (  # ordered pairs of spots in one cluster
        (counts * (counts - 1)).sum(axis=axes) for counts, axes in _margins(tables)
    )
    mean, expected = (in_rows + in_columns) / 2, in_rows * in_columns / np.maximum(n * (n - 1), 1)
    ari = np.divide(in_both - expected, mean - expected, out=np.ones_like(n), where=mean != expected)

    shares = tables / np.maximum(n, 1)[..., None, None]
    of_both, of_rows, of_columns = (entr(share).sum(axis=axes) for share, axes in _margins(shares))
    entropy = (of_rows + of_columns) / 2
    nmi = np.divide(of_rows + of_columns - of_both, entropy, out=np.ones_like(n), where=entropy > 0)
    return ari, nmi.clip(min=0)


def _margins(tables: np.ndarray) -> tuple[tuple[np.ndarray, tuple[int, ...]], ...]:
    """Contingency tables and their margins, each with its axes."""
    return (tables, (-2, -1)), (tables.sum(axis=-1), (-1,)), (tables.sum(axis=-2), (-1,))


def contingency(clusters: np.ndarray, labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Count the spots of each cluster and label, `shape`; both are codes from 0."""
    return np.bincount(clusters * shape[1] + labels, minlength=shape[0] * shape[1]).reshape(shape)


def agreement_pvalues(clusterings: np.ndarray, labels: np.ndarray, maps: np.ndarray) -> tuple[float, float]:
    """Test whether clusters agree with labels better than they do when moved over the section.

    Fewer spots are compared after a motion than before, and agreement varies more, and mutual information is
    larger, over fewer spots. So the moved clusters are compared with the unmoved ones at the very spots that the
    motion leaves covered: p = (1 + number of motions where the moved agree at least as well) / (1 + n_maps).

    Parameters
    ----------
    clusterings
        (n_clusterings, n_spots) cluster codes. Of several the one with the best adjusted Rand index is chosen, anew
        in every map: the null pays for the choice.
    labels
        (n_spots,) label codes, -1 where there is none.
    maps
        (n_maps, n_spots), as `moved_maps` gives them.

    Returns
    -------
    p-values of the adjusted Rand index and of the normalised mutual information, one-sided.
    """
    shape = (int(clusterings.max()) + 1, int(labels.max()) + 1)
    tables = np.empty((2, len(maps), len(clusterings), *shape), dtype=np.int64)
    for k, moved in enumerate(maps):
        seen = np.flatnonzero((moved >= 0) & (labels >= 0))
        for j, clusters in enumerate(clusterings):
            tables[0, k, j] = contingency(clusters[seen], labels[seen], shape)
            tables[1, k, j] = contingency(clusters[moved[seen]], labels[seen], shape)
    ari, nmi = agreement(tables)
    best = ari.argmax(axis=-1)[..., None]
    p_values = []
    for figure in (ari, nmi):
        unmoved, moved = np.take_along_axis(figure, best, axis=-1)[..., 0]
        p_values.append((1 + int((moved >= unmoved - ROUNDING).sum())) / (1 + len(maps)))
    return p_values[0], p_values[1]


def _turn(rng: np.random.Generator) -> np.ndarray:
    """(2, 2) matrix of a rotation by any angle, with a mirroring in half of the cases."""
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    mirror = rng.choice([-1.0, 1.0])
    return np.array([[cosine, -sine * mirror], [sine, cosine * mirror]])


def _in_disc(rng: np.random.Generator) -> np.ndarray:
    """Point of the unit disc, each as likely."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.sqrt(rng.uniform()) * np.array([np.cos(angle), np.sin(angle)])
