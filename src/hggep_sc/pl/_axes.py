from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

GivenAxes: TypeAlias = Axes | Sequence[Axes] | np.ndarray | None


def given_axes(ax: Any, n: int, what: str) -> list[Axes]:
    """Flat list of the caller's Axes, of which there must be `n`; `what` says what for."""
    axes = list(np.asarray(ax, dtype=object).ravel())
    wrong = [type(item).__name__ for item in axes if not isinstance(item, Axes)]
    if wrong:
        raise TypeError(f"ax must be matplotlib Axes, or a list or array of them; found {wrong[0]}")
    if len(axes) != n:
        raise ValueError(f"ax has {len(axes)} Axes, but {n} are needed: {what}")
    return axes


def one_axes(ax: Axes | None, size: tuple[float, float], what: str) -> Axes:
    """Return the caller's Axes, or those of a new figure of that size (inches)."""
    if ax is not None:
        return given_axes(ax, 1, what)[0]
    return plt.figure(figsize=size, layout="constrained").add_subplot()
