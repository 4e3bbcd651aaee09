"""Progress bars."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ._settings import settings

if TYPE_CHECKING:
    from tqdm.auto import tqdm

    from .section import Section


def over_sections(sections: "Sequence[Section]", what: str, progress: bool | None) -> "Iterable[Section]":
    """Yield sections under a bar; `progress` None is `settings.progress`."""
    from tqdm.auto import tqdm

    show = settings.progress if progress is None else progress
    return tqdm(sections, desc=what, unit="section", disable=not show)


def of_spots(sections: "Sequence[Section]", what: str, progress: bool | None) -> "tqdm[object]":
    """Make a bar over all spots of sections, which goes when done if it is below another; `progress` as above."""
    from tqdm.auto import tqdm

    show = settings.progress if progress is None else progress
    n_spots = sum(len(section.xy) for section in sections)
    return tqdm(total=n_spots, desc=what, unit="spot", leave=None, disable=not show)
