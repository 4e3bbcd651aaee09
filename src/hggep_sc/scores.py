"""Tables of scores, as users hand them to plots and rankings: read, checked, averaged over seeds, ranked."""

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd

from .evaluation import FIGURES, tidy

COLUMNS = ["section", "method", "gene", "metric", "value"]
UNNAMED = "prediction"  # the method of tables that name none
RANKED = {"pval": "pcc_neg_log10_p", "pcc": "pcc"}  # what genes may be ranked by: the metric

By = Literal["pval", "pcc"]


def score_table(scores: Any) -> pd.DataFrame:
    """Return scores as one tidy table.

    Parameters
    ----------
    scores
        What `hggep_sc.tl.cross_validate` returned, or its `table` (columns section, method, gene, metric, value;
        others are averaged over); or a dict: section to the table that `hggep_sc.tl.evaluate` returned.

    Returns
    -------
    A row per figure. The method of a dict is called "prediction".

    Raises
    ------
    TypeError
        If `scores` is something else.
    ValueError
        If columns are missing, or there is no row.
    """
    if isinstance(scores, Mapping):
        return _of_sections(scores)
    table = getattr(scores, "table", scores)
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            "scores must be the result of tl.cross_validate, its table, or a dict of section -> table of tl.evaluate; "
            f"found {type(scores).__name__}"
        )
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(
            f"the table of scores has no column {', '.join(missing)}; its columns: {', '.join(map(str, table))}. "
            "Tables of tl.evaluate go in as a dict: {section: table}"
        )
    if table.empty:
        raise ValueError("the table of scores has no rows")
    return table


def of_metric(scores: Any, metric: str) -> pd.DataFrame:
    """Return one metric: columns section, method, gene, value, the mean over folds and seeds; NaN where undefined.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    rows = rows_of_metric(score_table(scores), metric)
    return rows.groupby(COLUMNS[:3], sort=False, observed=True)["value"].mean().reset_index()


def rows_of_metric(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows of one metric of a tidy table.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise ValueError(f"metric={metric!r} is not in the table; there are {_listed(table['metric'])}")
    return rows


def of_method(scores: Any, method: str | None) -> pd.DataFrame:
    """Return the rows of one method of a tidy table; None where there is one alone.

    Raises
    ------
    ValueError
        If there is no such method, or several and none is chosen.
    """
    table = score_table(scores)
    methods = table["method"].unique()
    if method is None and len(methods) > 1:
        raise ValueError(f"the table holds several methods, choose one by method=: {_listed(methods)}")
    require_methods(table, [] if method is None else [method])
    return table if method is None else table[table["method"] == method]


def require_methods(table: pd.DataFrame, methods: list[str]) -> None:
    """Raise a ValueError where a method is not in the table."""
    found = set(table["method"])
    for method in methods:
        if method not in found:
            raise ValueError(f"method {method!r} is not in the table; there are {_listed(table['method'])}")


def rank_genes(scores: Any, *, by: By, alpha: float, method: str | None) -> pd.DataFrame:
    """Rank genes across sections; see `hggep_sc.tl.top_genes`."""
    if by not in RANKED:
        raise ValueError(f"by={by!r} is not one of {', '.join(map(repr, RANKED))}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1")
    table = of_method(scores, method)
    columns = {metric: of_metric(table, metric) for metric in ("pcc", "pcc_neg_log10_p", "pcc_padj")}
    per_section = pd.DataFrame(
        {metric: rows.set_index(["gene", "section"])["value"] for metric, rows in columns.items()}
    )
    per_section["significant"] = (per_section["pcc_padj"] < alpha) & (per_section["pcc"] > 0)
    of_gene = per_section.groupby("gene", sort=False)
    ranked = pd.DataFrame(
        {
            "mean_pcc": of_gene["pcc"].mean(),
            "mean_neg_log10_p": of_gene["pcc_neg_log10_p"].mean(),
            "n_sections": of_gene["pcc"].count(),
            "n_significant": of_gene["significant"].sum(),
        }
    )
    for rank, mean in {"rank_pcc": "mean_pcc", "rank_p": "mean_neg_log10_p"}.items():
        ranked[rank] = ranked[mean].rank(ascending=False, method="min", na_option="bottom").astype(int)
    first, second = ("rank_p", "rank_pcc") if by == "pval" else ("rank_pcc", "rank_p")
    return ranked.sort_values([first, second], kind="stable")


def _of_sections(scores: Mapping[Any, Any]) -> pd.DataFrame:
    if not scores:
        raise ValueError("scores is an empty dict: {section: table of tl.evaluate} is expected")
    for section, frame in scores.items():
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"scores[{section!r}] must be a table of tl.evaluate; found {type(frame).__name__}")
        if missing := [name for name in FIGURES if name not in frame]:
            raise ValueError(f"scores[{section!r}] is no table of tl.evaluate: it has no column {', '.join(missing)}")
    tables = [tidy(frame, fold="", section=str(section), method=UNNAMED, seed=0) for section, frame in scores.items()]
    return pd.concat(tables, ignore_index=True)


def _listed(values: Any) -> str:
    return ", ".join(repr(str(value)) for value in pd.unique(pd.Series(values)))
