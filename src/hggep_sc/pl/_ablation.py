from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..errors import ResultWarning
from ..evaluation.scores import per_fold, per_gene, require_methods, rows_of_metric, score_table, t_interval
from ..runtime.messages import listed, warn
from ._axes import one_axes
from ._style import colour, ink, name_of, note_of


def ablation(scores: Any, *, metric: str = "pcc", reference: Any, ax: Axes | None = None) -> Axes:
    """Draw what each variant of a method changes, section by section (Figure 4).

    A row per method: its mean over genes in each section (small dots, a thin line joins those of one section), and
    how far it is from the reference (text), with a 95 % confidence interval. Both are those of
    `CrossValidation.comparison`: differences gene by gene, averaged by fold, by Student's t over folds, so that the
    sections of one patient, left out together, count as one. The large dot is the reference's mean over folds and
    that difference added, which is the method's own mean where both have the same genes. The interval is drawn around
    it: one that reaches the dashed line, the reference's mean, leaves open whether there is a difference. Folds share
    training sections, so that it is somewhat too narrow.

    Parameters
    ----------
    scores
        What `hggep_sc.tl.cross_validate` returned, or its `table`. In a table without a column `fold` each section is
        its own.
    metric
        One of the table's metrics.
    reference
        The method that the others are compared with. Or scores of other methods, such as the published rivals': each
        is a line at its mean over the folds that both have, as in the paper's figure, and the variants are compared
        with the first of their own.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    The Axes; the reference comes first, at y = 0.

    Raises
    ------
    TypeError
        If `scores` or `reference` is none of these.
    ValueError
        If there is no such metric or method, no method that has a gene in common with the reference, no fold that
        rivals have too, or for another number of Axes than one.
    """
    table = score_table(scores)
    rivals = None if isinstance(reference, str) else per_gene(reference, metric)
    reference = reference if rivals is None else str(table["method"].iloc[0])
    require_methods(rows_of_metric(table, metric), [reference])
    values = per_gene(table, metric)
    sections = values.groupby("section", sort=False).mean()
    base = per_fold(values[reference])
    differences = {method: per_fold(values[method] - values[reference]).dropna() for method in values}
    others = [method for method in values if method != reference and len(differences[method])]
    if not others:
        raise ValueError(
            f"there is nothing to compare: no gene has a {metric!r} by both {reference!r} and another method"
        )
    if undefined := [method for method in values if method not in (reference, *others)]:
        warn(f"{metric}: no gene has a value by {reference!r} and by {listed(undefined)}, left out", ResultWarning)
    for method in others:
        if (n := len(differences[method])) < len(base):
            warn(f"{method!r} is compared in {n} of {len(base)} folds, which have both", ResultWarning)

    methods = [reference, *others]
    colours = {method: colour(i) for i, method in enumerate(table["method"].unique())}
    ax = one_axes(ax, (7.5, 1.2 + 0.5 * len(methods)), "one for all methods")
    ax.axvline(base.mean(), color="0.4", linestyle="--", linewidth=1, zorder=1)
    if rivals is not None:
        _draw_rivals(ax, rivals, base.index)
    for section in sections.index:
        ax.plot(sections.loc[section, methods], np.arange(len(methods)), color="0.8", linewidth=0.8, zorder=0)
    beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": "small"}
    ax.text(1.02, 0, f"difference to {reference}\n[95 % interval]", **beside)
    for y, method in enumerate(methods):
        interval = t_interval(differences[method].to_numpy())
        look: dict[str, Any] = {"color": colours[method], "zorder": 3}  # above the interval
        dots = sections[method].dropna()
        ax.plot(dots, np.full(len(dots), y), ".", markersize=8, markeredgecolor="white", markeredgewidth=0.6, **look)
        ax.plot(base.mean() + interval["mean"], y, "o", markeredgecolor="black", markersize=9, **look)
        if method == reference:
            continue
        label = f"{interval['mean']:+.3f}"
        if interval["n_folds"] > 1:
            low, high = interval["ci_low"], interval["ci_high"]
            label += f"  [{low:+.3f}, {high:+.3f}]"
            ax.hlines(y, base.mean() + low, base.mean() + high, color=ink(), linewidth=2, zorder=2)
        ax.text(1.02, y, label.replace("-", "−"), **beside)
    ax.set_yticks(range(len(methods)), map(str, methods))
    over = f"{len(sections)} sections" + (f" in {len(base)} folds" if len(base) != len(sections) else "")
    xlabel = f"mean {name_of(metric)} over genes, {over}\n{note_of(metric)}".rstrip()
    ax.set(ylim=(len(methods) - 0.5, -0.5), xlabel=xlabel)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _draw_rivals(ax: Axes, rivals: pd.DataFrame, folds: pd.Index) -> None:
    """Draw a line for each other method at its mean over folds, named above the rows."""
    above: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "rotation": 40, "rotation_mode": "anchor"}
    for method in rivals:
        of_folds = per_fold(rivals[method]).dropna()
        shared = of_folds[of_folds.index.isin(folds)]
        if shared.empty:
            raise ValueError(f"{method!r} has no fold in common with scores: {listed(of_folds.index)}, {listed(folds)}")
        if len(shared) < len(folds):
            warn(f"the line of {method!r} is its mean over {len(shared)} of {len(folds)} folds", ResultWarning)
        ax.axvline(shared.mean(), color="0.4", linestyle=":", linewidth=1.5, zorder=1, label=str(method))
        ax.text(shared.mean(), 1.02, str(method), fontsize="small", **above)
