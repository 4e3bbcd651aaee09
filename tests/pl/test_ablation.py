"""Ablations: means, paired differences and their intervals against SciPy's paired t-test."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from scipy.stats import ttest_rel

from hggep_sc import CrossValidation, pl


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
    assert ax.get_xlabel() == "mean RMSE over genes, 3 sections\n(natural log units, lower is better)"
    assert pl.ablation(scores, reference="ridge").get_xlabel() == "mean PCC over genes, 3 sections"


def test_rivals_are_lines_at_their_means(scores) -> None:
    variants = scores[scores["method"] == "hggep"]
    variants = pd.concat([variants, variants.assign(method="no hypergraph", value=variants["value"] - 0.02)])
    rivals = scores[scores["method"] == "ridge"]
    ax = pl.ablation(variants, reference=CrossValidation(rivals, pd.DataFrame()))
    assert row_of(ax, "hggep") == 0  # what the variants are compared with
    (line,) = [line for line in ax.lines if line.get_label() == "ridge"]
    np.testing.assert_allclose(line.get_xdata(), section_means(scores)["ridge"].mean())
    assert [text.get_position()[0] for text in ax.texts if text.get_text() == "ridge"] == [line.get_xdata()[0]]


def test_rivals_of_other_folds_are_refused_and_of_fewer_said(scores, warned) -> None:
    rivals = scores[scores["method"] == "ridge"]
    with pytest.raises(ValueError, match="'ridge' has no fold in common"):
        pl.ablation(scores, reference=rivals.assign(section="elsewhere", fold="elsewhere"))
    pl.ablation(scores, reference=rivals[rivals["section"] != "S1"])
    assert "mean over 2 of 3 folds" in warned.text


def test_lines_join_the_sections(scores) -> None:
    ax = pl.ablation(scores, metric="rmse", reference="ridge")
    methods = [label.get_text() for label in ax.get_yticklabels()]
    joined = [line.get_xdata() for line in ax.lines if len(line.get_ydata()) == 3 and line.get_marker() == "None"]
    expected = section_means(scores, "rmse")[methods].to_numpy()
    np.testing.assert_allclose(sorted(map(tuple, joined)), sorted(map(tuple, expected)))


def patients(scores: pd.DataFrame) -> pd.DataFrame:
    """Six sections of three patients, a fold each; ridge and hggep differ by patient, little within one."""
    scores = scores[scores["method"] != "gene_mean"]
    again = scores.assign(section=scores["section"].map({"S1": "S4", "S2": "S5", "S3": "S6"}))
    fold_of = {"S1": "P", "S4": "P", "S2": "Q", "S5": "Q", "S3": "R", "S6": "R"}
    both = pd.concat([scores, again])
    both["fold"] = both["section"].map(fold_of)
    shift = both["fold"].map({"P": 0.0, "Q": 0.1, "R": 0.3}) + both["section"].isin(["S4", "S5"]) * 0.01
    both["value"] += shift * (both["method"] == "hggep")
    constant = (both["method"] == "ridge") & (both["section"] == "S6") & both["gene"].isin(["gene1", "gene7"])
    return both.assign(value=both["value"].mask(constant))


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("kind", ["plain", "category"])
def test_the_comparison_is_that_of_the_cross_validation(scores, lost, kind, warned) -> None:
    table = patients(scores)
    if lost:
        table = table[(table["fold"] != "Q") | (table["method"] != "ridge")]
    (row,) = CrossValidation(table, pd.DataFrame()).comparison("pcc").itertuples()
    assert (row.method, row.reference) == ("hggep", "ridge")
    if kind == "category":
        names = scores.assign(section="S0", fold="O", method="other", gene="none", metric="none")
        table = pd.concat([names, table]).astype(
            dict.fromkeys(["fold", "section", "method", "gene", "metric"], "category")
        )
        table = table[table["section"] != "S0"]
    ax = pl.ablation(table, reference="ridge")
    label = f"{row.difference:+.3f}  [{row.ci_low:+.3f}, {row.ci_high:+.3f}]".replace("-", "−")
    assert {text.get_position()[1]: text.get_text() for text in ax.texts}[1] == label
    (bar,) = [c.get_segments()[0] for c in ax.collections if isinstance(c, LineCollection)]
    base = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"}
    np.testing.assert_allclose(bar[:, 0] - base[0], [row.ci_low, row.ci_high])
    np.testing.assert_allclose(base[1] - base[0], row.difference)
    small = {line.get_ydata()[0]: len(line.get_xdata()) for line in ax.lines if line.get_marker() == "."}
    assert small == {0: 4 if lost else 6, 1: 6}
    assert ax.get_xlabel() == "mean PCC over genes, 6 sections in 3 folds"
    assert ("'hggep' is compared in 2 of 3 folds" in warned.text) == lost


def test_without_folds_each_section_is_its_own(scores) -> None:
    with_folds, without = (pl.ablation(t, reference="hggep") for t in (scores, scores.drop(columns="fold")))
    assert [text.get_text() for text in without.texts] == [text.get_text() for text in with_folds.texts]


def test_methods_that_cannot_be_compared_are_named(scores, warned) -> None:
    ax = pl.ablation(scores, reference="hggep")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["hggep", "ridge"]
    assert "pcc: no gene has a value by 'hggep' and by 'gene_mean', left out" in warned.text


def test_dots_lie_above_the_interval_and_have_the_colours_of_pl_metrics(scores) -> None:
    ax = pl.ablation(scores, reference="hggep")
    (bar,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    dots = [line for line in ax.lines if line.get_marker() in (".", "o")]
    assert len(dots) == 4
    assert min(line.get_zorder() for line in dots) > bar.get_zorder()
    boxes = {p.get_label(): to_hex(p.get_facecolor()) for p in pl.metrics(scores).get_legend().get_patches()}
    for line in dots:
        assert to_hex(line.get_color()) == boxes[("hggep", "ridge")[line.get_ydata()[0]]]


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
    with pytest.raises(ValueError, match="no gene has a 'pcc' by both 'ridge' and another method"):
        pl.ablation(scores[scores["method"] != "hggep"], reference="ridge")
    apart = scores[(scores["section"] == "S1") ^ (scores["method"] == "ridge")]
    with pytest.raises(ValueError, match="no gene has a 'pcc' by both 'hggep' and another method"):
        pl.ablation(apart[apart["method"] != "gene_mean"], reference="hggep")
