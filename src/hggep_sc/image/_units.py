"""Units of length, as OME-TIFF and OME-Zarr write them, and the size of a px."""

import math
from typing import Any, NamedTuple

SANE_MPP = (0.05, 20.0)  # um per px that images of tissue have

UM_PER_UNIT = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "meter": 1e6,
    "centimeter": 1e4,
    "millimeter": 1e3,
    "micrometer": 1.0,
    "nanometer": 1e-3,
    "picometer": 1e-6,
    "angstrom": 1e-4,
}


class PixelSize(NamedTuple):
    """Width and height of a px in um."""

    width: float
    height: float

    @property
    def mpp(self) -> float:
        """Return um per px, the geometric mean of both."""
        return math.sqrt(self.width * self.height)

    @property
    def aspect(self) -> float:
        """Height over width."""
        return self.height / self.width


def pixel_size(width: Any, height: Any) -> PixelSize | None:
    """Return the size of a px, which is square where one side is not told; None where neither is."""
    sides = [side if side is not None and 0 < side < math.inf else None for side in (width, height)]
    known = [side for side in sides if side is not None]
    return PixelSize(sides[0] or known[0], sides[1] or known[0]) if known else None
