import random

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from hggep_sc.evaluation.spatial_null import agreement, agreement_pvalues, contingency, moved_maps


def hexagonal(width, height):
    row, column = np.mgrid[:height, :width]
    return np.column_stack([(column + 0.5 * (row % 2)).ravel(), (row * np.sqrt(0.75)).ravel()])


def disc(centre, radius):
    grid = hexagonal(60, 60)
    return grid[np.hypot(*(grid - centre).T) < radius]


OUTLINES = {
    "hexagonal": disc([25, 22], 12),
    "square": np.stack(np.meshgrid(np.arange(18.0), np.arange(14.0)), -1).reshape(-1, 2),
    "strip": np.stack(np.meshgrid(np.arange(60.0), np.arange(4.0)), -1).reshape(-1, 2),
    "one row": np.column_stack([np.arange(20.0), np.zeros(20)]),
    "pieces": np.concatenate([disc([12, 12], 9), disc([45, 15], 9), disc([30, 42], 7)]),
    "irregular": np.random.default_rng(0).uniform(0, 20, (300, 2)),
    "few": np.random.default_rng(1).uniform(0, 3, (10, 2)),
}


def smooth_domains(xy, length, n_domains, rng, n_maps):
    """(n_maps, n_spots): where which of several smooth Gaussian fields is the highest; length in radii of gyration."""
    scale = length * np.sqrt(((xy - xy.mean(axis=0)) ** 2).sum(axis=1).mean())
    covariance = np.exp(-0.5 * (cdist(xy, xy) / scale) ** 2) + 1e-6 * np.eye(len(xy))
    fields = np.linalg.cholesky(covariance) @ rng.normal(size=(n_maps, n_domains, len(xy), 1))
    return fields[..., 0].argmax(axis=1)


def section_outline(shared, name):
    import pandas as pd

    spots = pd.read_csv(shared / f"data/her2st/data/ST-spotfiles/{name}_selection.tsv", sep="\t")
    return spots.loc[spots["selected"] == 1, ["pixel_x", "pixel_y"]].to_numpy(float)


@pytest.mark.parametrize("outline", OUTLINES)
def test_motions_are_rigid_cover_enough_and_go_far_enough(outline):
    xy = OUTLINES[outline]
    nearest = np.sort(cdist(xy, xy), axis=1)[:, 1]
    spacing, spread = np.median(nearest), np.sqrt(((xy - xy.mean(axis=0)) ** 2).sum(axis=1).mean())
    for moved in moved_maps(xy, 40, seed=0):
        covered = moved >= 0
        assert covered.mean() > 0.4  # judged by 300 of the spots, where there are more
        here, origin = xy[covered], xy[moved[covered]]
        # lengths are kept: up to a spot spacing at either end
        assert np.abs(cdist(here, here) - cdist(origin, origin)).max() <= 2 * spacing
        assert np.sqrt(((here - origin) ** 2).sum(axis=1).mean()) > 0.4 * spread - spacing


def test_turns_by_all_angles_and_mirrors_half():
    xy = OUTLINES["hexagonal"]
    angles, mirrored = [], 0
    for moved in moved_maps(xy, 200, seed=3):
        covered = moved >= 0
        here, origin = (points - points.mean(axis=0) for points in (xy[covered], xy[moved[covered]]))
        left, _, right = np.linalg.svd(here.T @ origin)
        matrix = left @ right  # Procrustes
        mirrored += np.linalg.det(matrix) < 0
        angles.append(np.arctan2(matrix[1, 0], matrix[0, 0]))
    assert 70 < mirrored < 130
    assert (np.histogram(angles, bins=8, range=(-np.pi, np.pi))[0] > 8).all()


def test_determined_by_the_seed_alone():
    xy = OUTLINES["hexagonal"]
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = moved_maps(xy, 5, seed=1)
    assert first.dtype == np.int64
    assert first.shape == (5, len(xy))
    assert np.array_equal(first, moved_maps(xy, 5, seed=1))
    assert not np.array_equal(first, moved_maps(xy, 5, seed=2))
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert before[1] == random.getstate()


def test_unit_and_origin_do_not_matter():
    xy = OUTLINES["hexagonal"]
    other = moved_maps(1e4 * xy + 3e5, 20, seed=1)
    assert (other == moved_maps(xy, 20, seed=1)).mean() > 0.999  # rounding where two spots are equally near


def test_targets_are_covered():
    """A small labelled corner: motions of the whole section leave it uncovered often, those asked for do not."""
    xy = OUTLINES["strip"]
    corner = xy[:, 0] < 6
    assert ((moved_maps(xy, 50, seed=0) >= 0)[:, corner].mean(axis=1) < 0.4).any()
    assert ((moved_maps(xy, 50, seed=0, targets=corner) >= 0)[:, corner].mean(axis=1) >= 0.5).all()


class TestBadInput:
    def test_few_spots(self):
        with pytest.raises(ValueError, match="at least 10 spots; found 9"):
            moved_maps(hexagonal(3, 3), 5, seed=0)

    @pytest.mark.parametrize("xy", [np.zeros(20), np.zeros((20, 3)), np.full((20, 2), np.nan)])
    def test_no_coordinates(self, xy):
        with pytest.raises(ValueError, match="must be finite numbers"):
            moved_maps(xy, 5, seed=0)

    def test_places_used_twice(self):
        with pytest.raises(ValueError, match="one section at a time"):
            moved_maps(np.concatenate([hexagonal(5, 5)] * 2), 5, seed=0)

    def test_shape_without_motions(self):
        scattered = np.random.default_rng(0).uniform(0, 1000, (12, 1, 2))
        pieces = (scattered + np.random.default_rng(1).uniform(0, 3, (12, 4, 2))).reshape(-1, 2)
        with pytest.raises(ValueError, match="too few motions"):
            moved_maps(pieces, 5, seed=0)


@pytest.mark.parametrize("shape", [(5, 7), (1, 4), (4, 1), (1, 1), (30, 30)])
def test_agreement_is_that_of_scikit_learn(shape):
    rng = np.random.default_rng(0)
    for n in (2, 5, 40, 3000):
        rows, columns = rng.integers(shape[0], size=n), rng.integers(shape[1], size=n)
        columns[: n // 2] = rows[: n // 2] % shape[1]
        ari, nmi = agreement(contingency(rows, columns, shape)[None])
        assert ari[0] == pytest.approx(adjusted_rand_score(columns, rows), abs=1e-10)
        assert nmi[0] == pytest.approx(normalized_mutual_info_score(columns, rows), abs=1e-10)


def test_pvalues_against_the_loop():
    """Two clusterings: in each map that with the best index is compared, on the covered and labelled spots."""
    xy = OUTLINES["square"]
    rng = np.random.default_rng(0)
    clusterings = smooth_domains(xy, 0.4, 4, rng, 2)
    labels = np.where(rng.random(len(xy)) < 0.2, clusterings[0], smooth_domains(xy, 0.4, 4, rng, 1)[0])
    labels[rng.random(len(xy)) < 0.2] = -1
    maps = moved_maps(xy, 60, seed=0)
    counts = np.zeros(2)
    for moved in maps:
        seen = (moved >= 0) & (labels >= 0)
        before, after = (
            max(
                (adjusted_rand_score(labels[seen], codes), normalized_mutual_info_score(labels[seen], codes))
                for codes in candidates
            )
            for candidates in (clusterings[:, seen], clusterings[:, moved[seen]])
        )
        counts += np.array(after) >= np.array(before) - 1e-12
    assert 0 < counts[0] < 60
    assert agreement_pvalues(clusterings, labels, maps) == pytest.approx(tuple((1 + counts) / 61))


@pytest.mark.parametrize("length", [0.15, 0.3, 0.6])
def test_independent_smooth_maps_are_seldom_significant(shared, length):
    """Of 100 pairs at most 10, on a real outline; shuffled spot by spot, most are, where domains are large."""
    xy = section_outline(shared, "C2")
    rng = np.random.default_rng(0)
    first, second = smooth_domains(xy, length, 5, rng, 100), smooth_domains(xy, length, 5, rng, 100)
    maps = moved_maps(xy, 199, seed=0)
    p_values = np.array([agreement_pvalues(a[None], b, maps) for a, b in zip(first, second, strict=True)])
    assert ((p_values <= 0.05).sum(axis=0) <= 10).all()
    assert np.median(p_values) > 0.3
    if length > 0.15:
        shuffles = rng.permuted(np.tile(np.arange(len(xy)), (199, 1)), axis=1)
        shuffled = np.array([agreement_pvalues(a[None], b, shuffles) for a, b in zip(first, second, strict=True)])
        assert ((shuffled <= 0.05).sum(axis=0) > 60).all()


def test_choosing_the_best_of_several_is_paid_for():
    xy = OUTLINES["hexagonal"]
    rng = np.random.default_rng(0)
    clusterings = smooth_domains(xy, 0.4, 4, rng, 600).reshape(100, 6, -1)
    labels = smooth_domains(xy, 0.4, 4, rng, 100)
    maps = moved_maps(xy, 99, seed=0)
    p_values = [agreement_pvalues(several, one, maps)[0] for several, one in zip(clusterings, labels, strict=True)]
    assert sum(p <= 0.05 for p in p_values) <= 10


@pytest.mark.parametrize("length", [0.3, 0.6])
def test_noisy_copies_are_significant(shared, length):
    xy = section_outline(shared, "C2")
    rng = np.random.default_rng(0)
    maps = moved_maps(xy, 199, seed=0)
    domains = smooth_domains(xy, length, 5, rng, 20)
    noisy = np.where(rng.random(domains.shape) < 0.5, rng.integers(5, size=domains.shape), domains)
    p_values = [agreement_pvalues(a[None], b, maps) for a, b in zip(domains, noisy, strict=True)]
    assert (np.array(p_values) <= 0.05).mean() > 0.9
