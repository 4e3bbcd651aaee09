"""Sections whose pixels are read in the colours of a reference."""

from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from ..image.stain import METHODS, Recolour
from .store import is_used_once, use_once

if TYPE_CHECKING:
    from ..image import SectionImage
    from ..section import Section

SPOTS = 100  # around which the sample lies
SIDE = 112  # px of the finest level that are read around each

_known: "WeakKeyDictionary[Section, dict[str, Section]]" = WeakKeyDictionary()  # so that their features are kept
_lock = Lock()


def stained(section: "Section", method: str | None) -> "Section":
    """Return the section, its pixels normalised as they are read.

    The normalisation is fitted to the px around up to 100 spots when the image is first opened, so it knows nothing of
    counts or of other sections.

    Parameters
    ----------
    section
        Where the spots and the image are.
    method
        One of `METHODS`; None: the section as it is, as is one without an image.

    Raises
    ------
    ImageError
        On opening the image, if hardly anything is stained.
    """
    if method is None or section.opener is None:
        return section
    with _lock:
        of_section = _known.setdefault(section, {})
        if method not in of_section:
            of_section[method] = replace(section, opener=_Opener(section.opener, section.xy, method))
            if is_used_once(section):
                use_once([of_section[method]])
        return of_section[method]


class _Opener:
    """Opens an image and has it recoloured; the fit is made once."""

    def __init__(self, opener: "Callable[[], SectionImage]", xy: np.ndarray, method: str) -> None:
        self._opener, self._xy, self._method = opener, xy, method
        self._recolour: Recolour | None = None

    def __call__(self) -> "SectionImage":
        image = self._opener()
        try:
            if self._recolour is None:
                spots = np.unique(np.linspace(0, len(self._xy) - 1, SPOTS).round().astype(int))
                sample = image.read_patches(self._xy[spots], field=SIDE, size=SIDE)
                self._recolour = METHODS[self._method](sample.transpose(0, 2, 3, 1).reshape(-1, 3), image.name)
        except BaseException:
            image.close()
            raise
        image.recolour = self._recolour
        return image
