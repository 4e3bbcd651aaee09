"""Tables of scores in the forms that plots and rankings take."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hggep_sc.evaluation.scores import of_method, of_metric, per_fold, per_gene, rank_genes, score_table, t_interval
from hggep_sc.evaluation.section_scores import FIGURES


def evaluated(seed: int) -> pd.DataFrame:
    values = np.random.default_rng(seed).uniform(size=(4, len(FIGURES)))
    return pd.DataFrame(values, index=list("abcd"), columns=list(FIGURES))


def test_tables_of_evaluate_become_one() -> None:
    tables = {"S1": evaluated(0), "S2": evaluated(1).assign(section="S2")}
    table = score_table(tables)
    assert len(table) == 2 * 4 * len(FIGURES)
    for section, metric, gene in [("S1", "pcc", "b"), ("S2", "ceiling", "d")]:
        row = table[(table["section"] == section) & (table["metric"] == metric) & (table["gene"] == gene)]
        assert row["value"].item() == tables[section].loc[gene, metric]
    assert set(of_method(tables, None)["method"]) == {"prediction"}


def test_a_cross_validation_is_its_table() -> None:
    table = score_table({"S1": evaluated(0)})
    assert score_table(SimpleNamespace(table=table)) is table
    assert score_table(table) is table


def test_a_metric_is_averaged_over_seeds_and_keeps_what_is_undefined() -> None:
    table = pd.concat([score_table({"S1": evaluated(seed)}).assign(seed=seed) for seed in (0, 1)])
    table.loc[(table["gene"] == "c") & (table["metric"] == "pcc"), "value"] = np.nan
    rows = of_metric(table, "pcc").set_index("gene")
    expected = (evaluated(0)["pcc"] + evaluated(1)["pcc"]) / 2
    np.testing.assert_allclose(rows["value"], expected.where(expected.index != "c"))
    assert list(rows.columns) == ["section", "method", "value"]


def both_of_one_object() -> pd.DataFrame:
    """What `tl.evaluate` returns of an object with two sections."""
    return pd.concat([evaluated(seed).assign(section=name) for seed, name in enumerate(["A", "B"])])


def test_a_table_of_several_sections_is_split() -> None:
    whole = both_of_one_object()
    table = score_table({"mine": whole, "other": evaluated(2)})
    assert list(table["section"].unique()) == ["mine/A", "mine/B", "other"]
    values = of_metric(table, "pcc").set_index(["section", "gene"])["value"]
    for section, rows in whole.groupby("section"):
        np.testing.assert_array_equal(values[f"mine/{section}"], rows["pcc"])
    grouped = score_table(dict(list(whole.astype({"section": "category"}).groupby("section", observed=True))))
    assert list(grouped["section"].unique()) == ["A", "B"]
    with pytest.raises(ValueError, match="scores holds section 'mine/A' twice"):
        score_table({"mine": whole, "mine/A": evaluated(3)})
    with pytest.raises(ValueError, match=r"scores\['mine'\] holds genes more than once in section 'mine': 'a', 'b'"):
        score_table({"mine": whole.drop(columns="section")})


def test_sections_in_training_are_goodness_of_fit() -> None:
    whole, one, unknown = both_of_one_object(), evaluated(2), evaluated(3)
    whole.attrs["roles"] = {"A": "train", "B": "held out"}
    one.attrs["roles"] = {"a name of its own": "train"}
    unknown.attrs["roles"] = {"C": "unknown"}
    expected = {
        "x/A": "goodness of fit",
        "x/B": "prediction",
        "y": "goodness of fit",
        "z": "prediction",
        "w": "prediction",
    }
    table = score_table({"x": whole, "y": one, "z": unknown, "w": evaluated(4)})
    assert dict(zip(table["section"], table["method"], strict=True)) == expected
    parts = score_table(dict(list(whole.groupby("section"))))
    assert dict(zip(parts["section"], parts["method"], strict=True)) == {"A": "goodness of fit", "B": "prediction"}


def test_folds_weigh_sections_alike_and_sections_their_genes() -> None:
    rng = np.random.default_rng(0)
    sizes = {("P", "S1"): 3, ("P", "S2"): 50, ("Q", "S3"): 7}
    values = {(*where, m, seed): rng.normal(size=n) for where, n in sizes.items() for m in "ba" for seed in (0, 1)}
    rows = [[*names, f"g{i}", "pcc", value] for names, of_genes in values.items() for i, value in enumerate(of_genes)]
    table = pd.DataFrame(rows, columns=["fold", "section", "method", "seed", "gene", "metric", "value"])
    found = per_gene(table, "pcc")
    assert list(found) == ["b", "a"]
    of_gene = {(f, s): (values[f, s, "a", 0] + values[f, s, "a", 1]) / 2 for f, s in sizes}
    assert found.loc[("P", "S2", "g31"), "a"] == pytest.approx(of_gene["P", "S2"][31])
    s1, s2, s3 = (of_gene[where].mean() for where in sizes)
    np.testing.assert_allclose(per_fold(found["a"])[["P", "Q"]], [(s1 + s2) / 2, s3])
    without = per_fold(per_gene(table.drop(columns=["fold", "seed"]), "pcc")["a"])
    np.testing.assert_allclose(without[["S1", "S2", "S3"]], [s1, s2, s3])


def test_intervals_are_students() -> None:
    values = np.array([0.2, 0.5, 0.3, 0.35])
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([found["mean"], found["ci_low"], found["ci_high"]], [values.mean(), low, high])
    assert (found["sd"], found["n_folds"]) == (pytest.approx(values.std(ddof=1)), 4)
    one = t_interval(values[:1])
    assert one["mean"] == 0.2
    assert np.isnan([one["ci_low"], one["sd"]]).all()
    assert t_interval(values[:0])["n_folds"] == 0


def test_rankings_hold_no_genes_or_sections_of_a_larger_table() -> None:
    table = score_table({"S1": evaluated(0), "S2": evaluated(1)})
    kinds = dict.fromkeys(["fold", "section", "method", "seed", "gene", "metric"], "category")
    few = table.astype(kinds)[(table["section"] == "S2") & table["gene"].isin(["a", "c"])]
    ranked = rank_genes(few, by="pcc", alpha=0.05, method=None, min_sections=None)
    assert sorted(ranked.index) == ["a", "c"]
    assert set(ranked["n_sections"]) == {1}
    assert list(per_gene(few, "pcc").index.unique("section")) == ["S2"]
    indexed = evaluated(0).set_axis(pd.CategoricalIndex(list("abcd"), categories=list("abcdef")))
    assert len(rank_genes({"S1": indexed}, by="pcc", alpha=0.05, method=None, min_sections=None)) == 4


def test_categorical_columns_bring_no_rows_of_their_own() -> None:
    table = score_table({"S1": evaluated(0), "S2": evaluated(1)})
    table = table.astype(dict.fromkeys(["section", "method", "gene", "metric"], "category"))
    assert len(of_metric(table[table["section"] == "S2"], "pcc")) == 4


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (3, TypeError, "found int"),
        ({}, ValueError, "empty dict"),
        ({"S1": 3}, TypeError, r"scores\['S1'\] must be a table of tl.evaluate; found int"),
        ({"S1": evaluated(0).drop(columns=["ssim"])}, ValueError, "no column ssim"),
        (evaluated(0), ValueError, r"no column section, method, gene, metric, value.*as a dict"),
        (score_table({"S1": evaluated(0)}).iloc[:0], ValueError, "no rows"),
    ],
)
def test_what_is_no_table_of_scores_is_refused(scores, error, message) -> None:
    with pytest.raises(error, match=message):
        score_table(scores)


def test_unknown_names_are_listed() -> None:
    with pytest.raises(ValueError, match="metric='auc' is not in the table; there are 'pcc'"):
        of_metric({"S1": evaluated(0)}, "auc")
    with pytest.raises(ValueError, match="method 'ridge' is not in the table; there are 'prediction'"):
        of_method({"S1": evaluated(0)}, "ridge")
    with pytest.raises(TypeError, match=r"method=.* must be a name"):
        of_method({"S1": evaluated(0)}, ["ridge"])
