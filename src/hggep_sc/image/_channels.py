"""What an image's channels are, by their names."""

import re
from collections.abc import Sequence
from typing import Any

from ..runtime import checks

COLOURS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2, "a": 3, "alpha": 3}
# dyes and antibodies that are imaged by fluorescence
FLUORESCENT = re.compile(
    r"dapi|hoechst|draq|sytox|\bcd\d|\bcy\W?\d|fitc|tritc|alexa|\baf\W?\d{3}|[a-z]fp\b|rhodamine|texas|opal|autofluor|"
    r"keratin|panck|vimentin|sma\b|ki\W?67|18s|poly\W?t\b|cellbound|atp1a1|cadherin|\d{3}\W?nm"
)
# what writers call channels that nobody has named
NAMELESS = re.compile(
    r"(channel|chan|ch|c|s|spl|sample|band|plane|component|image|slice|rgb|(tl )?bright ?field|bf|trans(mitted)?"
    r"( light)?|h ?(and|&|n)? ?e|histology|gr[ae]y|intensity|value)?[\W_\d]*"
)


def in_colour_order(arrays: Sequence[Any], names: Sequence[str], axis: int, where: str) -> list[Any]:
    """Bring the channels of levels into the order red, green, blue and alpha, where their names say which is which.

    Parameters
    ----------
    arrays
        Levels of an image.
    names
        Of the channels; empty where they have none.
    axis
        Of the channels.
    where
        What messages call the image.

    Raises
    ------
    ImageError
        If the names are those of something else than colours.
    """
    names = [name.strip().lower() for name in names]
    places = [COLOURS.get(name, len(COLOURS)) for name in names]
    order = sorted(range(len(places)), key=places.__getitem__)
    n_colours = sum(place < len(COLOURS) for place in places)
    if n_colours >= 3 and sorted(places)[:n_colours] == list(range(n_colours)):
        if len(order) > n_colours:
            checks.warn(
                "channels",
                f"image {where}: of its channels {_quoted(names)}, red, green and blue are used"
                + (" with the transparency" if n_colours == 4 else ""),
            )
        order = order[:n_colours]
        return list(arrays) if order == list(range(len(names))) else [_take(array, order, axis) for array in arrays]
    if not _colourless(names):
        checks.refuse(
            "channels",
            f"image {where}: its channels are called {_quoted(names)}, as those of a fluorescence image, where red, "
            "green and blue are expected: give the H&E image",
        )
    return list(arrays)


def _colourless(names: Sequence[str]) -> bool:
    """Whether names say nothing of what the channels are."""
    if any(FLUORESCENT.search(name) for name in names):
        return False
    if len(names) < 2 or all(NAMELESS.fullmatch(name) for name in names):
        return True
    stems, numbers = zip(*(re.fullmatch(r"(.*?)(\d*)", name, re.DOTALL).groups() for name in names), strict=True)  # type: ignore[union-attr]
    if len(set(stems)) > 1 or not all(numbers):
        return len(set(names)) == 1
    return [int(number) - int(numbers[0]) for number in numbers] == list(range(len(names)))


def _take(array: Any, order: list[int], axis: int) -> Any:
    import dask.array as da

    if not isinstance(array, da.Array):
        array = da.from_array(array, chunks=getattr(array, "chunks", "auto"))
    return array[(slice(None),) * axis + (order,)]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:6]) + (", ..." if len(names) > 6 else "")
