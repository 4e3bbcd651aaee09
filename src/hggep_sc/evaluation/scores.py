"""Tables of scores, as users hand them to plots and rankings: read, checked, averaged, compared by fold, ranked."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..errors import ResultWarning
from ..runtime.messages import listed, warn
from ..runtime.validators import text_or_none
from .section_scores import FIGURES, tidy

COLUMNS = ["section", "method", "gene", "metric", "value"]
NAMES = ["fold", "section", "method", "seed", "gene", "metric"]  # what a row is called; not all need be there
PREDICTION, FIT = "prediction", "goodness of fit"  # the method of tables that name none, by the section's role
CONFIDENCE = 0.95
RANKED = {"pval": "pcc_neg_log10_p", "pcc": "pcc"}  # what genes may be ranked by: the metric

By = Literal["pval", "pcc"]


def score_table(scores: Any) -> pd.DataFrame:
    """Return scores as one tidy table.

    Parameters
    ----------
    scores
        What `hggep_sc.tl.cross_validate` returned, or its `table` (columns section, method, gene, metric, value;
        others are averaged over); or a dict: section to the table that `hggep_sc.tl.evaluate` returned. A table of
        several sections is split; they are called by the dict's key, "/" and the section's name.

    Returns
    -------
    A row per figure; names are no categoricals. The method of a dict is called "prediction", and "goodness of fit"
    where the section was in training.

    Raises
    ------
    TypeError
        If `scores` is something else.
    ValueError
        If columns are missing, there is no row, or a section or gene of a dict is there twice.
    """
    if isinstance(scores, Mapping):
        return _plain(_of_sections(scores))
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
    return _plain(table)


def of_metric(scores: Any, metric: str) -> pd.DataFrame:
    """Return one metric: columns section, method, gene, value, the mean over folds and seeds; NaN where undefined.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    return rows_of_metric(scores, metric).groupby(COLUMNS[:3], sort=False)["value"].mean().reset_index()


def rows_of_metric(scores: Any, metric: str) -> pd.DataFrame:
    """Return the rows of one metric as they are.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    table = score_table(scores)
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise ValueError(f"metric={metric!r} is not in the table; there are {listed(table['metric'].unique())}")
    return rows


def per_gene(scores: Any, metric: str) -> pd.DataFrame:
    """Return one metric as (fold, section, gene) x methods, the mean over seeds; NaN where undefined.

    Without a column `fold` each section is its own.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    rows = rows_of_metric(scores, metric)
    if "fold" not in rows:
        rows = rows.assign(fold=rows["section"])
    values = rows.groupby(["fold", "section", "gene", "method"], sort=False)["value"].mean().unstack("method")
    return values[list(rows["method"].unique())]


def per_fold(values: pd.Series) -> pd.Series:
    """Mean over the genes of each section, then over the sections of each fold, of a column of `per_gene`."""
    return values.groupby(["fold", "section"], sort=False).mean().groupby("fold", sort=False).mean()


def t_interval(values: np.ndarray) -> dict[str, float]:
    """Mean with a 95 % interval by Student's t; without one from fewer than two values.

    Parameters
    ----------
    values
        (n_folds,) finite.

    Returns
    -------
    `mean`, `ci_low`, `ci_high`, `sd`, `n_folds`.
    """
    from scipy.stats import t

    n = len(values)
    if n == 0:
        return {"mean": np.nan, "ci_low": np.nan, "ci_high": np.nan, "sd": np.nan, "n_folds": 0}
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if n > 1 else np.nan
    half = t.ppf(0.5 + CONFIDENCE / 2, n - 1) * sd / np.sqrt(n) if n > 1 else np.nan
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "sd": sd, "n_folds": n}


def of_method(scores: Any, method: str | None) -> pd.DataFrame:
    """Return the rows of one method of a tidy table; None where there is one alone.

    Raises
    ------
    ValueError
        If there is no such method, or several and none is chosen.
    """
    text_or_none("method", method)
    table = score_table(scores)
    methods = table["method"].unique()
    if method is None and len(methods) > 1:
        raise ValueError(f"the table holds several methods, choose one by method=: {listed(methods)}")
    require_methods(table, [] if method is None else [method])
    return table if method is None else table[table["method"] == method]


def require_methods(table: pd.DataFrame, methods: list[str]) -> None:
    """Raise a ValueError where a method is not in the table."""
    found = set(table["method"])
    for method in methods:
        if method not in found:
            raise ValueError(f"method {method!r} is not in the table; there are {listed(table['method'].unique())}")


def rank_genes(scores: Any, *, by: By, alpha: float, method: str | None, min_sections: int | None) -> pd.DataFrame:
    """Rank genes across sections; see `hggep_sc.tl.top_genes`."""
    if by not in RANKED:
        raise ValueError(f"by={by!r} is not one of {', '.join(map(repr, RANKED))}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1")
    if min_sections is not None and min_sections < 1:
        raise ValueError(f"min_sections={min_sections} must be 1 or more, or None for all sections")
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
    n_sections = per_section["pcc"].dropna().index.unique("section").size
    ranked = _of_enough_sections(ranked, n_sections, min_sections)
    for rank, mean in {"rank_pcc": "mean_pcc", "rank_p": "mean_neg_log10_p"}.items():
        ranked[rank] = ranked[mean].rank(ascending=False, method="min", na_option="bottom").astype(int)
    first, second = ("rank_p", "rank_pcc") if by == "pval" else ("rank_pcc", "rank_p")
    return ranked.sort_values([first, second], kind="stable")


def _of_enough_sections(ranked: pd.DataFrame, n_sections: int, min_sections: int | None) -> pd.DataFrame:
    """Genes whose means are over as many sections as the others'."""
    if n_sections == 0:
        raise ValueError("no gene has a correlation in any section: there is nothing to rank")
    needed = n_sections if min_sections is None else min_sections
    enough = ranked["n_sections"] >= needed
    if not enough.any():
        most = ranked["n_sections"].max()
        raise ValueError(
            f"no gene has a correlation in {needed} sections; the most is {most}: set min_sections={most} or less"
        )
    if not enough.all():
        warn(
            f"{(~enough).sum()} of {len(enough)} genes are left out, which have a correlation in fewer than {needed} "
            "sections; min_sections= sets that",
            ResultWarning,
        )
    return ranked[enough].copy()


def _of_sections(scores: Mapping[Any, Any]) -> pd.DataFrame:
    if not scores:
        raise ValueError("scores is an empty dict: {section: table of tl.evaluate} is expected")
    tables: dict[str, pd.DataFrame] = {}
    for label, frame in scores.items():
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"scores[{label!r}] must be a table of tl.evaluate; found {type(frame).__name__}")
        if missing := [name for name in FIGURES if name not in frame]:
            raise ValueError(f"scores[{label!r}] is no table of tl.evaluate: it has no column {', '.join(missing)}")
        for name, method, rows in _split(str(label), frame):
            if name in tables:
                raise ValueError(f"scores holds section {name!r} twice; give each another name")
            if not rows.index.is_unique:
                twice = listed(rows.index[rows.index.duplicated()].unique())
                raise ValueError(f"scores[{label!r}] holds genes more than once in section {name!r}: {twice}")
            tables[name] = tidy(rows, fold=name, section=name, method=method, seed=0)
    return pd.concat(tables.values(), ignore_index=True)


def _split(label: str, frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Name, method and rows of each section in a table of `tl.evaluate`."""
    roles = frame.attrs.get("roles", {})
    if "section" not in frame:
        yield label, FIT if set(roles.values()) == {"train"} else PREDICTION, frame
        return
    parts = dict(list(frame.groupby(frame["section"].astype(object), sort=False)))
    for section, rows in parts.items():
        name = label if len(parts) == 1 else f"{label}/{section}"
        yield name, FIT if roles.get(section) == "train" else PREDICTION, rows


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Without categoricals, which would bring back sections, methods and genes that were taken out."""
    kept = [name for name in NAMES if name in table and isinstance(table[name].dtype, pd.CategoricalDtype)]
    return table.astype(dict.fromkeys(kept, object)) if kept else table
