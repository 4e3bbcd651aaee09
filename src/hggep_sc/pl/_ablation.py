import logging
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..scores import of_metric, require_methods
from ._axes import one_axes
from ._style import colour, name_of

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95


def ablation(scores: Any, *, metric: str = "pcc", reference: str, ax: Axes | None = None) -> Axes:
    """Draw what each variant of a method changes, section by section (Figure 4).

    A row per method: its mean over genes in each section (small dots, a thin line joins those of one section), the
    mean over sections (large dot), and how far that is from the reference (text), with a 95 % confidence interval of
    the paired difference, by Student's t over sections. The interval is drawn around the mean: one that reaches the
    dashed line, the reference's mean, leaves open whether there is a difference. Folds share training sections, so
    that it is somewhat too narrow.

    Parameters
    ----------
    scores
        What `hggep_sc.tl.cross_validate` returned, or its `table`.
    metric
        One of the table's metrics.
    reference
        The method that the others are compared with.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    The Axes; the reference comes first, at y = 0.

    Raises
    ------
    TypeError
        If `scores` is none of these.
    ValueError
        If there is no such metric or method, no method beside it, no section that all methods have a value in, or
        for another number of Axes than one.
    """
    rows = of_metric(scores, metric)
    require_methods(rows, [reference])
    values = rows.groupby(["section", "method"], sort=False)["value"].mean().unstack("method")
    values = values.dropna(axis="columns", how="all")
    methods = [reference, *(method for method in rows["method"].unique() if method in values and method != reference)]
    if reference not in values or len(methods) < 2:
        raise ValueError(
            f"there is nothing to compare: {metric!r} is defined for {', '.join(map(str, values)) or 'no method'}"
        )
    if undefined := sorted(set(rows["method"]) - set(methods)):
        logger.warning("%s is undefined for %s, which is left out", metric, ", ".join(undefined))
    paired = values[methods].dropna()
    if paired.empty:
        raise ValueError(f"there is no section in which all of {', '.join(methods)} have a value")
    if len(paired) < len(values):
        lost = [str(section) for section in values.index.difference(paired.index, sort=False)]
        logger.warning("Sections in which a method has no value are left out: %s", ", ".join(lost))

    ax = one_axes(ax, (7.5, 1.2 + 0.5 * len(methods)), "one for all methods")
    base = paired[reference]
    ax.axvline(base.mean(), color="0.4", linestyle="--", linewidth=1, zorder=1)
    for section in paired.index:
        ax.plot(paired.loc[section], np.arange(len(methods)), color="0.8", linewidth=0.8, zorder=0)
    beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": "small"}
    ax.text(1.02, 0, f"difference to {reference}\n[95 % interval]", **beside)
    for y, method in enumerate(methods):
        mean = paired[method].mean()
        ax.plot(paired[method], np.full(len(paired), y), ".", color=colour(y), alpha=0.6, markersize=6)
        ax.plot(mean, y, "o", color=colour(y), markeredgecolor="black", markersize=9, zorder=3)
        if y == 0:
            continue
        difference, low, high = _difference((paired[method] - base).to_numpy())
        label = f"{difference:+.3f}"
        if np.isfinite(low):
            label += f"  [{low:+.3f}, {high:+.3f}]"
            ax.hlines(y, base.mean() + low, base.mean() + high, color="black", linewidth=2, zorder=2)
        ax.text(1.02, y, label.replace("-", "−"), **beside)
    ax.set_yticks(range(len(methods)), methods)
    ax.set(ylim=(len(methods) - 0.5, -0.5), xlabel=f"mean {name_of(metric)} over genes, {len(paired)} sections")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _difference(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean with its interval; without one from a single section."""
    from scipy.stats import sem, t

    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, np.nan, np.nan
    low, high = t.interval(CONFIDENCE, len(differences) - 1, loc=mean, scale=sem(differences))
    return mean, float(low), float(high)
