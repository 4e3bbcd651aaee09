"""Arguments checked, each by one sentence that names it, what was found and what is expected.

Each function takes the argument's name and value, and returns the value as its plain type.
"""

import math
import os
from collections.abc import Collection, Iterable, KeysView, Mapping, Set
from concurrent.futures import Executor
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")

LONGEST = 120  # letters of a value in a message


def flag(name: str, value: Any) -> bool:
    """Return a switch."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={_shown(value)} must be True or False")
    return bool(value)


def flag_or_none(name: str, value: Any) -> bool | None:
    """Return a switch, or None."""
    return None if value is None else flag(name, value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise TypeError(f"{name}={_shown(value)} must be a whole number of at least {least}")
    if value < least:
        raise ValueError(f"{name}={_shown(value)} must be at least {least}")
    return int(value)


def whole_or_none(name: str, value: Any, least: int = 1) -> int | None:
    """Return a whole number, or None."""
    return None if value is None else whole(name, value, least)


def seed_of(name: str, value: Any) -> int:
    """Return a seed that all libraries take."""
    if (found := whole(name, value, least=0)) >= 2**32:
        raise ValueError(f"{name}={_shown(value)} must be below 2**32")
    return found


def number(name: str, value: Any, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> float:
    """Return a finite number within bounds."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name}={_shown(value)} must be a number, not {type(value).__name__}")
    if not (math.isfinite(found := float(value)) and least <= found <= most and found > above):
        bounds = [f"of at least {least:g}"] * (least > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
        bounds += [f"of at most {most:g}"] * (most < math.inf)
        raise ValueError(f"{name}={_shown(value)} must be a finite number {' and '.join(bounds)}".rstrip())
    return found


def text(name: str, value: Any) -> str:
    """Return a name that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={_shown(value)} must be a name (str), not {type(value).__name__}")
    if not value:
        raise ValueError(f"{name}={_shown(value)} must be a name, and is empty")
    return str(value)


def text_or_none(name: str, value: Any) -> str | None:
    """Return a name, or None."""
    return None if value is None else text(name, value)


def choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={_shown(value)} is not known; there are {', '.join(map(repr, choices))}")
    return value


def path_of(name: str, value: Any) -> Path:
    """Return a path, `~` taken for the home folder."""
    if not isinstance(value, str | os.PathLike) or isinstance(found := os.fspath(value), bytes):
        raise TypeError(f"{name}={_shown(value)} must be a path (str or pathlib.Path), not {type(value).__name__}")
    if not found or "\0" in found:
        raise ValueError(f"{name}={_shown(value)} is no path")
    return Path(found).expanduser()


def path_or_none(name: str, value: Any) -> Path | None:
    """Return a path, or None."""
    return None if value is None else path_of(name, value)


def names(name: str, value: Any) -> list[str]:
    """Return names in their order; those of a set, which has none that stays, are sorted."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        raise TypeError(f"{name}={_shown(value)} must be a list of names")
    found = list(value)
    if wrong := [item for item in found if not isinstance(item, str)]:
        raise TypeError(f"{name} must hold names (str); found {wrong[0]!r} of type {type(wrong[0]).__name__}")
    ordered = not isinstance(value, Set) or isinstance(value, KeysView)
    return [str(item) for item in (found if ordered else sorted(found))]


def by_name(name: str, value: Mapping[Any, Value]) -> dict[str, Value]:
    """Return a dict by names; whole numbers are names too."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict by name, not {type(value).__name__}")
    found: dict[str, Value] = {}
    for key, item in value.items():
        if isinstance(key, bool | np.bool_) or not isinstance(key, str | Integral):
            raise TypeError(f"{name}: {key!r} is no name: names are str, or whole numbers")
        if str(key) in found:
            raise ValueError(f"{name}: the number {key} and the name {str(key)!r} are one name: rename one")
        if not str(key):
            raise ValueError(f"{name}: a name is empty")
        found[str(key)] = item
    return found


def values_by_name(name: str, value: Any) -> Any:
    """Return one value for all as it is, and a dict by names as `by_name` does."""
    return by_name(name, value) if isinstance(value, Mapping) else value


def array(name: str, value: Any, ndim: int | None = None) -> np.ndarray:
    """Return an array of real numbers, of so many dimensions."""
    try:
        found = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        raise ValueError(f"{name} must be an array of numbers, its rows of one length") from None
    if found.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold numbers; found {_shown(value)} of type {type(value).__name__}")
    if ndim is not None and found.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s'[: ndim - 1]}; found shape {found.shape}")
    return found


def matrix(name: str, value: Any, rows: str, columns: str) -> Any:
    """Return a matrix of real numbers: an array, or a scipy-sparse one as it is."""
    from scipy.sparse import issparse

    found = value if issparse(value) else array(name, value)
    if found.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold numbers, not {found.dtype}")
    if found.ndim != 2:
        raise ValueError(
            f"{name} must have shape ({rows}, {columns}); found {found.shape}"
            + (". A single column is given as array[:, None]" if found.ndim == 1 else "")
        )
    return found


def executor_or_none(name: str, value: Any) -> Executor | None:
    """Return what takes tasks, or None."""
    if value is not None and not (isinstance(value, Executor) or callable(getattr(value, "submit", None))):
        raise TypeError(
            f"{name}={_shown(value)} must be a concurrent.futures.Executor, such as ProcessPoolExecutor(4), or None"
        )
    return value


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
