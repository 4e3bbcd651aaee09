"""What plots are told: checked before anything is drawn, and refused by name."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap

from ..runtime.messages import listed

Limit: TypeAlias = float | str | None  # of a colour scale: a value, a percentile as "p99", or that of the data


def names(given: Any, argument: str, what: str) -> list[str]:
    """One name or several, in the order given; `what` says what of.

    Raises
    ------
    TypeError
        If they have no order, or are no names.
    ValueError
        If there is none, or one twice.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, Set | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{argument} is of type {type(given).__name__}: pass {what} as a str, or several as a list")
    found = list(given)
    if not found:
        raise ValueError(f"{argument} is empty: name at least {what}")
    if twice := [name for name in dict.fromkeys(found) if found.count(name) > 1]:
        raise ValueError(f"{argument} names {listed(twice)} more than once: name each once")
    return found


def colour_map(given: Any) -> Colormap:
    """Return Matplotlib's colour map of that name."""
    if isinstance(given, Colormap):
        return given
    if given not in mpl.colormaps:
        close = get_close_matches(str(given), list(mpl.colormaps), n=3, cutoff=0.5)
        hint = f"; similar names: {', '.join(close)}" if close else ""
        raise ValueError(f"cmap={given!r} is no colour map of Matplotlib (listed by `matplotlib.colormaps`){hint}")
    return mpl.colormaps[given]


def limits(given: Limit | Sequence[Limit], argument: str, n_genes: int) -> list[Limit]:
    """Limit of each gene's colour scale."""
    several = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
    found: list[Limit] = list(given) if several else [given] * n_genes  # type: ignore[arg-type,list-item]
    if len(found) != n_genes:
        raise ValueError(f"{argument} has {len(found)} limits for {n_genes} genes: give one for all, or one for each")
    for limit in found:
        if isinstance(limit, str):
            good = bool(re.fullmatch(r"p\d+(\.\d+)?", limit)) and float(limit[1:]) <= 100
        else:
            number_given = isinstance(limit, int | float | np.number) and not isinstance(limit, bool)
            good = limit is None or (number_given and bool(np.isfinite(limit)))
        if not good:
            raise ValueError(
                f"{argument}={limit!r} must be a number, a percentile such as 'p99', or None for the "
                f"{'least' if argument == 'vmin' else 'greatest'} value"
            )
    return found
