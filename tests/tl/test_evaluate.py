import numpy as np
import pytest
import scipy.stats

import hggep_sc as hggep


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
    assert np.array_equal(predicted.var["hggep_pcc"].dropna(), table["pcc"])
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


def test_subset_of_genes_is_said(predicted, trained, caplog):
    """Without the other genes the library is not what the model was trained with."""
    hggep.tl.evaluate(predicted)
    assert "subsetting" not in caplog.text
    hggep.tl.evaluate(predicted[:, trained.genes].copy())
    assert "subsetting" in caplog.text


class TestBadInput:
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

    def test_logs_are_no_counts_and_nothing_is_written(self, predicted):
        predicted.X = predicted.X.log1p()
        before = list(predicted.var), dict(predicted.uns["hggep"])
        with pytest.raises(ValueError, match="non-integer"):
            hggep.tl.evaluate(predicted)
        assert list(predicted.var) == before[0]
        assert predicted.uns["hggep"].keys() == before[1].keys()
