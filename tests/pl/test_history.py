"""Training curves: the lines hold the history's numbers, and the best epoch is the best."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hggep_sc import pl


def trained(*, validated: bool, epochs: int = 12) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.uniform(size=(epochs, 4)), columns=["loss", "mse", "zinb", "correlation"])
    table.insert(0, "epoch", np.arange(epochs))
    if validated:
        table["validation_pcc"] = rng.uniform(size=epochs)
    return SimpleNamespace(history=table)


@pytest.mark.parametrize("validated", [False, True])
def test_every_term_is_drawn(validated) -> None:
    model = trained(validated=validated)
    axes = pl.history(model)
    assert len(axes) == 1 + validated
    lines = {line.get_label(): line for line in axes[0].lines}
    for name, label in {"loss": "loss (weighted sum)"}.items() | {n: n for n in ("mse", "zinb", "correlation")}.items():
        np.testing.assert_array_equal(lines[label].get_ydata(), model.history[name])
        np.testing.assert_array_equal(lines[label].get_xdata(), model.history["epoch"])
    assert [text.get_text() for text in axes[0].get_legend().get_texts()][1:] == [
        "mse",
        "zinb",
        "correlation",
    ]
    looks = {(lines[name].get_color(), lines[name].get_linestyle()) for name in ("mse", "zinb", "correlation")}
    assert len(looks) == 3
    assert axes[-1].get_xlabel() == "epoch"


@pytest.mark.parametrize("first", [np.nan, 0.1])
def test_the_best_epoch_is_marked(first) -> None:
    model = trained(validated=True)
    score = np.full(12, 0.2)
    score[[0, 8, 9]] = first, 0.7, 0.7  # of equals the first is kept
    model.history["validation_pcc"] = score
    axes = pl.history(model)
    curve, point, _ = axes[1].lines
    np.testing.assert_array_equal(curve.get_ydata(), score)
    assert (point.get_xdata(), point.get_ydata()) == ([8], [0.7])
    assert axes[1].get_legend().get_texts()[0].get_text() == "best: 0.700 in epoch 8"
    for ax in axes:
        assert list(ax.lines[-1].get_xdata()) == [8, 8]


def test_a_history_of_one_epoch_is_visible() -> None:
    axes = pl.history(trained(validated=True, epochs=1))
    axes[0].figure.canvas.draw()
    assert axes[0].lines[0].get_marker() != "None"
    (low, high), ticks = axes[0].get_xlim(), axes[0].get_xticks()
    assert [tick for tick in ticks if low <= tick <= high] == [0]


def test_given_axes() -> None:
    _, axes = plt.subplots(1, 2)
    n_figures = len(plt.get_fignums())
    assert pl.history(trained(validated=True), ax=axes) == list(axes)
    assert pl.history(trained(validated=False), ax=plt.figure().add_subplot())
    assert len(plt.get_fignums()) == n_figures + 1
    with pytest.raises(ValueError, match="1 Axes, but 2 are needed: the loss and the validation correlation"):
        pl.history(trained(validated=True), ax=axes[0])


def test_what_has_no_history_is_refused() -> None:
    with pytest.raises(TypeError, match="HGGEP"):
        pl.history(object())
    with pytest.raises(ValueError, match="no history"):
        pl.history(SimpleNamespace(history=pd.DataFrame()))
    assert not plt.get_fignums()
