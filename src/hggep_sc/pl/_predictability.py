from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..runtime.validators import number
from ._arguments import names
from ._axes import one_axes
from ._style import colour, ink
from ._tissue import MANY_SPOTS

X, Y = "ceiling_beyond_depth", "pcc_beyond_depth"
NEEDED = (X, Y, "q")
LINE = 0.045  # height of a gene's name, of the axes


def predictability(
    table: pd.DataFrame, *, genes: str | Sequence[str] | None = None, alpha: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Draw what a probe reaches of each gene against what its counts allow, both beyond depth, a dot per gene.

    Dots on the dashed line reach their noise ceiling. Those that pass are drawn in colour.

    Parameters
    ----------
    table
        What `hggep_sc.tl.predictability` returned, or some of its rows.
    genes
        Those to be named in the plot.
    alpha
        A gene passes where its `q` is below.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    The Axes. The legend holds how many genes pass, and how many are left; the title the mean correlation over the mean
    ceiling.

    Raises
    ------
    TypeError
        If `table` is no table.
    ValueError
        If it lacks a column, no gene has both figures, or for another number of Axes than one.
    KeyError
        If a gene that is to be named is not in the table.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be what tl.predictability returned, not {type(table).__name__}")
    if missing := [column for column in NEEDED if column not in table]:
        raise ValueError(f"table has no column {', '.join(missing)}: give what tl.predictability returned")
    alpha = number("alpha", alpha, above=0, most=1)
    named = [] if genes is None else names(genes, "genes", "a gene")
    known = table.dropna(subset=list(NEEDED))
    if known.empty:
        raise ValueError("no gene of the table has a correlation and a ceiling: there is nothing to draw")
    if lacking := [gene for gene in named if gene not in known.index]:
        raise KeyError(f"genes= names {', '.join(lacking)}, without a row of figures in the table")

    ax = one_axes(ax, (4.8, 4.6), "one for all genes")
    passed = known["q"] < alpha
    look: dict[str, Any] = {"s": 10, "linewidth": 0, "rasterized": len(known) > MANY_SPOTS}
    kinds = {f"q $\\geq$ {alpha:g}": (~passed, "0.65"), f"q < {alpha:g}": (passed, colour(0))}
    for label, (rows, shade) in kinds.items():
        dots = known[rows]
        ax.scatter(dots[X], dots[Y], color=shade, alpha=0.6, label=f"{label}: {len(dots)} genes", **look)
    highest = 1.05 * float(np.nanmax(known[[X, Y]].to_numpy()))
    ax.plot([0, highest], [0, highest], color=ink(), linewidth=1, linestyle="--", zorder=0, label="noise ceiling")
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    means = known[[X, Y]].mean()
    ax.set_title(f"mean PCC {means[Y]:.2f} of a mean ceiling of {means[X]:.2f}", fontsize="medium")
    ax.set(xlabel="noise ceiling beyond depth", ylabel="PCC of the held-out probe beyond depth")
    ax.set_xlim(left=0 if known[X].min() < 0.15 * highest else None)
    ax.legend(fontsize="small", frameon=False, loc="upper left", handletextpad=0.4)
    ax.spines[["top", "right"]].set_visible(False)
    _name(ax, known.loc[named])
    return ax


def _name(ax: Axes, genes: pd.DataFrame) -> None:
    """Ring some dots, and write their names beside the axes, one below the other, with a line to each."""
    genes = genes.sort_values(Y)
    low, high = ax.get_ylim()
    heights = (genes[Y].to_numpy() - low) / (high - low)
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + LINE)
    for i in reversed(range(len(heights))):  # down again, where they would leave the axes
        heights[i] = min(heights[i], heights[i + 1] - LINE if i + 1 < len(heights) else 1)
    for (gene, row), height in zip(genes.iterrows(), heights, strict=True):
        at = float(row[X]), float(row[Y])
        ax.scatter(*at, s=22, facecolor="none", edgecolor=ink(), linewidth=1)
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2.5}
        beside: dict[str, Any] = {"xytext": (1.03, height), "textcoords": "axes fraction", "va": "center"}
        ax.annotate(str(gene), at, arrowprops=line, fontsize="small", **beside)
