from typing import Any

from matplotlib.axes import Axes

from ..evaluation.scores import RANKED, By, of_method, of_metric, rank_genes
from ..runtime.validators import whole
from ._axes import one_axes
from ._style import colour, ink, name_of


def top_genes(
    scores: Any,
    *,
    n: int = 10,
    by: By = "pval",
    alpha: float = 0.05,
    method: str | None = None,
    min_sections: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the genes that are predicted best across sections (Figure 5 of the paper).

    Bars hold each gene's mean over all its sections, dots its sections, the figures on the right in how many of them
    it was significant (adjusted p) with a positive correlation.

    Parameters
    ----------
    scores, by, alpha, method, min_sections
        As in `hggep_sc.tl.top_genes`.
    n
        How many genes.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    The Axes; the best gene is on top, at y = 0.

    Raises
    ------
    TypeError, ValueError
        As in `hggep_sc.tl.top_genes`; also if `n` is less than 1, or for another number of Axes than one.
    """
    n = whole("n", n)
    ranked = rank_genes(scores, by=by, alpha=alpha, method=method, min_sections=min_sections)
    mean = "mean_pcc" if by == "pcc" else "mean_neg_log10_p"
    best = ranked.head(n)
    metric = RANKED[by]
    sections = of_metric(of_method(scores, method), metric).set_index("gene")["value"]
    ax = one_axes(ax, (6, 1.2 + 0.28 * len(best)), "one for all genes")
    beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": "small"}
    ax.barh(range(len(best)), best[mean], color=colour(5), height=0.7)
    for y, gene in enumerate(best.index):
        values = sections.loc[[gene]].dropna()
        ax.plot(
            values, [y] * len(values), ".", color="black", markersize=6, markeredgecolor="white", markeredgewidth=0.5
        )
        label = f"{best['n_significant'][gene]}/{best['n_sections'][gene]}"
        ax.text(1.02, y, label, **beside)
    ax.text(1.02, -1, f"adj. p < {alpha:g}, r > 0", **beside)
    ax.set_yticks(range(len(best)), best.index)
    ax.set(ylim=(len(best) - 0.5, -0.5), xlabel=f"{name_of(metric)} (mean and sections)")
    ax.axvline(0, color=ink(), linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
