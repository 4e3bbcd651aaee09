import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hggep_sc.cross_validation import CrossValidation
from hggep_sc.cross_validation.result import _everywhere


def scores(values, metric="pcc"):
    """Tidy table of {(fold, section, method, seed): values of genes}."""
    rows = [(*where, f"g{i}", metric, value) for where, of_genes in values.items() for i, value in enumerate(of_genes)]
    table = pd.DataFrame(rows, columns=["fold", "section", "method", "seed", "gene", "metric", "value"])
    folds = pd.DataFrame([{"fold": where[0], "method": where[2], "seed": where[3], "error": ""} for where in values])
    return CrossValidation(table, folds)


def test_summary_is_a_t_interval_over_folds_with_sections_and_seeds_weighing_alike():
    rng = np.random.default_rng(0)
    values = {
        (fold, section, "m", seed): rng.normal(size=7)
        for fold, sections in {"A": ["A1", "A2"], "B": ["B1"], "C": ["C1"]}.items()
        for section in sections
        for seed in (0, 1)
    }
    summary = scores(values).summary().loc["m"]
    per_fold = [
        np.mean([np.mean([values[key].mean() for key in values if key[0] == fold and key[3] == s]) for s in (0, 1)])
        for fold in "ABC"
    ]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(per_fold), scale=stats.sem(per_fold))
    assert summary["mean"] == pytest.approx(np.mean(per_fold), abs=1e-12)
    assert (summary["ci_low"], summary["ci_high"]) == (pytest.approx(low), pytest.approx(high))
    assert summary["n_folds"] == 3


def test_undefined_genes_are_counted_and_not_scored_as_zero():
    result = scores({("A", "A", "m", 0): [0.5, np.nan], ("B", "B", "m", 0): [0.3, 0.1]})
    summary = result.summary().loc["m"]
    assert summary["mean"] == pytest.approx((0.5 + 0.2) / 2)
    assert summary["undefined"] == 0.25
    constant = scores({("A", "A", "m", 0): [np.nan], ("B", "B", "m", 0): [np.nan]}).summary().loc["m"]
    assert np.isnan(constant["mean"])
    assert constant["n_folds"] == 0


def test_comparison_is_paired_by_fold():
    rng = np.random.default_rng(1)
    level = rng.normal(size=6)  # folds differ more than methods do
    values = {}
    for fold in range(6):
        values[f"f{fold}", f"f{fold}", "a", 0] = [level[fold]]
        values[f"f{fold}", f"f{fold}", "b", 0] = [level[fold] + 0.1 + 0.02 * rng.normal()]
    row = scores(values).comparison().iloc[0]
    a, b = ([values[f"f{i}", f"f{i}", m, 0][0] for i in range(6)] for m in "ab")
    assert (row["method"], row["reference"]) == ("b", "a")
    assert row["difference"] == pytest.approx(np.mean(np.subtract(b, a)))
    assert row["pval"] == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert row["n_higher"] == 6
    interval = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_comparison_leaves_out_a_fold_that_one_method_lacks():
    values = {(f, f, m, 0): [v] for f, m, v in [("A", "a", 0.1), ("B", "a", 0.2), ("B", "b", 0.5), ("C", "b", 9.0)]}
    row = scores(values).comparison().iloc[0]
    assert (row["n_folds"], row["difference"]) == (1, pytest.approx(0.3))
    assert np.isnan(row["pval"])


def test_methods_are_compared_on_the_genes_that_both_have_a_value_for():
    """b is better on the gene that both predict; its harder second gene is no reason to call it worse."""
    values = {(f, f, "a", 0): [0.5, np.nan] for f in "AB"} | {(f, f, "b", 0): [0.6, 0.1] for f in "AB"}
    row = scores(values).comparison().iloc[0]
    assert row["difference"] == pytest.approx(0.1)
    assert row["n_higher"] == 2


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match=r"metric='r2' is not in the table; there are 'pcc'"):
        scores({("A", "A", "m", 0): [0.5]}).summary("r2")


def test_a_set_of_genes_has_its_own_mean_and_says_so():
    values = {("A", "A", "m", 0): [0.5, 0.1, np.nan], ("B", "B", "m", 0): [0.3, 0.9, 0.2]}
    result = scores(values)
    summary = result.summary(genes=["g0", "g2"]).loc["m"]
    assert summary["mean"] == pytest.approx((0.5 + 0.25) / 2)
    assert summary["undefined"] == 0.25
    assert summary[["genes", "over", "target"]].tolist() == ["2 named", "each section", "observed"]
    predictive = result.summary(genes="HPG1").loc["m"]
    assert predictive["mean"] == pytest.approx((0.1 + 0.3) / 2)  # g1 is best in B, g0 in A
    assert predictive["genes"] == "HPG1 of the other folds"
    assert {"genes", "over", "target"}.isdisjoint(result.summary())


def test_other_usages_need_what_only_a_run_gives():
    result = scores({("A", "A", "m", 0): [0.5, 0.1]})
    for usage in ({"over": "fold"}, {"over": "all"}, {"smooth": True}):
        with pytest.raises(ValueError, match=r"need the moments of each prediction, .*tl\.cross_validate.*path="):
            result.summary(**usage)
        with pytest.raises(ValueError, match=r"over= and smooth= are about metric='pcc': 'rmse'"):
            scores({("A", "A", "m", 0): [0.5]}, metric="rmse").summary("rmse", **usage)
    assert scores({("A", "A", "m", 0): [0.5]}, metric="rmse").summary("rmse").loc["m", "mean"] == 0.5
    with pytest.raises(ValueError, match="over='slide' is not known; there are 'section', 'fold', 'all'"):
        result.summary(over="slide")
    with pytest.raises(TypeError, match=r"genes=5 must be a list of names"):
        result.summary(genes=5)


def test_over_all_takes_the_genes_of_all_folds():
    genes = {("A", "m"): "abc", ("B", "m"): "bcd", ("A", "n"): "ab", ("B", "n"): "ab"}
    rows = [(fold, fold, method, 0, gene) for (fold, method), of_fold in genes.items() for gene in of_fold]
    moments = pd.DataFrame(rows, columns=["fold", "section", "method", "seed", "gene"])
    kept = _everywhere(moments).groupby("method")["gene"].agg(set)
    assert kept.to_dict() == {"m": set("bc"), "n": set("ab")}
    with pytest.raises(ValueError, match="over='all': 'm' has no gene that was chosen or predicted in all folds"):
        _everywhere(moments[~moments["gene"].isin(["b", "c"]) | (moments["method"] == "n")])
