"""Predictability: dots are the table's figures, coloured by its q."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from hggep_sc import pl


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ceiling = rng.uniform(0.1, 0.9, 40)
    figures = {
        "ceiling_beyond_depth": ceiling,
        "pcc_beyond_depth": ceiling * rng.uniform(-0.1, 0.9, 40),
        "q": np.linspace(0, 1, 40),
    }
    table = pd.DataFrame(figures, index=[f"gene{i}" for i in range(40)])
    table.loc["gene39"] = np.nan
    return table


def test_dots_are_the_figures_and_colours_tell_which_pass(table) -> None:
    ax = pl.predictability(table, alpha=0.2)
    rest, passed = ax.collections
    expected = table.loc[table["q"] < 0.2, ["ceiling_beyond_depth", "pcc_beyond_depth"]]
    np.testing.assert_allclose(passed.get_offsets(), expected)
    assert len(rest.get_offsets()) == 39 - len(expected)
    assert to_rgb(rest.get_facecolor()[0]) != to_rgb(passed.get_facecolor()[0])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [r"q $\geq$ 0.2: 31 genes", "q < 0.2: 8 genes", "noise ceiling"]
    means = table.mean()
    assert ax.get_title() == (
        f"mean PCC {means['pcc_beyond_depth']:.2f} of a mean ceiling of {means['ceiling_beyond_depth']:.2f}"
    )
    line = ax.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())


def test_genes_are_named_where_they_are(table) -> None:
    ax = pl.predictability(table, genes=["gene3", "gene30"])
    found = {text.get_text(): text.xy for text in ax.texts}
    assert set(found) == {"gene3", "gene30"}
    for gene, xy in found.items():
        np.testing.assert_allclose(xy, table.loc[gene, ["ceiling_beyond_depth", "pcc_beyond_depth"]])


@pytest.mark.parametrize("rows", [slice(15), slice(-16, -1)], ids=["lowest", "highest"])
def test_names_of_genes_do_not_cover_each_other(table, within_figure, rows) -> None:
    """Though their dots lie close together, at the bottom or the top."""
    genes = table.sort_values("pcc_beyond_depth").index[rows]
    ax = pl.predictability(table, genes=list(genes))
    within_figure(ax.figure)
    boxes = sorted((Text.get_window_extent(text) for text in ax.texts), key=lambda box: box.y0)  # without lines
    assert len(boxes) == 15
    assert all(above.y0 >= below.y1 - 1 for below, above in pairwise(boxes))


def test_given_axes_are_used_and_a_new_figure_holds_everything(table, within_figure) -> None:
    figure, axes = plt.subplots(1, 2)
    assert pl.predictability(table, ax=axes[0]) is axes[0]
    assert plt.get_fignums() == [figure.number]
    within_figure(pl.predictability(table, genes="gene3").figure)


def test_what_cannot_be_drawn_is_named(table) -> None:
    with pytest.raises(TypeError, match=r"table must be what tl\.predictability returned, not dict"):
        pl.predictability({"q": 1})
    with pytest.raises(ValueError, match="table has no column q: give what"):
        pl.predictability(table.drop(columns="q"))
    with pytest.raises(ValueError, match="there is nothing to draw"):
        pl.predictability(table.loc[["gene39"]])
    with pytest.raises(KeyError, match="genes= names gene39, other, without a row of figures"):
        pl.predictability(table, genes=["gene39", "gene1", "other"])
    with pytest.raises(ValueError, match="alpha=0 must be a finite number above 0"):
        pl.predictability(table, alpha=0)
