"""Plots in a style of the user's: what is drawn on the background is seen on it."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from hggep_sc import pl

HISTORY = SimpleNamespace(history=pd.DataFrame({"epoch": range(30), "loss": np.linspace(1, 0, 30)}))


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda scores: pl.history(HISTORY)[0],
        lambda scores: pl.metrics(scores),
        lambda scores: pl.ablation(scores, reference="ridge"),
    ],
)
def test_lines_differ_from_the_background(draw, style, scores) -> None:
    with plt.style.context(style):
        ax = draw(scores)
    background = to_rgb(ax.get_facecolor())
    inside = {line for line in ax.lines if line.get_linestyle() != "None"}
    drawn = [line.get_color() for line in inside if len(line.get_xdata()) > 1 and not _in_a_box(line, ax)]
    drawn += [colour for lines in ax.collections if isinstance(lines, LineCollection) for colour in lines.get_color()]
    assert drawn
    for colour in drawn:
        assert np.abs(np.subtract(to_rgb(colour), background)).max() > 0.05


def _in_a_box(line, ax) -> bool:
    """Whether it is the median of a box, on whose colour it lies."""
    return any(patch.get_path().get_extents().contains(*line.get_xydata().mean(axis=0)) for patch in ax.patches)
