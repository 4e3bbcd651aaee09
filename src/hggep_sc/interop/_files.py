"""What files for other tools have in common: one section, in full-resolution px, and a place to write to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..runtime.messages import listed
from ..section import Section, open_sections
from ..storage.paths import expanded

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def one_section(
    data: "AnnData | SpatialData",
    section: str | None,
    *,
    library_key: str | None,
    table_key: str | None,
    noted: Sequence[str],
) -> Section:
    """Open the section of an object, or the one of several that is named."""
    opened = open_sections(data, library_key=library_key, table_key=table_key, noted=noted, check=False)
    found = [each for each in opened if section in (None, each.name)]
    if len(found) != 1:
        given = "none is named" if section is None else f"none is called {section!r}"
        raise InputError(
            f"a file holds one section, and {given} of {listed(each.name for each in opened)}: name one by `section=`"
        )
    return found[0]


def place_for(path: str | Path, overwrite: bool, is_such: Callable[[Path], bool]) -> Path:
    """Return where to write, refusing what is there unless it is of the kind that is written, to be replaced."""
    target = Path(expanded(path))
    if target.exists() and not (overwrite and is_such(target)):
        raise FileExistsError(
            f"{target} is there already: choose another path"
            + ("; it is none of what is written here, and is not replaced" if overwrite else ", or overwrite=True")
        )
    return target
