"""Bars of the best genes: the numbers of `tl.top_genes`, and every section's own."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from hggep_sc import pl, tl


@pytest.mark.parametrize(
    ("by", "mean", "metric"), [("pcc", "mean_pcc", "pcc"), ("pval", "mean_neg_log10_p", "pcc_neg_log10_p")]
)
def test_bars_are_means_and_dots_are_sections(scores, by, mean, metric) -> None:
    ranked = tl.top_genes(scores, by=by, method="hggep")
    ax = pl.top_genes(scores, by=by, method="hggep", n=30)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(ranked.index)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], ranked[mean])
    np.testing.assert_allclose([bar.get_y() + bar.get_height() / 2 for bar in ax.patches], range(29))
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the best on top
    rows = scores[(scores["method"] == "hggep") & (scores["metric"] == metric)]
    sections = rows.groupby(["gene", "section"])["value"].mean().dropna()
    dots = {line.get_ydata()[0]: line.get_xdata() for line in ax.lines if line.get_marker() == "."}
    texts = {text.get_position()[1]: text.get_text() for text in ax.texts}
    assert texts[-1] == "adj. p < 0.05, r > 0"
    for y, gene in enumerate(ranked.index):
        np.testing.assert_allclose(np.sort(dots[y]), np.sort(sections[gene]))
        assert texts[y] == f"{ranked['n_significant'][gene]}/{len(sections[gene])}"


def test_as_many_as_asked_for(scores) -> None:
    assert len(pl.top_genes(scores, method="hggep").patches) == 10
    assert len(pl.top_genes(scores, method="hggep", n=3).patches) == 3
    assert len(pl.top_genes(scores, method="hggep", n=99).patches) == 29  # one is constant in a section
    assert len(pl.top_genes(scores, method="hggep", n=99, min_sections=2).patches) == 30


def test_genes_of_a_larger_table_do_not_come_back(scores) -> None:
    names = dict.fromkeys(["section", "method", "gene", "metric"], "category")
    few = scores.astype(names)[scores["gene"].isin(["gene1", "gene2"]) & (scores["section"] != "S3")]
    ax = pl.top_genes(few, method="ridge")
    assert sorted(label.get_text() for label in ax.get_yticklabels()) == ["gene1", "gene2"]
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [2, 2]


def test_long_names_fit(scores, within_figure) -> None:
    scores["gene"] = "ENSG00000012048.23-" + scores["gene"]
    within_figure(pl.top_genes(scores, method="hggep", n=30).figure)


def test_given_axes_and_bad_input(scores) -> None:
    figure, axes = plt.subplots(1, 2)
    assert pl.top_genes(scores, method="ridge", ax=axes[0]) is axes[0]
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="ax has 2 Axes, but 1 are needed: one for all genes"):
        pl.top_genes(scores, method="ridge", ax=axes)
    with pytest.raises(ValueError, match="several methods, choose one by method="):
        pl.top_genes(scores)
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        pl.top_genes(scores, method="ridge", n=0)
    with pytest.raises(ValueError, match="no gene has a correlation in any section"):
        pl.top_genes(scores, method="gene_mean")
