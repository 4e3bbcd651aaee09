import anndata as ad
import numpy as np
import pytest
import scipy.stats
from scipy.sparse import csr_matrix

import hggep_sc as hggep
from helpers import as_spatialdata, assert_same
from hggep_sc.evaluation.section_scores import FIGURES


@pytest.fixture
def predicted(sections, trained):
    hggep.tl.predict(sections["S3"], trained, device="cpu", progress=False)
    return sections["S3"]


def by_hand(adata, genes):
    """Observed natural log expression at the section's own library totals."""
    counts = adata[:, genes].X.toarray()
    total = adata.X.toarray().sum(1, keepdims=True)
    return np.log1p(1e4 * counts / np.maximum(total, 1))


def test_against_scipy(predicted, trained):
    matrix = predicted.X.tolil()
    matrix[7] = 0  # a spot without counts is left out
    predicted.X = matrix.tocsr()
    table = hggep.tl.evaluate(predicted)
    kept = np.arange(40) != 7
    observed = by_hand(predicted, list(table.index))[kept]
    values = predicted[:, list(table.index)].layers["hggep"][kept].astype(np.float64)
    for i, gene in enumerate(table.index):
        expected = scipy.stats.pearsonr(values[:, i], observed[:, i]).statistic
        assert table.loc[gene, "pcc"] == pytest.approx(expected, abs=1e-5)
        assert table.loc[gene, "rmse"] == pytest.approx(
            np.sqrt(np.mean((values[:, i] - observed[:, i]) ** 2)), rel=1e-5
        )
    assert predicted.uns["hggep"]["metrics"]["n_spots"] == 39
    assert predicted.uns["hggep"]["metrics"]["mean_pcc"] == pytest.approx(table["pcc"].mean())
    for name in FIGURES:
        assert np.array_equal(predicted.var[f"hggep_{name}"].dropna(), table[name].dropna())
    assert set(table.index) == set(trained.genes)


def test_constant_gene_is_nan_and_counted(predicted, trained):
    matrix = predicted.X.tolil()
    matrix[:, predicted.var_names.get_loc(trained.genes[0])] = 0
    predicted.X = matrix.tocsr()
    table = hggep.tl.evaluate(predicted)
    assert np.isnan(table.loc[trained.genes[0], "pcc"])
    assert predicted.uns["hggep"]["metrics"]["n_constant_genes"] == 1


def test_log10_is_brought_to_the_natural_scale(predicted):
    """The same prediction noted in the other base has the same error."""
    natural = hggep.tl.evaluate(predicted)
    predicted.layers["hggep"] = predicted.layers["hggep"].astype(np.float64) / np.log(10)
    predicted.uns["hggep"]["log_base"] = "10"
    assert np.allclose(hggep.tl.evaluate(predicted), natural, rtol=1e-4, atol=1e-5)


def test_panel_scale(predicted, trained):
    predicted.uns["hggep"]["normalize"] = "panel"
    table = hggep.tl.evaluate(predicted)
    counts = predicted[:, list(table.index)].X.toarray()
    observed = np.log1p(1e4 * counts / counts.sum(1, keepdims=True).clip(min=1))
    values = predicted[:, list(table.index)].layers["hggep"]
    expected = np.sqrt(((values - observed)[counts.sum(1) > 0] ** 2).mean(0))
    assert np.allclose(table["rmse"], expected, rtol=1e-4)


def test_copy(predicted):
    copied, table = hggep.tl.evaluate(predicted, copy=True)
    assert "hggep_pcc" in copied.var
    assert "hggep_pcc" not in predicted.var
    assert len(table) == 20


def test_counts_kept_in_a_layer(predicted):
    expected = hggep.tl.evaluate(predicted)
    predicted.layers["counts"] = predicted.X.copy()
    predicted.X = predicted.X.log1p()
    assert np.allclose(hggep.tl.evaluate(predicted, observed_layer="counts"), expected)


def test_subset_of_genes_is_said(predicted, trained, warned):
    """Without the other genes the library is not what the model was trained with."""
    hggep.tl.evaluate(predicted)
    assert "subsetting" not in warned.text
    hggep.tl.evaluate(predicted[:, trained.genes].copy())
    assert "subsetting" in warned.text


def test_summary(predicted):
    table = hggep.tl.evaluate(predicted)
    summary = predicted.uns["hggep"]["metrics"]
    assert summary["null"] == "independent"
    for name in ("pcc", "spearman", "rmse", "ssim", "ceiling"):
        assert summary[f"mean_{name}"] == pytest.approx(table[name].mean())
        assert summary[f"median_{name}"] == pytest.approx(table[name].median())
    assert summary["share_of_ceiling"] == pytest.approx(table["pcc"].mean() / table["ceiling"].mean())
    assert summary["n_significant"] == ((table["pcc_padj"] < 0.05) & (table["pcc"] > 0)).sum()
    assert list(summary["sections"]["name"]) == ["S3"]


def test_predictions_that_were_joined_afterwards(predicted, sections, trained):
    """The record of the first section stays: figures across both would hold the difference between them."""
    hggep.tl.predict(sections["S2"], trained, device="cpu", progress=False)
    pair = {"S2": sections["S2"], "S3": predicted}
    both = ad.concat(pair, label="of", index_unique="-", uns_merge="first", merge="same")
    with pytest.raises(ValueError, match=r"several sections seem to be taken for one.*obs\['of'\] tells them apart"):
        hggep.tl.evaluate(both)
    both = ad.concat(pair, label="of", index_unique="-", uns_merge="same", merge="same")
    with pytest.raises(ValueError, match=r"uns\['hggep'\] does not say which sections were predicted"):
        hggep.tl.evaluate(both)


def test_prediction_of_one_value(predicted, trained):
    """The gene mean: no correlation, and no share of the ceiling."""
    predicted.layers["hggep"][:, predicted.var["hggep_predicted"]] = 1.0
    table = hggep.tl.evaluate(predicted)
    summary = predicted.uns["hggep"]["metrics"]
    assert table["pcc"].isna().all()
    assert table["rmse"].notna().all()
    assert summary["n_genes"] == 0
    assert summary["n_constant_genes"] == len(trained.genes)
    assert np.isnan(summary["share_of_ceiling"])


def test_spatial_null(predicted):
    table = hggep.tl.evaluate(predicted, null="spatial", seed=3)
    assert predicted.uns["hggep"]["metrics"]["null"] == "spatial"
    again = hggep.tl.evaluate(predicted, null="spatial", seed=3)
    assert table.equals(again)
    assert np.allclose((table["pcc_pval"] * 200).round(), table["pcc_pval"] * 200)


def test_ceiling_is_seeded(predicted):
    first = hggep.tl.evaluate(predicted, seed=1)["ceiling"]
    assert first.equals(hggep.tl.evaluate(predicted, seed=1)["ceiling"])
    assert not first.equals(hggep.tl.evaluate(predicted, seed=2)["ceiling"])


def test_roles(sections, trained, warned):
    """What the model was trained on is named aloud."""
    for name, role in (("S1", "train"), ("S3", "held out")):
        warned.clear()
        hggep.tl.predict(sections[name], trained, device="cpu", progress=False)
        hggep.tl.evaluate(sections[name])
        assert list(sections[name].uns["hggep"]["metrics"]["sections"]["role"]) == [role]
        assert ("goodness of fit, not prediction" in warned.text) == (role == "train")


def test_summary_survives_files(predicted, tmp_path):
    hggep.tl.evaluate(predicted)
    predicted.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert hggep.tl.evaluate(read).shape == (20, len(FIGURES))


class TestSeveralSections:
    @pytest.fixture
    def several(self, sections, trained):
        """S1 (in training) and S3 in one object, their spots in turn."""
        both = ad.concat(
            {name: sections[name] for name in ("S1", "S3")}, label="library", index_unique="-", uns_merge="unique"
        )
        both = both[np.random.default_rng(0).permutation(both.n_obs)].copy()
        hggep.tl.predict(both, trained, library_key="library", device="cpu", progress=False)
        return both

    def test_each_by_itself(self, several, sections, trained, warned):
        table = hggep.tl.evaluate(several)
        assert list(table) == ["section", *FIGURES]
        assert "in the training: S1;" in warned.text
        for name in ("S1", "S3"):
            alone = several[several.obs["library"] == name].copy()
            expected = hggep.tl.evaluate(alone)
            found = table[table["section"] == name].drop(columns="section")
            assert np.allclose(found, expected, equal_nan=True)
        summary = several.uns["hggep"]["metrics"]
        assert list(summary["sections"]["name"]) == ["S1", "S3"]
        assert list(summary["sections"]["role"]) == ["train", "held out"]
        assert list(summary["sections"]["n_spots"]) == [40, 40]
        assert summary["n_spots"] == 80
        mean = table.groupby(level="gene")["pcc"].mean()
        assert np.allclose(several.var.loc[mean.index, "hggep_pcc"], mean)
        assert summary["mean_pcc"] == pytest.approx(mean.mean())

    def test_differences_between_sections_do_not_enter(self, several):
        """A prediction that knows the sections' levels alone scores nothing."""
        level = np.where(several.obs["library"] == "S1", 1.0, 2.0).astype(np.float32)
        several.layers["hggep"][:, several.var["hggep_predicted"]] = level[:, None]
        assert hggep.tl.evaluate(several)["pcc"].isna().all()

    def test_the_column_is_gone(self, several):
        del several.obs["library"]
        with pytest.raises(KeyError, match=r"2 sections \(S1, S3\).*'library'"):
            hggep.tl.evaluate(several)

    def test_none_of_them_is_left(self, several):
        several.obs["library"] = "other"
        with pytest.raises(ValueError, match=r"no predicted spots: obs\['library'\]"):
            hggep.tl.evaluate(several)

    def test_regions_of_a_spatialdata(self, predicted, trained):
        pytest.importorskip("spatialdata")
        sdata = as_spatialdata(predicted)
        table = sdata["table"]
        # as if the table annotated two shapes, half of the spots each
        half = np.arange(table.n_obs) % 2 == 0
        table.obs["region_name"] = np.where(half, "left", "right")
        table.uns["hggep"]["sections"] = {
            "name": np.array(["left", "right"], dtype=object),
            "role": np.array(["held out", "held out"], dtype=object),
        }
        scores = hggep.tl.evaluate(sdata)
        assert scores["section"].value_counts().to_dict() == {"left": 20, "right": 20}
        assert list(table.uns["hggep"]["metrics"]["sections"]["n_spots"]) == [20, 20]


class TestOtherLayers:
    """Another tool's prediction, without a record of ours."""

    @pytest.fixture
    def foreign(self, sections):
        section, rng = sections["S3"], np.random.default_rng(0)
        section.layers["log"] = by_hand(section, list(section.var_names)).astype(np.float32)
        section.layers["theirs"] = section.layers["log"] + rng.normal(size=section.shape).astype(np.float32)
        section.layers["theirs"][:, 5] = np.nan  # a gene that it does not predict
        section.layers["theirs"][7] = np.nan  # and a spot
        return section

    @pytest.mark.parametrize("kind", ["dense", "sparse", "SpatialData"])
    def test_against_scipy(self, foreign, kind):
        theirs, log = foreign.layers["theirs"].astype(float), foreign.layers["log"].astype(float)
        data = foreign
        if kind == "sparse":
            foreign.layers["log"] = csr_matrix(foreign.layers["log"])
        elif kind == "SpatialData":
            data = as_spatialdata(foreign)
        table = hggep.tl.evaluate(data, layer="theirs", observed_layer="log")
        assert list(table.index) == [gene for j, gene in enumerate(foreign.var_names) if j != 5]
        kept = np.arange(40) != 7
        for gene in table.index[::10]:
            j = foreign.var_names.get_loc(gene)
            a, b = theirs[kept, j], log[kept, j]
            assert table.loc[gene, "pcc"] == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-5)
            assert table.loc[gene, "spearman"] == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-5)
            assert table.loc[gene, "rmse"] == pytest.approx(np.sqrt(np.mean((a - b) ** 2)), rel=1e-5)
        assert table["ceiling"].isna().all()
        assert table["ssim"].notna().all()
        written = data["table"] if kind == "SpatialData" else data
        assert np.isnan(written.var["theirs_pcc"].iloc[5])
        assert written.var["theirs_pcc"].notna().sum() == 59
        assert written.uns["theirs"]["metrics"]["n_spots"] == 39
        assert (written.uns["theirs"]["layer"], written.uns["theirs"]["observed_layer"]) == ("theirs", "log")

    def test_counts_are_brought_to_the_scale_that_is_named(self, foreign):
        foreign.layers["counts"], foreign.X = foreign.X.copy(), None
        expected = hggep.tl.evaluate(foreign, layer="theirs", observed_layer="log", key="as_they_are")
        found = hggep.tl.evaluate(foreign, layer="theirs", observed_layer="counts", normalize="library", key="scaled")
        of_counts = ["ceiling", "pcc_beyond_depth", "ceiling_beyond_depth"]
        assert found[of_counts].notna().any().all()
        assert expected[of_counts].isna().all(axis=None)
        np.testing.assert_allclose(
            found.drop(columns=of_counts), expected.drop(columns=of_counts), rtol=1e-3, atol=1e-4
        )
        assert {"scaled_pcc", "as_they_are_pcc"} <= set(foreign.var)
        assert "theirs_pcc" not in foreign.var

    def test_our_prediction_as_another_tool_s_has_the_same_figures(self, predicted):
        ours = hggep.tl.evaluate(predicted)
        predicted.layers["theirs"] = predicted.layers["hggep"].copy()
        theirs = hggep.tl.evaluate(predicted, layer="theirs", normalize="library")
        np.testing.assert_allclose(theirs.loc[ours.index], ours, rtol=1e-5, atol=1e-6)
        assert "hggep_predicted" in predicted.var

    def test_raw_counts_against_logs_are_warned_of(self, foreign, warned):
        hggep.tl.evaluate(foreign, layer="theirs", observed_layer="log")
        assert "raw counts" not in warned.text
        hggep.tl.evaluate(foreign, layer="theirs")
        assert "X holds raw counts, and layers['theirs'] other values" in warned.text

    def test_several_sections_one_by_one(self, sections):
        both = ad.concat({name: sections[name] for name in ("S1", "S3")}, label="library", index_unique="-")
        both.layers["log"] = by_hand(both, list(both.var_names))
        both.layers["theirs"] = both.layers["log"] + np.random.default_rng(0).normal(size=both.shape)
        table = hggep.tl.evaluate(both, layer="theirs", observed_layer="log", library_key="library")
        for name in ("S1", "S3"):
            alone = both[both.obs["library"] == name].copy()
            expected = hggep.tl.evaluate(alone, layer="theirs", observed_layer="log")
            found = table[table["section"] == name].drop(columns="section")
            assert np.allclose(found, expected, equal_nan=True)
        both.uns["spatial"] = {name: {} for name in ("S1", "S3")}
        with pytest.raises(ValueError, match=r"several libraries .*library_key="):
            hggep.tl.evaluate(both, layer="theirs", observed_layer="log")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"layer": "absent"}, KeyError, "there is no layer 'absent'"),
            ({"layer": "theirs", "observed_layer": "absent"}, KeyError, "there is no layer 'absent'"),
            ({"layer": "log", "observed_layer": "log"}, ValueError, "are the same"),
            ({"layer": "theirs", "normalize": "log"}, ValueError, "normalize='log' must be 'library', 'panel' or None"),
            ({"layer": "theirs", "library_key": "absent"}, KeyError, "obs has no such column"),
            ({"layer": "theirs", "observed_layer": "log", "normalize": "library"}, ValueError, "non-integer values"),
            ({"layer": "theirs", "key": "pca"}, ValueError, r"uns\['pca'\] holds something else"),
            ({"key": "theirs"}, KeyError, r"was not written by tl.predict.* layer='theirs'"),
            ({"normalize": "library"}, ValueError, "go with layer="),
        ],
    )
    def test_bad_input(self, foreign, options, error, message):
        foreign.uns["pca"] = {"variance": np.ones(3)}
        before = list(foreign.var), list(foreign.uns)
        with pytest.raises(error, match=message):
            hggep.tl.evaluate(foreign, **options)
        assert (list(foreign.var), list(foreign.uns)) == before

    def test_a_layer_of_nothing(self, foreign):
        foreign.layers["theirs"][:] = np.nan
        with pytest.raises(ValueError, match=r"layers\['theirs'\] predicts nothing to compare"):
            hggep.tl.evaluate(foreign, layer="theirs", observed_layer="log")

    def test_again(self, foreign):
        first = hggep.tl.evaluate(foreign, layer="theirs", observed_layer="log")
        assert hggep.tl.evaluate(foreign, layer="theirs", observed_layer="log").equals(first)


class TestBadInput:
    def test_no_such_layer_of_counts(self, predicted):
        with pytest.raises(KeyError, match="no layer 'raw'"):
            hggep.tl.evaluate(predicted, observed_layer="raw")

    def test_unknown_null(self, predicted):
        with pytest.raises(ValueError, match="null='shuffled'"):
            hggep.tl.evaluate(predicted, null="shuffled")

    def test_one_spot(self, predicted):
        with pytest.raises(ValueError, match="needs two"):
            hggep.tl.evaluate(predicted[:1].copy())

    def test_no_prediction(self, sections):
        with pytest.raises(KeyError, match=r"tl\.predict"):
            hggep.tl.evaluate(sections["S3"])

    def test_unknown_key(self, predicted):
        with pytest.raises(KeyError, match="'other'"):
            hggep.tl.evaluate(predicted, key="other")

    def test_no_counts(self, predicted):
        predicted.X = None
        with pytest.raises((ValueError, KeyError), match="counts"):
            hggep.tl.evaluate(predicted)

    def test_a_prediction_is_not_proposed_as_counts(self, predicted):
        """On a slide without counts there is nothing to compare with."""
        predicted.X = predicted.X * 0
        for name, proposed in {"none": "none", "counts": "'counts'"}.items():
            if name != "none":
                predicted.layers[name] = np.ones(predicted.shape)
            with pytest.raises(ValueError, match=rf"layers here that are no predictions: {proposed}$"):
                hggep.tl.evaluate(predicted)
        predicted.X = None
        del predicted.layers["counts"]
        with pytest.raises(KeyError, match="layers here: none"):
            hggep.tl.evaluate(predicted)

    def test_logs_are_no_counts_and_nothing_is_written(self, predicted):
        predicted.X = predicted.X.log1p()
        before = list(predicted.var), dict(predicted.uns["hggep"])
        with pytest.raises(ValueError, match="non-integer"):
            hggep.tl.evaluate(predicted)
        assert list(predicted.var) == before[0]
        assert predicted.uns["hggep"].keys() == before[1].keys()


def test_a_column_of_the_users_is_replaced_on_request_alone(predicted, warned):
    predicted.var["hggep_ceiling"] = 0.5
    before = predicted.copy()
    with pytest.raises(ValueError, match=r"key= would replace var\['hggep_ceiling'\], which is no earlier result"):
        hggep.tl.evaluate(predicted)
    assert_same(predicted, before)
    table = hggep.tl.evaluate(predicted, overwrite=True)
    assert "replaced, as overwrite=True says: var['hggep_ceiling']" in warned.text
    np.testing.assert_array_equal(predicted.var.loc[table.index, "hggep_ceiling"], table["ceiling"])
    warned.clear()
    hggep.tl.evaluate(predicted)  # its own
    assert "replaced" not in warned.text
