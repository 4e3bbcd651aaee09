from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ._axes import GivenAxes, given_axes
from ._style import LINES, colour, ink

if TYPE_CHECKING:
    from ..methods.hggep import HGGEP

SCORE = "validation_pcc"


def history(model: "HGGEP", *, ax: GivenAxes = None) -> list[Axes]:
    """Draw the loss and its terms by epoch and, with a validation set, its correlation in a panel below.

    The epoch with the best validation correlation, whose weights the model keeps, is marked.

    Parameters
    ----------
    model
        What `hggep_sc.tl.fit` returned.
    ax
        Axes to draw on, two with a validation set and one without; None for a new figure.

    Returns
    -------
    The Axes: of the loss, then of the validation correlation if there is one.

    Raises
    ------
    TypeError
        If `model` has no history table.
    ValueError
        If the history is empty, or for another number of Axes than needed.
    """
    table = getattr(model, "history", None)
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"model must be an HGGEP, as tl.fit and HGGEP.load return it, not {type(model).__name__}")
    if not len(table):
        raise ValueError("the model has no history: it was not trained by hggep_sc")
    validated = SCORE in table and bool(table[SCORE].notna().any())
    n = 2 if validated else 1
    if ax is None:
        _, made = plt.subplots(n, 1, figsize=(7.5, 1.4 + 2 * n), sharex=True, layout="constrained", squeeze=False)
        axes = list(made.ravel())
    else:
        what = "the loss" + (" and the validation correlation" if validated else "")
        axes = given_axes(ax, n, what)

    epoch = table["epoch"]
    marker = "." if len(table) <= 20 else None  # a line of one point is not seen
    terms = [name for name in table if name not in ("epoch", "loss", SCORE)]
    axes[0].plot(epoch, table["loss"], color=ink(), marker=marker, label="loss (weighted sum)")
    for i, name in enumerate(terms):
        style = {"color": colour(i), "linestyle": LINES[i % len(LINES)]}
        axes[0].plot(epoch, table[name], **style, marker=marker, label=name)
    axes[0].set_ylabel("training loss")
    if validated:
        best = int(np.nanargmax(table[SCORE]))
        at, score = epoch.iloc[best], table[SCORE].iloc[best]
        axes[1].plot(epoch, table[SCORE], color=colour(0), marker=marker)
        axes[1].plot(at, score, "o", color=colour(1), label=f"best: {score:.3f} in epoch {at:.0f}")
        axes[1].set_ylabel("validation PCC")
        for panel in axes:
            panel.axvline(at, color="0.6", linewidth=1, zorder=0)
    for panel in axes:
        panel.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves
        panel.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("epoch")
    return axes
