"""Which sections belong together, such as those of a patient."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from ..errors import InputError, MissingSlotError
from ..runtime.validators import by_name
from ._section import Section


def grouped(sections: Sequence[Section], groups: Mapping[str, str] | str | None) -> list[Section]:
    """Return sections that know the group that they belong to.

    Parameters
    ----------
    sections
        All sections of a call.
    groups
        Group of each by its name, or the `obs` column that holds it; None: each is its own.

    Raises
    ------
    MissingSlotError
        If there is no such column.
    ValueError
        If groups do not match the sections, or a section holds several.
    """
    if groups is None:
        return list(sections)
    groups = groups_in(sections, groups) if isinstance(groups, str) else by_name("groups", groups)
    names = [section.name for section in sections]
    unknown, missing = sorted(set(groups) - set(names)), sorted(set(names) - set(groups))
    if unknown or missing:
        raise ValueError(
            "groups= must name the group of every section: "
            + "; ".join(
                [f"no group for {', '.join(missing)}"] * bool(missing)
                + [f"no section called {', '.join(unknown)}"] * bool(unknown)
            )
            + f"; the sections are {', '.join(names)}"
        )
    if none := [name for name in names if pd.isna(groups[name])]:
        raise ValueError(f"groups= has no group (None or NaN) for {', '.join(none)}")
    return [replace(section, group=str(groups[section.name])) for section in sections]


def groups_in(sections: Sequence[Section], column: str) -> dict[str, str]:
    """Return the group of each section by its name, from a column of `obs` that is constant within it."""
    groups = {}
    for section in sections:
        obs = section.table.obs
        if column not in obs:
            raise MissingSlotError(
                f"groups={column!r}: section {section.name!r} has no such column in obs; {list(obs.columns)}"
            )
        values = obs[column].iloc[section.obs_rows].dropna().unique()
        if len(values) != 1:
            raise InputError(
                f"groups={column!r}: obs[{column!r}] must hold one group per section; section {section.name!r} has "
                f"{len(values)}: {', '.join(map(str, values[:5])) or 'none'}"
            )
        groups[section.name] = str(values[0])
    return groups
