from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..evaluation.scores import of_metric, score_table
from ._axes import one_axes
from ._style import MARKERS, colour, ink, line_on, name_of, note_of

Kind = Literal["box", "violin"]

GROUP = 0.84  # of the distance between sections that their boxes take
WIDEST = 16.0  # inches of a figure of our own


def metrics(
    scores: Any,
    *,
    metric: str = "pcc",
    kind: Kind = "box",
    reference: pd.DataFrame | None = None,
    ceiling: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw how a metric is distributed over genes, section by section and method by method (Figures 2 and 3).

    Boxes reach from quartile to quartile, with a line at the median, a dot at the mean and whiskers of at most 1.5
    times the box; violins have the same line, dot and a bar between the quartiles. A gene's value is the mean over
    its seeds. Genes without a value are left out; a method that has none at all is named in the legend.

    Parameters
    ----------
    scores
        What `hggep_sc.tl.cross_validate` returned, or its `table`; or a dict: section to the table that
        `hggep_sc.tl.evaluate` returned, whose method is called "prediction", or "goodness of fit" where the section
        was in training.
    metric
        One of the table's metrics.
    kind
        "box" or "violin".
    reference
        Figures to compare with, such as published means over genes: a table with columns section, method and value,
        drawn as markers beside the boxes. Sections that are not drawn are left out.
    ceiling
        With `metric="pcc"`, draw the median noise ceiling of each section's genes, where the table holds it.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    The Axes; section i is at x = i.

    Raises
    ------
    TypeError
        If `scores` is none of these.
    ValueError
        If there is no such metric or kind, no value at all, `reference` lacks a column or shares no section with the
        table, or for another number of Axes than one.
    """
    if kind not in ("box", "violin"):
        raise ValueError(f"kind={kind!r} is not one of 'box', 'violin'")
    table = score_table(scores)
    rows = of_metric(table, metric)
    sections, methods = list(rows["section"].unique()), list(table["method"].unique())
    if reference is not None:
        reference = _of_sections(reference, sections)
    by_box = {
        names: values
        for names, group in rows.groupby(["section", "method"], sort=False)["value"]
        if len(values := group.dropna().to_numpy())
    }
    defined = [method for method in methods if any((section, method) in by_box for section in sections)]
    if not defined:
        raise ValueError(f"metric {metric!r} is NaN for every gene: there is nothing to draw")
    n_slots = len(defined) + (reference is not None)
    width = min(WIDEST, 3 + 0.34 * len(sections) * n_slots)
    longest = max(len(str(section)) for section in sections)
    height = 4 + 0.06 * max(0, longest - 12)  # long names are turned
    ax = one_axes(ax, (width, height), "one for all sections")

    slot = GROUP / n_slots
    handles: list[Any] = []
    for i, method in enumerate(methods):
        if method not in defined:
            handles.append(Patch(facecolor="none", edgecolor="none", label=f"{method}: undefined"))
            continue
        look: dict[str, Any] = {"facecolor": colour(i), "edgecolor": "black", "linewidth": 0.8}
        left = -GROUP / 2 + (defined.index(method) + 0.5) * slot
        drawn = {j + left: by_box[s, method] for j, s in enumerate(sections) if (s, method) in by_box}
        (_boxes if kind == "box" else _violins)(ax, drawn, 0.8 * slot, look)
        handles.append(Patch(**look, label=method))
    handles += ax.plot([], [], "o", color="white", markeredgecolor="black", markersize=4, label="mean")
    if reference is not None:
        handles += _draw_reference(ax, reference, sections, GROUP / 2 - slot / 2, slot)
    if ceiling and metric == "pcc" and (table["metric"] == "ceiling").any():
        handles.append(_draw_ceiling(ax, table, sections))

    if min(values.min() for values in by_box.values()) < 0:
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlim=(-0.5, len(sections) - 0.5), xlabel="section")
    ax.set_ylabel(f"{name_of(metric)} per gene\n{note_of(metric)}".rstrip())
    ax.set_xticks(range(len(sections)), sections, **_turned(ax, sections))
    for j in range(1, len(sections)):
        ax.axvline(j - 0.5, color="0.9", linewidth=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(handles=handles, fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _of_sections(reference: pd.DataFrame, sections: list[Any]) -> pd.DataFrame:
    if not isinstance(reference, pd.DataFrame):
        raise TypeError(f"reference must be a table, not {type(reference).__name__}")
    missing = [column for column in ("section", "method", "value") if column not in reference]
    if missing:
        raise ValueError(f"reference has no column {', '.join(missing)}; it needs section, method and value")
    drawn = reference[reference["section"].isin(sections)]
    if drawn.empty:
        raise ValueError(f"reference holds none of the sections drawn, which are {', '.join(map(str, sections))}")
    return drawn


def _boxes(ax: Axes, drawn: dict[float, np.ndarray], width: float, look: dict[str, Any]) -> None:
    ax.boxplot(
        list(drawn.values()),
        positions=list(drawn),
        widths=width,
        manage_ticks=False,
        patch_artist=True,
        showmeans=True,
        boxprops=look,
        medianprops={"color": line_on(look["facecolor"]), "linewidth": 1.4},
        meanprops={"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 4},
        whiskerprops={"linewidth": 0.8},
        capprops={"linewidth": 0.8},
        flierprops={"marker": ".", "markersize": 3, "markerfacecolor": "0.5", "markeredgecolor": "none"},
    )


def _violins(ax: Axes, drawn: dict[float, np.ndarray], width: float, look: dict[str, Any]) -> None:
    drawing: Any = ax.violinplot(list(drawn.values()), positions=list(drawn), widths=width, showextrema=False)
    for body in drawing["bodies"]:
        body.set(**look, alpha=1)
    line = line_on(look["facecolor"])
    for x, values in drawn.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        ax.vlines(x, low, high, color=line, linewidth=1.4)
        ax.hlines(median, x - width / 4, x + width / 4, color=line, linewidth=1.4)
        ax.plot(x, values.mean(), "o", color="white", markeredgecolor="black", markersize=4)


def _draw_reference(ax: Axes, reference: pd.DataFrame, sections: list[Any], at: float, slot: float) -> list[Any]:
    """Markers side by side in the last place of each section."""
    methods = list(reference["method"].unique())
    shifts = (np.arange(len(methods)) + 0.5) / len(methods) * slot - slot / 2
    handles = []
    for i, (method, shift) in enumerate(zip(methods, shifts, strict=True)):
        rows = reference[reference["method"] == method]
        x = [sections.index(section) + at + shift for section in rows["section"]]
        look: dict[str, Any] = {
            "linestyle": "",
            "marker": MARKERS[i % len(MARKERS)],
            "color": "0.45",
            "markeredgecolor": "black",
        }
        handles += ax.plot(x, rows["value"], **look, markersize=5, markeredgewidth=0.6, label=method)
    return handles


def _draw_ceiling(ax: Axes, table: pd.DataFrame, sections: list[Any]) -> Any:
    genes = of_metric(table, "ceiling").groupby(["section", "gene"], sort=False)["value"].mean()
    heights = genes.groupby("section").median().reindex(sections)
    at = np.arange(len(sections))
    look: dict[str, Any] = {"color": ink(), "linestyle": (0, (4, 2)), "linewidth": 1.2}
    return ax.hlines(heights, at - GROUP / 2, at + GROUP / 2, **look, label="noise ceiling\n(median)")


def _turned(ax: Axes, names: list[Any]) -> dict[str, Any]:
    """Names that do not fit side by side are turned."""
    inches = ax.get_window_extent().width / ax.figure.dpi / len(names)
    if max(len(str(name)) for name in names) * 0.09 < inches:
        return {}
    return {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
