"""Progress bars."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .._settings import settings

if TYPE_CHECKING:
    from tqdm.auto import tqdm

    from ..section import Section


LOGGED = 30.0  # seconds between two states of a bar where they are kept, as in the log of a batch job


def bar(over: "Iterable[Any] | None" = None, *, what: str, unit: str, show: bool, **options: Any) -> "tqdm[Any]":
    """Make a progress bar, which goes when done if it is below another; in a file it writes few lines.

    Parameters
    ----------
    over
        What is counted as it is taken from the bar; None where the caller counts.
    what, unit
        What is done, and what is counted.
    show
        Whether there is anything to be seen.
    **options
        Of tqdm.
    """
    from tqdm.auto import tqdm

    redrawn = sys.stderr.isatty() or "ipykernel" in sys.modules
    every = {} if redrawn else {"mininterval": LOGGED, "maxinterval": LOGGED}
    return tqdm(over, desc=what, unit=unit, disable=not show, **{"leave": None, **every, **options})


def over_sections(sections: "Sequence[Section]", what: str, progress: bool | None) -> "Iterable[Section]":
    """Yield sections under a bar; `progress` None is `settings.progress`."""
    return bar(sections, what=what, unit="section", show=settings.progress if progress is None else progress)


def of_spots(sections: "Sequence[Section]", what: str, progress: bool | None) -> "tqdm[object]":
    """Make a bar over all spots of sections; `progress` as above."""
    show = settings.progress if progress is None else progress
    return bar(total=sum(len(section.xy) for section in sections), what=what, unit="spot", show=show)
