"""Tables of scores in the forms that plots and rankings take."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from hggep_sc.evaluation import FIGURES
from hggep_sc.scores import of_method, of_metric, score_table


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
