import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import gammaln
from scipy.stats import false_discovery_control, pearsonr, spearmanr
from skimage.metrics import structural_similarity
from sklearn.metrics import root_mean_squared_error

from helpers import slow_moran
from hggep_sc.metrics import (
    benjamini_hochberg,
    ceiling_beyond_depth,
    is_hexagonal,
    morans_i,
    noise_ceiling,
    pearson,
    pearson_beyond_depth,
    pearson_log_pvalues,
    rmse,
    spearman,
    ssim,
    without_depth,
)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    observed = rng.gamma(2.0, size=(40, 6))
    return 0.5 * observed + rng.normal(size=(40, 6)), observed


@pytest.fixture
def tied():
    """Log expression of low counts: mostly zeros, many ties."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(60, 5)).round(1), np.log1p(rng.poisson(0.4, size=(60, 5)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_pearson_against_scipy(pair, dtype, offset):
    predicted, observed = ((a + offset).astype(dtype) for a in pair)
    expected = [pearsonr(*(a[:, j].astype(float) for a in (predicted, observed))).statistic for j in range(6)]
    found = pearson(predicted, observed)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert found.dtype == np.float64


def test_perfect_correlation_stays_within_1(pair):
    _, observed = pair
    np.testing.assert_allclose(pearson(3 * observed + 1, observed), 1.0)
    np.testing.assert_allclose(pearson(-observed, observed), -1.0)
    assert np.abs(pearson(0.1 * observed, observed)).max() <= 1


@pytest.mark.parametrize("figure", [pearson, spearman])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("side", [0, 1])
def test_a_constant_has_no_correlation(pair, figure, side, value):
    expected = figure(*pair)
    pair[side][:, 2] = value  # 0.1 has a mean that differs from it by rounding
    expected[2] = np.nan
    np.testing.assert_array_equal(figure(*pair), expected)


@pytest.mark.parametrize("figure", [pearson, spearman])
def test_one_spot_has_no_correlation(pair, figure):
    for n in (0, 1):
        found = figure(pair[0][:n], pair[1][:n])
        assert found.shape == (6,)
        assert np.isnan(found).all()


@pytest.mark.parametrize("figure", [pearson, spearman, rmse])
def test_other_shapes_are_refused(pair, figure):
    with pytest.raises(ValueError, match=r"\(39, 6\).*\(40, 6\)"):
        figure(pair[0][1:], pair[1])


def test_the_arguments_are_left_as_they_were(pair):
    copies = [a.copy() for a in pair]
    places = np.argwhere(np.ones((8, 5)))
    pearson(*pair), spearman(*pair), rmse(*pair), ssim(*pair, places)
    for a, b in zip(pair, copies, strict=True):
        np.testing.assert_array_equal(a, b)


def test_spearman_against_scipy(tied):
    expected = [spearmanr(tied[0][:, j], tied[1][:, j]).statistic for j in range(5)]
    np.testing.assert_allclose(spearman(*tied), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rmse_against_scikit_learn(pair, dtype):
    predicted, observed = (a.astype(dtype) for a in pair)
    expected = [root_mean_squared_error(observed[:, j].astype(float), predicted[:, j].astype(float)) for j in range(6)]
    np.testing.assert_allclose(rmse(predicted, observed), expected, rtol=1e-10)
    assert (rmse(observed, observed) == 0).all()


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_array])
def test_sparse_and_in_blocks_gives_the_same(tied, form, monkeypatch):
    places = np.argwhere(np.ones((12, 5)))
    totals = np.random.default_rng(2).integers(1, 200, 60)
    figures = [pearson, spearman, rmse, lambda p, o: ssim(p, o, places)]
    figures += [lambda p, o: pearson_beyond_depth(p, o, totals)]
    figures += [lambda _, o: ceiling_beyond_depth(np.linspace(0.3, 0.9, 5), o, totals)]
    expected = [figure(*tied) for figure in figures]
    monkeypatch.setattr("hggep_sc.metrics.BLOCK", 130)  # two genes at a time
    for figure, whole in zip(figures, expected, strict=True):
        np.testing.assert_allclose(figure(tied[0], form(tied[1])), whole, rtol=1e-12)


class TestBeyondDepth:
    def test_is_the_correlation_of_what_a_fit_by_depth_leaves(self, pair):
        totals = np.random.default_rng(3).integers(1, 500, 40)

        def left(values):
            return values - np.polynomial.Polynomial.fit(np.log(totals), values, 2)(np.log(totals))

        expected = [pearsonr(left(p), left(o)).statistic for p, o in zip(*(a.T for a in pair), strict=True)]
        np.testing.assert_allclose(pearson_beyond_depth(*pair, totals), expected, rtol=1e-10)
        np.testing.assert_allclose(without_depth(pair[1], totals), np.column_stack([left(o) for o in pair[1].T]))

    def test_nothing_is_left_where_all_shares_are_alike(self):
        """Depth alone tells every gene, as log expression follows it."""
        rng = np.random.default_rng(4)
        depth = np.exp(rng.normal(6, 0.8, 4000))
        counts = rng.poisson(depth[:, None] * np.full(200, 1 / 200))
        observed = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        seen = np.log(depth)[:, None] + rng.normal(0, 0.3, observed.shape)
        assert pearson(seen, observed).mean() > 0.3
        found = pearson_beyond_depth(seen, observed, counts.sum(axis=1))
        assert abs(found.mean()) < 3 / np.sqrt(found.size * len(depth))
        ceiling = noise_ceiling(counts)
        assert ceiling.mean() > 0.3
        assert np.mean(ceiling_beyond_depth(ceiling, observed, counts.sum(axis=1))) < 0.15

    def test_the_ceiling_is_that_of_the_signal_which_depth_does_not_tell(self):
        """Two thirds of the variance are signal, half of which is depth: a half of the rest is signal."""
        rng = np.random.default_rng(5)
        log_depth = rng.normal(size=200_000)
        observed = (log_depth + rng.normal(size=log_depth.size) + rng.normal(size=log_depth.size))[:, None]
        found = ceiling_beyond_depth(np.sqrt([2 / 3]), observed, np.exp(log_depth))
        np.testing.assert_allclose(found, np.sqrt(0.5), atol=0.005)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_function_of_depth_has_none(self, pair, dtype):
        totals = np.arange(1, 41)
        pair[0][:, 2] = 7 + 0.3 * np.log(totals) - 0.05 * np.log(totals) ** 2
        pair[0][:, 3] = 0.1
        predicted = pair[0].astype(dtype)
        for found in (
            pearson_beyond_depth(predicted, pair[1], totals),
            ceiling_beyond_depth(np.ones(6), predicted, totals),
        ):
            assert np.flatnonzero(np.isnan(found)).tolist() == [2, 3]

    def test_of_spots_that_are_alike_in_depth_it_is_pearsons(self, pair):
        np.testing.assert_allclose(pearson_beyond_depth(*pair, np.full(40, 100)), pearson(*pair), rtol=1e-10)

    @pytest.mark.parametrize("totals", [np.ones(39), np.zeros(40), np.full(40, np.nan)])
    def test_totals_that_are_none(self, pair, totals):
        with pytest.raises(ValueError, match=r"totals must hold numbers above 0 of shape \(40,\)"):
            pearson_beyond_depth(*pair, totals)

    def test_a_ceiling_of_other_genes(self, pair):
        with pytest.raises(ValueError, match=r"ceiling \(1,\) must have a value for each gene"):
            ceiling_beyond_depth(np.ones(1), pair[1], np.ones(40))

    def test_three_spots(self, pair):
        assert np.isnan(pearson_beyond_depth(*(a[:3] for a in pair), np.arange(1, 4))).all()


class TestSSIM:
    @pytest.fixture
    def maps(self):
        rng = np.random.default_rng(2)
        rows, columns = np.mgrid[:20, :26]
        smooth = np.sin(rows / 4)[..., None] + np.cos(columns / np.array([3.0, 5.0, 9.0])[:, None, None]).transpose(
            1, 2, 0
        )
        return smooth + rng.normal(0, 0.4, size=(20, 26, 3)), smooth + rng.normal(0, 0.2, size=(20, 26, 3))

    def by_scikit_image(self, predicted, observed):
        _, full = structural_similarity(predicted, observed, data_range=np.ptp(observed), full=True)
        return full

    def test_interior_of_a_full_grid_is_scikit_images(self, maps):
        """Only spots whose windows are whole are compared: the others' contribution is taken off by hand."""
        predicted, observed = (m.reshape(-1, 3) for m in maps)
        places = np.argwhere(np.ones((20, 26)))[:, ::-1]
        found = ssim(predicted, observed, places)
        for gene in range(3):
            inner = self.by_scikit_image(maps[0][..., gene], maps[1][..., gene])[3:-3, 3:-3]
            local = self.slowly(predicted[:, gene], observed[:, gene], places)
            np.testing.assert_allclose(local.reshape(20, 26)[3:-3, 3:-3], inner, atol=1e-6)
            assert found[gene] == pytest.approx(np.nanmean(local), abs=1e-10)

    def slowly(self, p, o, places):
        """Window by window."""
        r = np.ptp(o)
        values = []
        for place in places:
            near = (np.abs(places - place) <= 3).all(axis=1)
            if near.sum() < 2:
                values.append(np.nan)
                continue
            (vp, cov), (_, vo) = np.cov(p[near], o[near])
            mp, mo = p[near].mean(), o[near].mean()
            c1, c2 = (0.01 * r) ** 2, (0.03 * r) ** 2
            values.append((2 * mp * mo + c1) * (2 * cov + c2) / ((mp**2 + mo**2 + c1) * (vp + vo + c2)))
        return np.array(values)

    def test_missing_spots_are_left_out(self, maps):
        places = np.argwhere(np.ones((20, 26)))[:, ::-1]
        kept = np.random.default_rng(0).random(520) < 0.6
        p, o, places = maps[0].reshape(-1, 3)[kept], maps[1].reshape(-1, 3)[kept], places[kept]
        # one spot far from all others has no variance
        p, o, places = np.vstack([p, [5, 5, 5]]), np.vstack([o, [5, 5, 5]]), np.vstack([places, [900, 900]])
        expected = [np.nanmean(self.slowly(p[:, j], o[:, j], places)) for j in range(3)]
        np.testing.assert_allclose(ssim(p, o, places), expected, atol=1e-10)

    def test_steps_of_two_and_origin_do_not_matter(self, maps):
        places = np.argwhere(np.ones((20, 26)))[:, ::-1]
        p, o = (m.reshape(-1, 3) for m in maps)
        np.testing.assert_allclose(ssim(p, o, 2 * places + 31), ssim(p, o, places), rtol=1e-12)

    def test_hexagonal_rows_are_offset(self, maps):
        rows, columns = np.divmod(np.arange(520), 26)
        p, o = (m.reshape(-1, 3) for m in maps)
        visium = np.column_stack([2 * columns + rows % 2, rows])
        assert is_hexagonal(visium)
        assert not is_hexagonal(np.column_stack([columns, rows]))
        np.testing.assert_allclose(ssim(p, o, visium), ssim(p, o, np.column_stack([columns, rows])), rtol=1e-12)

    def test_itself_and_constants(self, maps):
        _, o = (m.reshape(-1, 3) for m in maps)
        places = np.argwhere(np.ones((20, 26)))
        np.testing.assert_allclose(ssim(o, o, places), 1)
        flat = o.copy()
        flat[:, 1] = 0.1
        assert np.isnan(ssim(o, flat, places)).tolist() == [False, True, False]
        assert np.isfinite(ssim(flat, o, places)).all()

    def test_one_spot(self):
        assert np.isnan(ssim(np.ones((1, 2)), np.ones((1, 2)), np.zeros((1, 2), int))).all()
        assert ssim(np.ones((0, 2)), np.ones((0, 2)), np.zeros((0, 2), int)).shape == (2,)

    def test_two_spots_in_one_place(self):
        with pytest.raises(ValueError, match="one section at a time"):
            ssim(np.eye(3), np.eye(3), np.array([[0, 0], [0, 1], [0, 1]]))

    def test_places_of_other_spots(self):
        with pytest.raises(ValueError, match=r"array_xy must have shape \(3, 2\)"):
            ssim(np.eye(3), np.eye(3), np.zeros((2, 2), int))


class TestMoransI:
    @pytest.fixture
    def spots(self):
        """Ninety spots at random; values from smooth to strewn, and a constant gene."""
        rng = np.random.default_rng(0)
        xy = rng.random((90, 2)) * 1000
        values = np.sin(xy[:, :1] / 200) + rng.normal(0, 1, (90, 4)) * [0.0, 0.3, 1.0, 0.0]
        values[:, 3] = 2.5
        return values, xy

    @pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_array])
    def test_by_the_definition(self, spots, form):
        values, xy = spots
        found = morans_i(form(values), xy)
        np.testing.assert_allclose(found[:3], [slow_moran(x, xy) for x in values[:, :3].T], rtol=1e-10)
        assert np.isnan(found[3])

    def test_in_blocks_and_in_any_order(self, spots, monkeypatch):
        """On a square grid, where several spots are equally near."""
        values, _ = spots
        xy = np.stack(np.meshgrid(np.arange(10), np.arange(9)), -1).reshape(-1, 2) * 100.0
        expected = morans_i(values, xy)
        monkeypatch.setattr("hggep_sc.metrics.AT_ONCE", 90)
        order = np.random.default_rng(1).permutation(90)
        np.testing.assert_allclose(morans_i(values[order], xy[order]), expected, rtol=1e-12)

    def test_all_neighbours_of_all(self, spots):
        values, xy = spots
        assert np.isnan(morans_i(values[:7], xy[:7])).all()
        assert np.isfinite(morans_i(values[:8], xy[:8])[:3]).all()

    @pytest.mark.parametrize("bad", [np.zeros((89, 2)), np.zeros((90, 3)), np.full((90, 2), np.nan)])
    def test_places_that_are_none(self, spots, bad):
        with pytest.raises(ValueError, match=r"xy must hold finite numbers of shape \(90, 2\)"):
            morans_i(spots[0], bad)


class TestPValues:
    @pytest.mark.parametrize("n", [3, 10, 200, 5000])
    @pytest.mark.parametrize("r", [1e-3, 0.02, 0.05, 0.3, -0.6, 0.9, 0.999])
    def test_against_mpmath(self, r, n):
        self.compare(r, n)

    @pytest.mark.parametrize("r", [1e-3, 0.02, 0.05, 0.999])
    def test_a_million_spots(self, r):
        self.compare(r, 10**6)

    def compare(self, r, n):
        with mpmath.workdps(60):
            p = mpmath.betainc(mpmath.mpf(n - 2) / 2, 0.5, 0, 1 - mpmath.mpf(r) ** 2, regularized=True)
            expected = float(mpmath.log(p))
        assert pearson_log_pvalues(np.array([r]), n)[0] == pytest.approx(expected, rel=1e-9)

    def test_against_scipy(self, pair):
        expected = [pearsonr(pair[0][:, j], pair[1][:, j]).pvalue for j in range(6)]
        np.testing.assert_allclose(np.exp(pearson_log_pvalues(pearson(*pair), 40)), expected, rtol=1e-10)

    def test_the_ends(self):
        assert pearson_log_pvalues(np.array([0.0, 1.0, -1.0]), 50).tolist() == [0, -np.inf, -np.inf]
        assert np.isnan(pearson_log_pvalues(np.array([np.nan]), 50)).all()
        assert np.isnan(pearson_log_pvalues(np.array([0.5]), 2)).all()

    def test_benjamini_hochberg_against_scipy(self):
        p = np.random.default_rng(0).beta(0.3, 1, size=200)
        p[[5, 6]] = p[7]
        np.testing.assert_allclose(np.exp(benjamini_hochberg(np.log(p))), false_discovery_control(p), rtol=1e-10)

    def test_undefined_ones_do_not_count(self):
        p = np.array([0.01, np.nan, 0.04, 0.3])
        found = np.exp(benjamini_hochberg(np.log(p)))
        np.testing.assert_allclose(found[[0, 2, 3]], false_discovery_control(p[[0, 2, 3]]))
        assert np.isnan(found[1])

    def test_benjamini_hochberg_without_underflow(self):
        found = benjamini_hochberg(np.array([-5000.0, -4000.0, -1.0]))
        np.testing.assert_allclose(found, [-5000 + np.log(3), -4000 + np.log(1.5), -1])


def simulate(depth, n_spots, seed=0, n_genes=30):
    """Counts, libraries and the correlation of E[y | rate] with y, by Poisson sums; log-normal or on-off rates."""
    rng = np.random.default_rng(seed)
    library = np.rint(depth * np.exp(rng.normal(0, 0.3, n_spots)))
    smooth = np.exp(rng.normal(size=(n_spots, n_genes)) * np.resize([0.3, 0.6, 1.0], n_genes))
    patchy = 1 + 3.0 * (rng.random((n_spots, n_genes)) < 0.3)
    share = np.geomspace(3e-4, 5e-3, n_genes) * np.where(np.arange(n_genes) % 2, smooth, patchy)
    rate = library[:, None] * share
    counts = rng.poisson(rate)
    order = np.argsort(rate, axis=None)
    ascending, totals = rate.ravel()[order], np.repeat(library, n_genes)[order]
    expected = np.zeros(rate.size)
    for k in range(1, counts.max() + 100):
        spread = 12 * np.sqrt(k) + 30  # beyond it, k does not occur
        near = slice(*np.searchsorted(ascending, [k - spread, k + spread]))
        pmf = np.exp(k * np.log(ascending[near]) - ascending[near] - gammaln(k + 1))
        expected[order[near]] += pmf * np.log1p(1e4 * k / totals[near])
    y = np.log1p(1e4 * counts / library[:, None])
    return counts, library, pearson(expected.reshape(rate.shape), y)


def split_half(counts, library, seed):
    rng = np.random.default_rng(seed)
    part, total = rng.binomial(counts, 0.5), library[:, None] / 2
    return pearson(np.log1p(1e4 * part / total), np.log1p(1e4 * (counts - part) / total))


class TestNoiseCeiling:
    @pytest.mark.parametrize("depth", [300, 1000, 3000])
    def test_recovers_what_is_attainable(self, depth):
        counts, library, attainable = simulate(depth, 10_000)
        clear = np.mean([split_half(counts, library, seed) for seed in range(3)], axis=0) > 0.1
        assert clear.sum() > 8
        error = noise_ceiling(counts, library=library, n_splits=5) - attainable
        assert abs(error[clear].mean()) < 0.015
        assert np.abs(error[clear]).mean() < 0.03
        assert abs(error[~clear].mean()) < 0.06

    @pytest.mark.slow
    def test_recovers_it_gene_by_gene_where_there_are_spots_enough(self):
        counts, library, attainable = simulate(1000, 50_000)
        clear = np.mean([split_half(counts, library, seed) for seed in range(3)], axis=0) > 0.1
        error = noise_ceiling(counts, library=library, n_splits=5) - attainable
        assert np.abs(error[clear]).max() < 0.03

    def test_spearman_brown_alone_promises_too_much(self):
        """The reason for the step to full depth: log expression of few counts."""
        counts, library, attainable = simulate(300, 10_000)
        r = np.mean([split_half(counts, library, seed) for seed in range(3)], axis=0)
        clear = r > 0.1
        spearman_brown = np.sqrt(2 * r[clear] / (1 + r[clear]))
        assert (spearman_brown - attainable[clear]).mean() > 0.04

    def test_few_spots(self):
        """Single genes are noisy there; their mean is not."""
        errors = []
        for seed in range(6):
            counts, library, attainable = simulate(1000, 250, seed)
            errors.append((noise_ceiling(counts, library=library) - attainable)[attainable > 0.4])
        assert abs(np.concatenate(errors).mean()) < 0.03

    def test_totals_of_the_panel(self):
        """Totals that are random too: the expectation is by drawing counts anew."""
        rng = np.random.default_rng(0)
        rate = np.geomspace(0.3, 30, 24) * np.exp(rng.normal(0, 0.6, size=(5000, 24)))

        def log(counts):
            return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))

        counts = rng.poisson(rate)
        expected = np.mean([log(rng.poisson(rate)) for _ in range(100)], axis=0)
        error = noise_ceiling(counts) - pearson(expected, log(counts))
        assert np.sqrt(np.mean(error**2)) < 0.05
        assert abs(error.mean()) < 0.02

    def test_noise_has_none_and_many_counts_have_all(self):
        rng = np.random.default_rng(0)
        library = np.full(3000, 20_000.0)
        counts = np.column_stack([rng.poisson(3.0, 3000), rng.poisson(rng.gamma(2.0, 2000, 3000))])
        flat, varied = noise_ceiling(counts, library=library.clip(counts.sum(axis=1)))
        assert flat < 0.2
        assert varied > 0.99

    def test_sparse_and_in_blocks_gives_the_same(self, monkeypatch):
        counts, library, _ = simulate(300, 200)
        expected = noise_ceiling(counts, library=library)
        monkeypatch.setattr("hggep_sc.metrics.BLOCK", 400)
        for form in (sp.csr_matrix, sp.csc_array):
            np.testing.assert_allclose(noise_ceiling(form(counts), library=library), expected, rtol=1e-10)

    def test_constant_genes_and_empty_spots(self):
        counts, library, _ = simulate(1000, 300)
        expected = noise_ceiling(counts, library=library)
        padded = np.vstack([np.column_stack([counts, np.zeros(300, int)]), np.zeros((5, counts.shape[1] + 1), int)])
        found = noise_ceiling(padded, library=np.append(library, np.zeros(5)))
        assert np.isnan(found[-1])
        np.testing.assert_allclose(found[:-1], expected)

    def test_seed(self):
        counts, _, _ = simulate(300, 100)
        state = str(np.random.get_state())  # noqa: NPY002
        first = noise_ceiling(counts, seed=4)
        np.testing.assert_array_equal(first, noise_ceiling(counts, seed=4))
        assert not np.array_equal(first, noise_ceiling(counts, seed=5), equal_nan=True)
        assert str(np.random.get_state()) == state  # noqa: NPY002

    def test_bad_input(self):
        counts = np.random.default_rng(0).poisson(2.0, size=(20, 3))
        with pytest.raises(ValueError, match="raw counts"):
            noise_ceiling(counts + 0.5)
        with pytest.raises(ValueError, match="raw counts"):
            noise_ceiling(-counts)
        with pytest.raises(ValueError, match=r"\(20,\).*20 too small"):
            noise_ceiling(counts + 1, library=np.ones(20))
        with pytest.raises(ValueError, match=r"shape \(20,\)"):
            noise_ceiling(counts, library=np.ones(3))
        with pytest.raises(ValueError, match="n_splits=0"):
            noise_ceiling(counts, n_splits=0)
