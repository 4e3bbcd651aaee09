"""Box and violin plots: what is drawn is worked out anew from the table."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch

from hggep_sc import pl
from hggep_sc.evaluation.section_scores import FIGURES

DRAWN = [(section, method) for section in ("S1", "S2", "S3") for method in ("ridge", "hggep")]


def values(scores: pd.DataFrame, section: str, method: str, metric: str = "pcc") -> np.ndarray:
    rows = scores[(scores["section"] == section) & (scores["method"] == method) & (scores["metric"] == metric)]
    return rows.groupby("gene")["value"].mean().dropna().to_numpy()


def boxes(ax) -> dict[tuple[str, str], PathPatch]:
    """Boxes by section and method, told by their place and colour."""
    named = {to_hex(handle.get_facecolor()): handle.get_label() for handle in ax.get_legend().get_patches()}
    sections = [label.get_text() for label in ax.get_xticklabels()]
    found = {}
    for box in (patch for patch in ax.patches if isinstance(patch, PathPatch)):
        x = box.get_path().vertices[:, 0].mean()
        found[sections[round(x)], named[to_hex(box.get_facecolor())]] = box
    return found


def legend_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_boxes_are_quartiles_with_median_and_mean(scores) -> None:
    ax = pl.metrics(scores, ceiling=False)
    drawn = boxes(ax)
    assert set(drawn) == set(DRAWN)
    medians = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.4]
    means = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert len(medians) == len(means) == len(DRAWN)
    for names, box in drawn.items():
        expected = values(scores, *names)
        x, y = box.get_path().vertices[:4].T
        np.testing.assert_allclose([y.min(), y.max()], np.percentile(expected, [25, 75]))
        (median,) = [line for line in medians if x.min() - 1e-9 <= np.mean(line.get_xdata()) <= x.max() + 1e-9]
        (mean,) = [line for line in means if x.min() <= line.get_xdata()[0] <= x.max()]
        np.testing.assert_allclose(median.get_ydata(), np.median(expected))
        np.testing.assert_allclose(mean.get_ydata(), expected.mean())


@pytest.mark.parametrize("kind", ["box", "violin"])
def test_the_median_is_seen_on_any_colour(scores, kind) -> None:
    """The eighth colour is black; the first, on which black is seen, keeps its line."""
    ridge = scores[scores["method"] == "ridge"]
    ax = pl.metrics(pd.concat([ridge.assign(method=f"m{i}") for i in range(8)]), kind=kind, ceiling=False)
    if kind == "box":
        lines = [line.get_color() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.4]
        per_method = lines[:: len(lines) // 8]
    else:
        bars = [lines for lines in ax.collections if isinstance(lines, LineCollection)]
        per_method = [to_hex(lines.get_color()[0]) for lines in bars if np.ptp(lines.get_segments()[0][:, 0]) == 0]
        per_method = per_method[:: len(per_method) // 8]
    assert to_hex(per_method[-1]) == "#ffffff"
    assert {to_hex(line) for line in per_method[:-1]} == {"#000000"}


def test_boxes_do_not_overlap_and_stay_in_their_section(scores) -> None:
    spans = sorted(
        (p.get_path().vertices[:4, 0].min(), p.get_path().vertices[:4, 0].max())
        for p in boxes(pl.metrics(scores)).values()
    )
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end < start
    assert [round(np.mean(span)) for span in spans] == [0, 0, 1, 1, 2, 2]


def test_violins_have_the_same_figures(scores) -> None:
    ax = pl.metrics(scores, kind="violin", ceiling=False)
    assert len([c for c in ax.collections if isinstance(c, PolyCollection)]) == len(DRAWN)
    segments = [c.get_segments()[0] for c in ax.collections if isinstance(c, LineCollection)]
    upright = {tuple(s[:, 1].round(6)) for s in segments if np.ptp(s[:, 0]) == 0}
    level = {round(s[0, 1], 6) for s in segments if np.ptp(s[:, 0]) > 0}
    for names in DRAWN:
        low, median, high = np.percentile(values(scores, *names), [25, 50, 75]).round(6)
        assert (low, high) in upright
        assert median in level


def test_a_method_without_any_value_is_named(scores) -> None:
    assert "gene_mean: undefined" in legend_of(pl.metrics(scores))
    assert ("S1", "gene_mean") in boxes(pl.metrics(scores, metric="rmse"))


def test_the_ceiling_is_the_median_of_the_section(scores) -> None:
    ax = pl.metrics(scores)
    (ceiling,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert "noise ceiling\n(median)" in legend_of(ax)
    sections = [label.get_text() for label in ax.get_xticklabels()]
    for (left, right), section in zip(ceiling.get_segments(), sections, strict=True):
        assert round((left[0] + right[0]) / 2) == sections.index(section)
        np.testing.assert_allclose([left[1], right[1]], np.median(values(scores, section, "ridge", "ceiling")))
    assert not [c for c in pl.metrics(scores, metric="rmse").collections if isinstance(c, LineCollection)]
    assert not [c for c in pl.metrics(scores, ceiling=False).collections if isinstance(c, LineCollection)]
    without = pl.metrics(scores[scores["metric"] != "ceiling"])
    assert not [c for c in without.collections if isinstance(c, LineCollection)]


def test_reference_figures_stand_beside_the_boxes(scores) -> None:
    published = pd.DataFrame(
        {"section": ["S1", "S3", "S9", "S1"], "method": ["A", "A", "A", "B"], "value": [0.3, 0.2, 0.9, 0.1]}
    )
    ax = pl.metrics(scores, reference=published)
    lines = {line.get_label(): line for line in ax.lines if line.get_label() in ("A", "B")}
    assert set(lines) == {"A", "B"} == set(legend_of(ax)) & {"A", "B"}
    np.testing.assert_array_equal(lines["A"].get_ydata(), [0.3, 0.2])
    assert [round(x) for x in lines["A"].get_xdata()] == [0, 2]
    assert lines["A"].get_marker() != lines["B"].get_marker()
    right = max(box.get_path().vertices[:4, 0].max() for names, box in boxes(ax).items() if names[0] == "S1")
    assert right < lines["A"].get_xdata()[0] < lines["B"].get_xdata()[0] < 0.5


def test_tables_of_evaluate_go_in_as_a_dict(scores) -> None:
    one = scores[(scores["method"] == "hggep") & (scores["seed"] == 0)]
    figures = list(FIGURES)
    tables = {
        section: rows.pivot(index="gene", columns="metric", values="value").reindex(columns=figures)
        for section, rows in one.groupby("section")
    }
    assert set(boxes(pl.metrics(tables))) == {(section, "prediction") for section in tables}


def test_sections_in_training_are_marked(scores) -> None:
    one = scores[(scores["method"] == "hggep") & (scores["seed"] == 0)]
    figures = list(FIGURES)
    tables = {
        section: rows.pivot(index="gene", columns="metric", values="value").reindex(columns=figures)
        for section, rows in one.groupby("section")
    }
    for section, role in {"S1": "train", "S2": "held out", "S3": "train"}.items():
        tables[section].attrs["roles"] = {section: role}
    marked = {("S1", "goodness of fit"), ("S2", "prediction"), ("S3", "goodness of fit")}
    assert set(boxes(pl.metrics(tables))) == marked


@pytest.mark.parametrize("kind", ["box", "violin"])
def test_what_was_taken_out_of_a_table_stays_out(kind, scores) -> None:
    names = dict.fromkeys(["fold", "section", "method", "gene", "metric"], "category")
    few = scores.astype(names)[(scores["section"] != "S2") & (scores["method"] != "ridge")]
    ax = pl.metrics(few, kind=kind)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["S1", "S3"]
    assert sorted(legend_of(ax)) == ["gene_mean: undefined", "hggep", "mean", "noise ceiling\n(median)"]


def test_a_metric_says_how_it_is_read(scores) -> None:
    assert pl.metrics(scores).get_ylabel() == "PCC per gene"
    assert pl.metrics(scores, metric="rmse").get_ylabel() == "RMSE per gene\n(natural log units, lower is better)"


def test_a_method_without_the_metric_keeps_the_others_colours(scores) -> None:
    scores = scores.sort_values("method", kind="stable")
    without = scores[(scores["method"] != "gene_mean") | (scores["metric"] != "rmse")]
    everything, rest = (pl.metrics(table, metric="rmse").get_legend().get_patches() for table in (scores, without))
    colours = {patch.get_label(): patch.get_facecolor() for patch in everything}
    assert [patch.get_label() for patch in rest] == ["gene_mean: undefined", "hggep", "ridge"]
    assert all(patch.get_facecolor() == colours[patch.get_label()] for patch in rest[1:])


@pytest.mark.parametrize("kind", ["box", "violin"])
def test_long_names_and_a_single_value_fit(kind, scores, within_figure) -> None:
    long = {s: f"a section with quite a long name, {s}" for s in ("S1", "S2", "S3")}
    scores = scores.assign(section=scores["section"].map(long))
    once = scores[(scores["section"] != long["S1"]) | (scores["gene"] == "gene0")]
    within_figure(pl.metrics(once, kind=kind).figure)


def test_the_callers_axes_are_drawn_on(scores) -> None:
    figure, axes = plt.subplots(1, 2)
    assert pl.metrics(scores, ax=axes[1]) is axes[1]
    assert plt.get_fignums() == [figure.number]
    assert not axes[0].has_data()
    with pytest.raises(ValueError, match="ax has 2 Axes, but 1 are needed: one for all sections"):
        pl.metrics(scores, ax=axes)


def test_what_cannot_be_drawn_is_named(scores) -> None:
    with pytest.raises(ValueError, match="metric='auc' is not in the table; there are"):
        pl.metrics(scores, metric="auc")
    with pytest.raises(ValueError, match="kind='bars' is not one of 'box', 'violin'"):
        pl.metrics(scores, kind="bars")
    with pytest.raises(ValueError, match="'pcc' is NaN for every gene"):
        pl.metrics(scores[scores["method"] == "gene_mean"])
    with pytest.raises(ValueError, match="reference has no column value"):
        pl.metrics(scores, reference=pd.DataFrame({"section": ["S1"], "method": ["A"]}))
    with pytest.raises(ValueError, match="none of the sections drawn, which are S1, S2, S3"):
        pl.metrics(scores, reference=pd.DataFrame({"section": ["B1"], "method": ["A"], "value": [0.1]}))
    with pytest.raises(TypeError, match="reference must be a table, not dict"):
        pl.metrics(scores, reference={})
    with pytest.raises(TypeError, match="scores must be"):
        pl.metrics([scores])
    assert not plt.get_fignums()
