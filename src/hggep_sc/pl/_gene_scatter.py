from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..evaluation.scores import of_metric, require_methods
from ..section import predicted_sections, read_prediction, section_column, table_of
from ._axes import one_axes
from ._expression import OBSERVED, PREDICTED, correlation, read_expression
from ._style import colour, name_of, note_of
from ._tissue import MANY_SPOTS

if TYPE_CHECKING:
    from spatialdata import SpatialData


def gene_scatter(
    data: "AnnData | SpatialData | pd.DataFrame | Any",
    *,
    gene: str | None = None,
    key: str = _keys.KEY,
    observed_layer: str | None = None,
    table_key: str | None = None,
    x: str | None = None,
    y: str | None = None,
    metric: str = "pcc",
    ax: Axes | None = None,
) -> Axes:
    """Draw method against method, a dot per gene (Figure S4), or predicted against observed, a dot per spot.

    Methods are compared in a table of scores: `gene_scatter(scores, x="ridge", y="hggep")`. A gene's value is the
    mean over the sections in which both methods have one, and over seeds.

    A gene is drawn from a section: `gene_scatter(adata, gene="FASN")`, in natural-log expression on the scale of the
    prediction, at the spots that have both; those that were measured for the prediction are left out.

    Parameters
    ----------
    data
        What `hggep_sc.tl.cross_validate` returned, or its `table`; or a section after `hggep_sc.tl.predict`, with raw
        counts.
    gene
        With a section: a predicted gene.
    key
        With a section: name of the prediction.
    observed_layer
        With a section: layer with raw counts; None for the one `predict` was given, else `X`.
    table_key
        With a SpatialData: which of several tables.
    x, y
        With scores: the two methods.
    metric
        With scores: one of the table's metrics.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    The Axes. Of methods: how many genes lie above and below the diagonal is written beside it. Of a gene: the title
    holds the Pearson correlation.

    Raises
    ------
    TypeError
        If `data` is none of these.
    MissingSlotError
        If there is no prediction under `key`, or the gene is not predicted.
    ValueError
        If `x`, `y` or `gene` is missing or belongs to the other kind of data, the prediction is of several sections,
        there are no counts, there is no such metric or method, no gene or spot has both values, or for another
        number of Axes than one.
    """
    section = isinstance(data, AnnData) or hasattr(data, "tables")
    needed, foreign = ({"gene": gene}, {"x": x, "y": y}) if section else ({"x": x, "y": y}, {"gene": gene})
    kind = "a section" if section else "a table of scores"
    for name in (name for name, value in needed.items() if value is None):
        raise ValueError(f"{kind} needs {' and '.join(f'{other}=' for other in needed)}; {name} is missing")
    for name in (name for name, value in foreign.items() if value is not None):
        raise ValueError(f"{name}= is not for {kind}, which takes {' and '.join(f'{other}=' for other in needed)}")
    if gene is not None:
        return _observed_and_predicted(table_of(data, table_key), gene, key, observed_layer, ax)
    rows = of_metric(data, metric)
    return _methods(rows, str(x), str(y), metric, ax)


def _methods(rows: pd.DataFrame, x: str, y: str, metric: str, ax: Axes | None) -> Axes:
    require_methods(rows, [x, y])
    both = (
        rows[rows["method"].isin([x, y])].set_index(["gene", "section", "method"])["value"].unstack("method").dropna()
    )
    if both.empty:
        raise ValueError(f"no gene has a value of {metric!r} by both {x!r} and {y!r} in the same section")
    genes = both.groupby("gene", sort=False).mean()
    n_sections = len(both.index.unique("section"))
    above, below = int((genes[y] > genes[x]).sum()), int((genes[y] < genes[x]).sum())

    ax = one_axes(ax, (4.6, 4.6), "one for both methods")
    ax.scatter(genes[x], genes[y], s=9, color=colour(0), alpha=0.5, linewidth=0, rasterized=len(genes) > MANY_SPOTS)
    low, high = genes[[x, y]].to_numpy().min(), genes[[x, y]].to_numpy().max()
    margin = 0.04 * (high - low) or 0.05
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="0.4", linewidth=1, linestyle="--", zorder=0)
    ax.text(0.03, 0.97, f"{above} genes above", transform=ax.transAxes, va="top")
    ax.text(0.97, 0.03, f"{below} below", transform=ax.transAxes, ha="right")
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel=x, ylabel=y)
    over = f"mean of {n_sections} sections" if n_sections > 1 else str(both.index.unique("section")[0])
    ax.set_title(f"{name_of(metric)} per gene, {over}\n{note_of(metric)}".rstrip(), fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _observed_and_predicted(table: AnnData, gene: str, key: str, observed_layer: str | None, ax: Axes | None) -> Axes:
    expression = read_expression(table, np.arange(table.n_obs), [gene], [key], observed_layer)
    section = _only_section(table, key, np.isfinite(expression.values[PREDICTED][:, 0]))
    if OBSERVED not in expression.values:
        raise ValueError(f"there are no raw counts to draw {gene!r} against; name their layer by observed_layer=")
    observed, predicted = (expression.values[kind][:, 0] for kind in (OBSERVED, PREDICTED))
    seen = np.isfinite(observed) & np.isfinite(predicted) & expression.scored[PREDICTED]
    if not seen.any():
        raise ValueError(f"no spot has both a count and a prediction by {key!r}")

    ax = one_axes(ax, (4.6, 4.2), "one for the gene")
    look: dict[str, Any] = {"color": colour(0), "alpha": 0.4, "linewidth": 0, "rasterized": seen.sum() > MANY_SPOTS}
    ax.scatter(observed[seen], predicted[seen], s=9, **look)
    ends = [max(observed[seen].min(), predicted[seen].min()), min(observed[seen].max(), predicted[seen].max())]
    ax.plot(ends, ends, color="0.4", linewidth=1, linestyle="--", zorder=0, label="equal")
    ax.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    ax.set(xlabel=f"observed, {expression.unit}", ylabel=f"predicted ({key})")
    trained = section in expression.trained[PREDICTED]
    ax.set_title(f"{gene}, {correlation(predicted, observed, seen, trained=trained)}", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _only_section(table: AnnData, key: str, predicted: np.ndarray) -> str | None:
    """Name the section that is predicted, None where no spot is; `predicted` says at which spots.

    Across sections a correlation would hold the differences between them.
    """
    record, _ = read_prediction(table, key)
    column = section_column(table, record.get("library_key"))
    found = table.obs[column][predicted] if column in table.obs else pd.Series(predicted_sections(record, key))
    if len(names := [str(name) for name in found.unique()]) > 1:
        raise ValueError(f"the prediction is of several sections, {', '.join(names)}: pass the spots of one of them")
    return names[0] if names else None
