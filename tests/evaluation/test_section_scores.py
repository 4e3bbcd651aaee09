import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, sparse
from scipy.stats import combine_pvalues, false_discovery_control, norm, pearsonr, spearmanr

from helpers import slow_moran
from hggep_sc.evaluation.section_scores import COLUMNS, FIGURES, over_sections, section_scores, tidy
from hggep_sc.metrics import noise_ceiling, ssim
from hggep_sc.section.expression import ExpressionScale

SCALE = ExpressionScale("panel")
GENES = [f"G{i}" for i in range(6)]


def make_table(seed=0, n_rows=9, n_columns=10):
    """Six genes on a square array, and a prediction of them with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.divmod(np.arange(n_rows * n_columns), n_columns)
    drive = np.exp(np.sin(rows / 3)[:, None] * rng.uniform(0, 1, 6))
    counts = rng.poisson(drive * [1, 2, 4, 8, 16, 32])
    table = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=GENES))
    table.obs["array_col"], table.obs["array_row"] = columns, rows
    table.obsm["spatial"] = 100.0 * np.column_stack([columns, rows])
    return table, np.log(drive) + rng.normal(0, 0.4, drive.shape)


def scored(table, predicted, **options):
    return section_scores(table, np.arange(table.n_obs), predicted, GENES, SCALE, **options)


def test_every_figure_by_hand():
    table, predicted = make_table()
    table.X[7] = 0  # a spot without counts is left out
    table.obsm["spatial"] += np.random.default_rng(1).normal(0, 5, (90, 2))  # so that no two are equally near
    scores = scored(table, predicted)
    kept = np.arange(90) != 7
    counts = table.X.toarray()[kept].astype(np.float64)
    observed = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    p = predicted[kept]
    pairs = [(p[:, j], observed[:, j]) for j in range(6)]
    pvalues = np.array([pearsonr(*pair).pvalue for pair in pairs])
    places = table.obs[["array_col", "array_row"]].to_numpy()[kept]
    depth = np.log(counts.sum(axis=1))
    left = [[x - np.polynomial.Polynomial.fit(depth, x, 2)(depth) for x in values.T] for values in (p, observed)]
    by_depth = 1 - np.var(left[1], axis=1) / observed.var(axis=0)
    expected = {
        "pcc": [pearsonr(*pair).statistic for pair in pairs],
        "pcc_pval": pvalues,
        "pcc_padj": false_discovery_control(pvalues),
        "pcc_neg_log10_p": -np.log10(pvalues),
        "spearman": [spearmanr(*pair).statistic for pair in pairs],
        "rmse": np.sqrt(((p - observed) ** 2).mean(axis=0)),
        "ssim": ssim(p, observed, places),
        "ceiling": noise_ceiling(counts),
        "pcc_beyond_depth": [pearsonr(*pair).statistic for pair in zip(*left, strict=True)],
        "ceiling_beyond_depth": np.sqrt(np.clip((noise_ceiling(counts) ** 2 - by_depth) / (1 - by_depth), 0, 1)),
        "moran_observed": [slow_moran(x, table.obsm["spatial"][kept]) for x in observed.T],
        "moran_predicted": [slow_moran(x, table.obsm["spatial"][kept]) for x in p.T],
    }
    assert list(scores) == list(FIGURES) == list(expected)
    assert scores.index.tolist() == GENES
    assert scores.index.name == "gene"
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, rtol=2e-4, err_msg=name)
    assert scores.attrs["n_spots"] == 89


def test_the_library_enters_the_ceiling():
    """Genes beyond the panel count for a spot's total."""
    table, predicted = make_table()
    found = section_scores(table, np.arange(90), predicted[:, :3], GENES[:3], ExpressionScale("library"))
    counts = table.X.toarray()
    np.testing.assert_allclose(found["ceiling"], noise_ceiling(counts[:, :3], library=counts.sum(axis=1)))


def test_log10_is_brought_to_natural_units():
    table, predicted = make_table()
    other = section_scores(table, np.arange(90), predicted / np.log(10), GENES, ExpressionScale("panel", log_base="10"))
    pd.testing.assert_frame_equal(other, scored(table, predicted), rtol=1e-6)


def test_some_rows_in_any_order():
    table, predicted = make_table()
    rows = np.random.default_rng(0).permutation(90)[:70]
    drawn = ["ceiling", "ceiling_beyond_depth"]  # by splits at random
    found = section_scores(table, rows, predicted[rows], GENES, SCALE).drop(columns=drawn)
    expected = scored(table[np.sort(rows)].copy(), predicted[np.sort(rows)]).drop(columns=drawn)
    pd.testing.assert_frame_equal(found, expected)


def test_constant_genes_and_predictions():
    table, predicted = make_table()
    table.X[:, 2] = 0
    predicted[:, 4] = 1.5  # a gene mean
    scores = scored(table, predicted)
    assert scores["pcc"].isna().tolist() == [False, False, True, False, True, False]
    assert scores["pcc_padj"].isna().tolist() == scores["pcc"].isna().tolist()
    assert scores["ceiling"].isna().tolist() == [False, False, True, False, False, False]
    assert scores["rmse"].notna().all()


@pytest.mark.parametrize("broken", ["missing", "nan"])
def test_morans_i_needs_a_place_of_each_spot(broken, warned):
    """The places on the array will do, and where there are none it is left out, with a word."""
    table, predicted = make_table()
    expected = scored(table, predicted)
    if broken == "missing":
        del table.obsm["spatial"]
        pd.testing.assert_frame_equal(scored(table, predicted), expected)
    else:
        table.obsm["spatial"][3, 0] = np.nan
    del table.obs["array_row"]
    warned.clear()
    scores = scored(table, predicted)
    assert scores[["moran_observed", "moran_predicted"]].isna().all(axis=None)
    assert scores["pcc"].equals(expected["pcc"])
    assert "SSIM and Moran's I are left out" in warned.text


@pytest.mark.parametrize("broken", ["missing", "text", "gaps", "alike"])
def test_without_places_on_the_array_ssim_is_left_out(broken, warned):
    table, predicted = make_table()
    if broken == "missing":
        del table.obs["array_col"]
    else:
        columns = table.obs["array_col"].to_numpy()
        table.obs["array_col"] = {
            "text": "a",
            "gaps": np.where(np.arange(90) == 3, np.nan, columns),
            "alike": np.where(np.arange(90) == 3, columns[4], columns),
        }[broken]
    scores = scored(table, predicted)
    assert scores["ssim"].isna().all()
    assert scores.drop(columns="ssim").notna().all(axis=None)
    assert "obs['array_col']" in warned.text


class TestSpatialNull:
    def smooth(self, n_genes, seed):
        """Fields that have nothing to do with each other, on 22 x 22 spots."""
        rng = np.random.default_rng(seed)
        fields = ndimage.gaussian_filter(rng.normal(size=(22, 22, n_genes)), (3, 3, 0)).reshape(-1, n_genes)
        return fields / fields.std(axis=0)

    def test_smooth_fields(self):
        """Of unrelated smooth maps the spatial null calls about 5 %, the ordinary one most."""
        n = 150
        rows, columns = np.divmod(np.arange(484), 22)
        genes = [f"G{i}" for i in range(n)]
        counts = np.random.default_rng(5).poisson(20 * np.exp(0.5 * self.smooth(n, 0)))
        table = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=genes))
        table.obsm["spatial"] = 100.0 * np.column_stack([columns, rows])
        predicted = self.smooth(n, 1)
        share = {
            null: (section_scores(table, np.arange(484), predicted, genes, SCALE, null=null)["pcc_pval"] < 0.05).mean()
            for null in ("independent", "spatial")
        }
        assert share["independent"] > 0.4
        assert share["spatial"] < 0.1

    def test_genes_of_a_single_spot(self):
        """Motions that carry the spot off the section tell nothing; counted as failures they made p too small."""
        n = 200
        rng = np.random.default_rng(6)
        rows, columns = np.divmod(np.arange(484), 22)
        counts = np.zeros((484, n + 1), dtype=np.float32)
        counts[rng.permutation(484)[:n], np.arange(n)] = 1
        counts[:, n] = 1000  # so that a count is the same share of the total in every spot
        genes = [f"G{i}" for i in range(n + 1)]
        table = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=genes))
        table.obsm["spatial"] = 100.0 * np.column_stack([columns, rows])
        predicted = self.smooth(n + 1, 2)
        p = section_scores(table, np.arange(484), predicted, genes, SCALE, null="spatial")["pcc_pval"][:n]
        assert (p <= 0.25).mean() < 0.35
        assert (p <= 0.5).mean() < 0.6

    def test_what_agrees_is_found(self):
        table, predicted = make_table()
        scores = scored(table, predicted, null="spatial")
        assert scores["pcc_pval"].iloc[-1] < 0.05
        assert scores["pcc_pval"].min() >= 1 / 200
        np.testing.assert_allclose(scores["pcc_neg_log10_p"], -np.log10(scores["pcc_pval"]))

    def test_seed(self):
        table, predicted = make_table()
        first = scored(table, predicted, null="spatial", seed=1)
        pd.testing.assert_frame_equal(first, scored(table, predicted, null="spatial", seed=1))
        assert not first.equals(scored(table, predicted, null="spatial", seed=2))

    def test_places_on_the_array_do_where_there_are_no_coordinates(self):
        table, predicted = make_table()
        expected = scored(table, predicted, null="spatial")
        del table.obsm["spatial"]
        pd.testing.assert_frame_equal(scored(table, predicted, null="spatial"), expected)

    def test_no_places_at_all(self):
        table, predicted = make_table()
        del table.obsm["spatial"], table.obs["array_row"]
        with pytest.raises(KeyError, match=r"where spots lie.*obsm\['spatial'\].*array_col"):
            scored(table, predicted, null="spatial")

    def test_unknown_null(self):
        table, predicted = make_table()
        with pytest.raises(ValueError, match="null='shuffled' must be"):
            scored(table, predicted, null="shuffled")


class TestBadInput:
    def test_no_such_layer(self):
        table, predicted = make_table()
        with pytest.raises(KeyError, match="no layer 'raw'"):
            scored(table, predicted, layer="raw")

    def test_no_counts(self):
        table, predicted = make_table()
        table.X = table.X * 0
        with pytest.raises(ValueError, match="no counts"):
            scored(table, predicted)

    def test_one_spot_with_counts(self):
        table, predicted = make_table()
        table.X[1:] = 0
        with pytest.raises(ValueError, match="two predicted spots with counts; found 1"):
            scored(table, predicted)


class TestOverSections:
    @pytest.fixture
    def scores(self):
        return [scored(*make_table(seed, n_rows)) for seed, n_rows in ((0, 9), (1, 12), (2, 6))]

    def test_means(self, scores):
        overall = over_sections(scores)
        for name in ("pcc", "spearman", "rmse", "ssim", "ceiling"):
            np.testing.assert_allclose(overall[name], np.mean([s[name] for s in scores], axis=0))
        assert list(overall) == list(FIGURES)

    def test_pvalues_against_scipy(self, scores):
        """One-sided p-values of either side, combined by Stouffer's method with Fisher's weights."""
        overall = over_sections(scores)
        weights = np.sqrt([s.attrs["n_spots"] - 3 for s in scores])
        for gene in GENES:
            r, p = (np.array([s.loc[gene, name] for s in scores]) for name in ("pcc", "pcc_pval"))
            upper = combine_pvalues(np.where(r > 0, p / 2, 1 - p / 2), method="stouffer", weights=weights).pvalue
            assert overall.loc[gene, "pcc_pval"] == pytest.approx(2 * min(upper, 1 - upper), rel=1e-6, abs=1e-15)

    def test_close_to_fishers_z(self, scores):
        overall = over_sections(scores)
        weights = np.array([s.attrs["n_spots"] - 3 for s in scores])[:, None]
        z = np.arctanh([s["pcc"] for s in scores])
        combined = (weights * z).sum(axis=0) / np.sqrt(weights.sum())
        expected = -(norm.logsf(np.abs(combined)) + np.log(2)) / np.log(10)
        np.testing.assert_allclose(overall["pcc_neg_log10_p"], expected, rtol=0.1)

    def test_opposite_signs_cancel(self, scores):
        one, other = scores[0].copy(), scores[0].copy()
        other["pcc"] *= -1
        np.testing.assert_allclose(over_sections([one, other])["pcc_pval"], 1)

    def test_undefined_in_one_section_or_in_all(self, scores):
        scores[0].loc["G1"] = np.nan
        for one in scores:
            one.loc["G2"] = np.nan
        overall = over_sections(scores)
        assert overall.loc["G1", "pcc"] == pytest.approx(np.mean([s.loc["G1", "pcc"] for s in scores[1:]]))
        assert overall.loc["G1", "pcc_neg_log10_p"] == pytest.approx(
            over_sections(scores[1:]).loc["G1", "pcc_neg_log10_p"]
        )
        assert overall.loc["G2"].isna().all()

    def test_one_section_is_itself(self, scores):
        pd.testing.assert_frame_equal(over_sections(scores[:1]), scores[0])


def test_tidy():
    scores = scored(*make_table())
    long = tidy(scores, fold="C2", section="S", method="ridge", seed=3)
    assert list(long) == COLUMNS == ["fold", "section", "method", "seed", "gene", "metric", "value"]
    assert len(long) == 6 * len(FIGURES)
    of_what = long[["fold", "section", "method", "seed"]].drop_duplicates()
    assert list(of_what.itertuples(index=False, name=None)) == [("C2", "S", "ridge", 3)]
    back = long.pivot(index="gene", columns="metric", values="value")[list(FIGURES)]
    np.testing.assert_array_equal(back, scores)
