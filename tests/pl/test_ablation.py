"""Ablations: means, paired differences and their intervals against SciPy's paired t-test."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from scipy.stats import ttest_rel

from hggep_sc import pl


def section_means(scores: pd.DataFrame, metric: str = "pcc") -> pd.DataFrame:
    rows = scores[scores["metric"] == metric]
    genes = rows.groupby(["section", "method", "gene"])["value"].mean()
    return genes.groupby(["section", "method"]).mean().unstack("method")


def row_of(ax, method: str) -> int:
    return [label.get_text() for label in ax.get_yticklabels()].index(method)


def test_points_and_intervals_are_the_paired_ones(scores) -> None:
    scores = scores[scores["method"] != "gene_mean"]
    extra = scores[scores["method"] == "ridge"].assign(method="other")
    extra.loc[extra["section"] == "S2", "value"] += 0.04
    scores = pd.concat([scores, extra])
    ax = pl.ablation(scores, reference="hggep")
    means = section_means(scores)
    assert row_of(ax, "hggep") == 0
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the reference is on top
    large = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"}
    small = {line.get_ydata()[0]: line.get_xdata() for line in ax.lines if line.get_marker() == "."}
    bars = {
        c.get_segments()[0][0, 1]: c.get_segments()[0][:, 0] for c in ax.collections if isinstance(c, LineCollection)
    }
    texts = {text.get_position()[1]: text.get_text() for text in ax.texts}
    assert set(bars) == {1, 2}
    for method in ("hggep", "ridge", "other"):
        y = row_of(ax, method)
        np.testing.assert_allclose(large[y], means[method].mean())
        np.testing.assert_allclose(np.sort(small[y]), np.sort(means[method]))
        if y:
            test = ttest_rel(means[method], means["hggep"])
            low, high = test.confidence_interval(0.95)
            np.testing.assert_allclose(bars[y], means["hggep"].mean() + np.array([low, high]))
            difference = (means[method] - means["hggep"]).mean()
            assert texts[y] == f"{difference:+.3f}  [{low:+.3f}, {high:+.3f}]".replace("-", "−")


def test_the_reference_marks_its_mean(scores) -> None:
    ax = pl.ablation(scores, metric="rmse", reference="ridge")
    (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(line.get_xdata(), section_means(scores, "rmse")["ridge"].mean())
    assert ax.get_xlabel() == "mean RMSE, natural log units over genes, 3 sections"


def test_lines_join_the_sections(scores) -> None:
    ax = pl.ablation(scores, metric="rmse", reference="ridge")
    methods = [label.get_text() for label in ax.get_yticklabels()]
    joined = [line.get_xdata() for line in ax.lines if len(line.get_ydata()) == 3 and line.get_marker() == "None"]
    expected = section_means(scores, "rmse")[methods].to_numpy()
    np.testing.assert_allclose(sorted(map(tuple, joined)), sorted(map(tuple, expected)))


def test_only_sections_that_all_methods_have_are_compared(scores, caplog) -> None:
    lost = scores[(scores["section"] != "S2") | (scores["method"] != "ridge")]
    ax = pl.ablation(lost, reference="hggep")
    means = section_means(scores).loc[["S1", "S3"]]
    (dots,) = [line for line in ax.lines if line.get_marker() == "." and line.get_ydata()[0] == 0]
    np.testing.assert_allclose(np.sort(dots.get_xdata()), np.sort(means["hggep"]))
    assert "Sections in which a method has no value are left out: S2" in caplog.text
    assert "pcc is undefined for gene_mean" in caplog.text


def test_one_section_has_no_interval(scores) -> None:
    ax = pl.ablation(scores[scores["section"] == "S1"], reference="hggep")
    assert not ax.collections
    assert "[" not in ax.texts[-1].get_text()


def test_long_names_fit(scores, within_figure) -> None:
    names = {"ridge": "hggep without gradient enhancement and attention", "hggep": "hggep", "gene_mean": "gene_mean"}
    ax = pl.ablation(scores.assign(method=scores["method"].map(names)), reference="hggep")
    within_figure(ax.figure)


def test_given_axes_and_bad_input(scores) -> None:
    figure, axes = plt.subplots(1, 2)
    assert pl.ablation(scores, reference="hggep", ax=axes[0]) is axes[0]
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="ax has 2 Axes, but 1 are needed"):
        pl.ablation(scores, reference="hggep", ax=axes)
    with pytest.raises(ValueError, match="method 'HGGEP' is not in the table; there are"):
        pl.ablation(scores, reference="HGGEP")
    with pytest.raises(ValueError, match="metric='auc' is not in the table"):
        pl.ablation(scores, reference="hggep", metric="auc")
    with pytest.raises(ValueError, match="nothing to compare: 'pcc' is defined for ridge"):
        pl.ablation(scores[scores["method"] != "hggep"], reference="ridge")
    apart = scores[(scores["section"] == "S1") ^ (scores["method"] == "ridge")]
    with pytest.raises(ValueError, match="no section in which all of hggep, ridge have a value"):
        pl.ablation(apart[apart["method"] != "gene_mean"], reference="hggep")
