"""Ranking of genes: compared with the numbers worked out gene by gene."""

import numpy as np
import pandas as pd
import pytest

from hggep_sc import tl
from hggep_sc.evaluation.section_scores import FIGURES

NAN = np.nan
# gene: (PCC, -log10 p, adjusted p) in three sections
VALUES = {
    "steady": [(0.4, 4, 0.001), (0.4, 4, 0.001), (0.4, 4, 0.001)],
    "lucky": [(0.9, 9, 1e-6), (-0.1, 0.3, 0.8), (0.1, 0.3, 0.8)],
    "constant once": [(0.5, 5, 0.01), (NAN, NAN, NAN), (0.3, 1, 0.2)],
    "upside down": [(-0.6, 8, 1e-5), (-0.6, 8, 1e-5), (-0.6, 8, 1e-5)],
    "constant": [(NAN, NAN, NAN)] * 3,
}


def table(method: str = "hggep") -> pd.DataFrame:
    names = ["pcc", "pcc_neg_log10_p", "pcc_padj"]
    rows = [
        {"fold": f"S{i}", "section": f"S{i}", "method": method, "seed": 0, "gene": gene, "metric": name, "value": value}
        for gene, sections in VALUES.items()
        for i, figures in enumerate(sections)
        for name, value in zip(names, figures, strict=True)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_means_are_over_every_section_of_the_gene_itself() -> None:
    ranked = tl.top_genes(table(), by="pcc", min_sections=1)
    assert list(ranked.index) == ["steady", "constant once", "lucky", "upside down"]
    assert ranked.index.name == "gene"
    for gene in ranked.index:
        pcc, log_p, padj = np.array(VALUES[gene]).T
        there = np.isfinite(pcc)
        row = ranked.loc[gene]
        assert row["n_sections"] == there.sum()
        assert row["n_significant"] == ((padj < 0.05) & (pcc > 0)).sum()
        assert row["mean_pcc"] == pytest.approx(pcc[there].mean())
        assert row["mean_neg_log10_p"] == pytest.approx(log_p[there].mean())


def test_genes_that_lack_a_section_are_not_ranked_against_the_others(warned) -> None:
    rows = table()
    once = rows[(rows["gene"] == "lucky") & (rows["section"] == "S0")].assign(gene="of one fold")
    ranked = tl.top_genes(pd.concat([rows, once]), by="pcc")
    assert list(ranked.index) == ["steady", "lucky", "upside down"]
    assert list(ranked["rank_pcc"]) == [1, 2, 3]
    assert "3 of 6 genes are left out, which have a correlation in fewer than 3 sections" in warned.text
    warned.clear()
    assert tl.top_genes(pd.concat([rows, once]), by="pcc", min_sections=1).index[0] == "of one fold"
    assert "1 of 6 genes are left out" in warned.text


def test_sections_without_any_correlation_are_not_missed(warned) -> None:
    rows = table()
    nothing = rows[rows["section"] == "S0"].assign(section="S3", value=NAN)
    pd.testing.assert_frame_equal(tl.top_genes(pd.concat([rows, nothing])), tl.top_genes(rows))


def test_both_ranks_are_given_and_one_sorts() -> None:
    by_p, by_pcc = tl.top_genes(table(), min_sections=2), tl.top_genes(table(), by="pcc", min_sections=2)
    assert list(by_p.index) == ["upside down", "steady", "lucky", "constant once"]
    assert list(by_p["rank_p"]) == list(by_pcc["rank_pcc"]) == [1, 2, 3, 4]
    pd.testing.assert_frame_equal(by_p, by_pcc.loc[by_p.index])


def test_alpha_sets_what_is_significant() -> None:
    assert tl.top_genes(table(), alpha=0.25, min_sections=2).loc["constant once", "n_significant"] == 2
    assert tl.top_genes(table(), alpha=1e-4).loc["steady", "n_significant"] == 0


def test_seeds_are_averaged_within_a_section() -> None:
    other = table().assign(seed=1)
    other.loc[other["metric"] == "pcc", "value"] -= 0.2
    once, twice = tl.top_genes(table()), tl.top_genes(pd.concat([table(), other]))
    np.testing.assert_allclose(twice["mean_pcc"], once["mean_pcc"] - 0.1)
    assert list(twice["n_sections"]) == list(once["n_sections"])


def test_significance_is_by_the_mean_of_adjusted_p_over_seeds() -> None:
    other = table().assign(seed=1)
    other.loc[(other["metric"] == "pcc_padj") & (other["gene"] == "steady"), "value"] = 0.2
    assert tl.top_genes(pd.concat([table(), other]), alpha=0.1).loc["steady", "n_significant"] == 0
    assert tl.top_genes(pd.concat([table(), other]), alpha=0.11).loc["steady", "n_significant"] == 3


def test_training_sections_are_not_ranked_with_the_others() -> None:
    values = np.random.default_rng(0).uniform(size=(2, 3, len(FIGURES)))
    seen, new = (pd.DataFrame(v, list("abc"), list(FIGURES)) for v in values)
    seen.attrs["roles"], new.attrs["roles"] = {"S1": "train"}, {"S2": "held out"}
    with pytest.raises(ValueError, match="choose one by method=: 'goodness of fit', 'prediction'"):
        tl.top_genes({"S1": seen, "S2": new})
    fit = tl.top_genes({"S1": seen, "S2": new}, by="pcc", method="goodness of fit")
    np.testing.assert_array_equal(fit["mean_pcc"], np.sort(seen["pcc"])[::-1])


def test_tables_of_evaluate() -> None:
    rng = np.random.default_rng(0)
    tables = {
        name: pd.DataFrame(rng.uniform(size=(20, len(FIGURES))), [f"g{i}" for i in range(20)], list(FIGURES))
        for name in ("S1", "S2")
    }
    ranked = tl.top_genes(tables, by="pcc")
    expected = (tables["S1"]["pcc"] + tables["S2"]["pcc"]) / 2
    assert list(ranked.index) == list(expected.sort_values(ascending=False).index)
    np.testing.assert_allclose(ranked["mean_pcc"], expected[ranked.index])


def test_one_method_at_a_time() -> None:
    other = table("ridge")
    other["value"] *= 0.5
    both = pd.concat([table(), other])
    pd.testing.assert_frame_equal(tl.top_genes(both, method="hggep"), tl.top_genes(table()))
    with pytest.raises(ValueError, match="several methods, choose one by method=: 'hggep', 'ridge'"):
        tl.top_genes(both)
    with pytest.raises(ValueError, match="method 'paper' is not in the table; there are 'hggep', 'ridge'"):
        tl.top_genes(both, method="paper")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="by='p' is not one of 'pval', 'pcc'"):
        tl.top_genes(table(), by="p")
    with pytest.raises(ValueError, match="alpha=5"):
        tl.top_genes(table(), alpha=5)
    with pytest.raises(ValueError, match="min_sections=0 must be 1 or more"):
        tl.top_genes(table(), min_sections=0)
    with pytest.raises(ValueError, match="in 4 sections; the most is 3: set min_sections=3 or less"):
        tl.top_genes(table(), min_sections=4)
    with pytest.raises(ValueError, match="no gene has a correlation in any section"):
        tl.top_genes(table().assign(value=NAN))
    with pytest.raises(ValueError, match="metric='pcc_padj' is not in the table"):
        tl.top_genes(table()[table()["metric"] != "pcc_padj"])
