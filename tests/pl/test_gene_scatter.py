"""Scatter plots: dots are the table's means, or the section's own values."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

from helpers import GENES, make_adata
from hggep_sc import pl
from hggep_sc.section import open_sections, write_prediction

PANEL = ["CD74", "GNAS", "MUC1"]


def predicted_section(library: str = "A", *, log_base: str = "10", **choice):
    adata = make_adata(library)
    adata.X[4] = 0  # nothing was counted there
    adata.obs["slide"] = library
    write(adata, log_base=log_base)
    return adata


def write(adata, *, log_base: str = "10", role: str = "held out", **choice) -> None:
    sections = open_sections(adata, **choice)
    rng = np.random.default_rng(3)
    results = [(rng.uniform(1, 3, (len(s.xy), 3)).astype("f4"), np.zeros((len(s.xy), 2), "f4")) for s in sections]
    names = np.array([section.name for section in sections], dtype=object)
    of_sections = {"name": names, "role": np.full(len(names), role, dtype=object)}
    params = {"normalize": "library", "target_sum": 1000.0, "log_base": log_base, "sections": of_sections, **choice}
    write_prediction(adata, sections, results, genes=PANEL, key="hggep", params=params)


def test_each_gene_is_a_dot_at_its_means(scores) -> None:
    ax = pl.gene_scatter(scores, x="ridge", y="hggep")
    rows = scores[scores["metric"] == "pcc"].groupby(["gene", "method"])["value"].mean().unstack("method")
    (dots,) = ax.collections
    expected = rows[["ridge", "hggep"]].sort_values("ridge").to_numpy()
    found = dots.get_offsets()
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], expected)
    above = int((rows["hggep"] > rows["ridge"]).sum())
    assert [text.get_text() for text in ax.texts] == [f"{above} genes above", f"{30 - above} below"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("ridge", "hggep")
    assert ax.get_title() == "PCC per gene, mean of 3 sections"
    assert ax.get_xlim() == ax.get_ylim()


def test_a_section_counts_where_both_methods_have_a_value(scores) -> None:
    lost = scores[(scores["section"] != "S3") | (scores["method"] != "ridge")]
    two = scores[scores["section"] != "S3"]
    a, b = (pl.gene_scatter(table, x="ridge", y="hggep").collections[0].get_offsets() for table in (lost, two))
    np.testing.assert_allclose(np.sort(a, axis=0), np.sort(b, axis=0))
    one = pl.gene_scatter(scores[scores["section"] == "S1"], x="ridge", y="hggep", metric="rmse")
    assert one.get_title() == "RMSE per gene, S1\n(natural log units, lower is better)"


def test_genes_of_a_larger_table_do_not_come_back(scores) -> None:
    names = dict.fromkeys(["section", "method", "gene", "metric"], "category")
    few = scores.astype(names)[scores["gene"].isin(["gene1", "gene2"]) & (scores["section"] != "S3")]
    ax = pl.gene_scatter(few, x="ridge", y="hggep")
    assert len(ax.collections[0].get_offsets()) == 2
    assert ax.get_title() == "PCC per gene, mean of 2 sections"
    assert pl.gene_scatter(few, x="ridge", y="hggep", metric="rmse").texts


def test_predicted_against_observed_in_natural_logs() -> None:
    adata = predicted_section()
    ax = pl.gene_scatter(adata, gene="GNAS")
    counts = adata.X.toarray()
    seen = np.arange(30) != 4
    observed = np.log1p(1000 * counts[seen, GENES.index("GNAS")] / counts[seen].sum(1))
    predicted = adata.layers["hggep"][seen, GENES.index("GNAS")] * np.log(10)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.column_stack([observed, predicted]), rtol=1e-5)
    assert ax.get_title() == f"GNAS, r = {np.corrcoef(observed, predicted)[0, 1]:.2f}"
    write(adata, role="train")
    assert pl.gene_scatter(adata, gene="GNAS").get_title() == f"{ax.get_title()} (trained on)"
    assert ax.get_xlabel() == "observed, ln(1 + counts per 1,000)"
    assert ax.get_ylabel() == "predicted (hggep)"


def test_one_section_at_a_time() -> None:
    both = ad.concat([make_adata("A"), make_adata("B")], uns_merge="unique", index_unique="-")
    both.obs["slide"] = ["A"] * 30 + ["B"] * 30
    write(both, library_key="slide")
    with pytest.raises(ValueError, match="several sections, A, B: pass the spots of one"):
        pl.gene_scatter(both, gene="GNAS")
    ax = pl.gene_scatter(both[both.obs["slide"] == "B"], gene="GNAS")
    assert len(ax.collections[0].get_offsets()) == 30


def test_only_the_sections_with_a_prediction_count() -> None:
    both = ad.concat([make_adata("A"), make_adata("B")], uns_merge="unique", index_unique="-")
    both.obs["slide"] = ["A"] * 30 + ["B"] * 30
    write(both, library_key="slide", library_id="B")
    (dots,) = pl.gene_scatter(both, gene="GNAS").collections
    (expected,) = pl.gene_scatter(both[both.obs["slide"] == "B"], gene="GNAS").collections
    np.testing.assert_array_equal(dots.get_offsets(), expected.get_offsets())


def test_given_axes_are_used_and_new_figures_hold_everything(scores, within_figure) -> None:
    figure, axes = plt.subplots(1, 2)
    assert pl.gene_scatter(scores, x="ridge", y="hggep", ax=axes[0]) is axes[0]
    assert pl.gene_scatter(predicted_section(), gene="GNAS", ax=axes[1]) is axes[1]
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="ax has 2 Axes, but 1 are needed"):
        pl.gene_scatter(scores, x="ridge", y="hggep", ax=axes)
    within_figure(pl.gene_scatter(scores, x="ridge", y="hggep").figure)
    within_figure(pl.gene_scatter(predicted_section(), gene="GNAS").figure)


def test_arguments_that_do_not_belong_together(scores) -> None:
    adata = predicted_section()
    with pytest.raises(ValueError, match="a table of scores needs x= and y=; y is missing"):
        pl.gene_scatter(scores, x="ridge")
    with pytest.raises(ValueError, match="gene= is not for a table of scores, which takes x= and y="):
        pl.gene_scatter(scores, x="ridge", y="hggep", gene="GNAS")
    with pytest.raises(ValueError, match="a section needs gene=; gene is missing"):
        pl.gene_scatter(adata)
    with pytest.raises(ValueError, match="x= is not for a section"):
        pl.gene_scatter(adata, gene="GNAS", x="ridge")
    with pytest.raises(TypeError, match="scores must be"):
        pl.gene_scatter(3, x="ridge", y="hggep")


def test_what_cannot_be_drawn_is_named(scores) -> None:
    adata = predicted_section()
    with pytest.raises(ValueError, match="method 'paper' is not in the table; there are"):
        pl.gene_scatter(scores, x="paper", y="hggep")
    with pytest.raises(ValueError, match="metric='auc' is not in the table"):
        pl.gene_scatter(scores, x="ridge", y="hggep", metric="auc")
    with pytest.raises(ValueError, match="no gene has a value of 'pcc' by both 'gene_mean' and 'hggep'"):
        pl.gene_scatter(scores, x="gene_mean", y="hggep")
    with pytest.raises(KeyError, match="'FASN' is not predicted by the model"):
        pl.gene_scatter(adata, gene="FASN")
    with pytest.raises(KeyError, match="no prediction 'ridge'"):
        pl.gene_scatter(adata, gene="GNAS", key="ridge")
    adata.X = None
    with pytest.raises(ValueError, match="no raw counts to draw 'GNAS' against"):
        pl.gene_scatter(adata, gene="GNAS")
