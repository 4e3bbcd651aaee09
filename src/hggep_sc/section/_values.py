"""Values from slots that files and users fill in many ways."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def text(value: Any) -> str | None:
    """Read a string, which may have come back from a file as bytes or as an array of one."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size == 1 else None
    if isinstance(value, bytes):
        value = value.decode()
    return str(value) if isinstance(value, str | Path) and str(value) else None


def number(value: Any) -> float | None:
    """Read a positive number, which may have come back from a file as an array of one."""
    try:
        number = float(np.asarray(value, dtype=np.float64).reshape(()))
    except (TypeError, ValueError):
        return None
    return number if 0 < number < np.inf else None


def entries(mapping: Any, name: str) -> Mapping[str, Any]:
    """Return the mapping under a name, empty where there is none."""
    entry = mapping.get(name) if isinstance(mapping, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}
