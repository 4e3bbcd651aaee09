"""Whether a section's image, the copies of it and the coordinates belong together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from PIL import Image
from scipy import ndimage

from ..errors import ImageWarning
from ..image import SectionImage, glass
from ..image.tissue import TissueMask, find_tissue
from ..runtime import messages
from ..runtime.checks import is_on, refuse, warn

AGREE = "images_agree"
ON_TISSUE = "spots_on_tissue"

GRID = 20  # places along each side at which two images are compared
COARSE_PX = 4.0  # px of the coarser image that are averaged at a place
SMALLEST_PX = 16  # shortest side of an image that tells how it lies
LEAST_CONTRAST = 4.0  # standard deviation in gray levels, below which an image shows nothing to compare
UNLIKE = 0.5  # correlation of gray levels below which two images do not show the same
ALIKE = 0.7  # and above which they do, turned or not
SAME = 0.98  # and above which they do as they lie: what is missing is rounding
TOLERANCE = 0.01  # of an image's sides, for scale factors that were rounded
TOLERANCE_PX = 2.5

LOOK_PX = 1024  # longest side of what tissue is looked for on
ENOUGH_PX = 500  # longest side of a copy that serves for it
BARE = 0.05  # mean optical density below which an area is bare glass
# shares of the spots; of real sections at most 0.01 lie on bare glass
LEAST_ON_GLASS = 0.08
MANY_ON_GLASS = 0.3
MOST_ON_GLASS = 0.5
SURELY_ON_GLASS = 0.9
MENDED = 0.9  # share of the spots on tissue, once coordinates are set right
FEWEST_SPOTS = 10
MAGNIFICATIONS = (2.0, 4.0)  # of one scan to another

Way = Callable[[np.ndarray], np.ndarray]  # from (n, 2) as given to (n, 2) set right, px of the image

# the eight ways to lay a rectangle on itself, by what was done to the image: (swap x and y, mirror x, mirror y)
RESCALED = "at another scale"
TURNS = {
    RESCALED: (False, False, False),
    "turned by 90 degrees clockwise": (True, True, False),
    "turned by 180 degrees": (False, True, True),
    "turned by 90 degrees counterclockwise": (True, False, True),
    "mirrored left to right": (False, True, False),
    "mirrored top to bottom": (False, False, True),
    "transposed (rows and columns swapped)": (True, False, False),
    "transposed the other way": (True, True, True),
}


@dataclass(frozen=True)
class View:
    """An image that a section could be read from.

    Attributes
    ----------
    key
        The image's key.
    name
        What messages call it.
    to_px
        (3, 3) from (x, y) of the coordinates to px of the image's finest level.
    opener
        Opens it.
    reduced
        Whether its key says that it is a reduced copy of what the coordinates refer to, such as "hires".
    """

    key: str
    name: str
    to_px: np.ndarray
    opener: Callable[[], SectionImage] = field(repr=False)
    reduced: bool = False

    @property
    def scale(self) -> float:
        """Px per unit of the coordinates."""
        return spread(self.to_px)


def say_reduced(section: str, view: View) -> None:
    messages.warn(
        f"section {section!r}: the image is {view.name}, a reduced copy that shows less of the cells, as there is no "
        f"other. Give the full-resolution image, or name the copy by `image_key={view.key!r}`",
        ImageWarning,
    )


def spread(matrix: np.ndarray) -> float:
    """Length of a unit after an affine transformation."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def scaled(scale: float) -> np.ndarray:
    """(3, 3) matrix of a scaling."""
    return np.diag([scale, scale, 1.0])


def moved(xy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(n, 2) after an affine transformation."""
    return np.asarray(xy @ matrix[:2, :2].T + matrix[:2, 2])


def compared(chosen: View, views: Sequence[View], *, named: bool) -> list[View]:
    """Which of a section's images must show the same as the chosen one.

    Reduced copies are by definition of what the coordinates refer to. Where there is none, all are compared, unless the
    user has named the one to take.
    """
    others = [view for view in views if view is not chosen]
    copies = [view for view in others if view.reduced]
    return copies if copies or named or chosen.reduced else others


@dataclass(eq=False)
class Belonging:
    """Whether a section's image, the copies of it and its spots belong together.

    Attributes
    ----------
    section
        Name of the section.
    view
        The image that is taken.
    image
        The same, open.
    views
        All images that there are.
    slot
        Where the coordinates are from.
    mpp
        um per px of the image, None where unknown.
    """

    section: str
    view: View
    image: SectionImage
    views: Sequence[View]
    slot: str
    mpp: float | None

    def require_agreement(self, others: Sequence[View], remedy: str) -> None:
        """Refuse images that contradict the chosen one, and warn of those that look unlike.

        Parameters
        ----------
        others
            Those to compare it with.
        remedy
            What to do where they contradict.

        Raises
        ------
        InputError
            If an image has another extent than the chosen one, or shows the same turned or mirrored.
        """
        if not is_on(AGREE):
            return
        for other in others:
            with other.opener() as copy:
                between = other.to_px @ np.linalg.inv(self.view.to_px)  # px of the image to px of the copy
                likeness = _likeness(self.image, copy, between)
                contradiction = _other_extent(self.image, copy, between, likeness)
                if contradiction is None and (turn := _turn(likeness)) not in ("", RESCALED):
                    contradiction = f"{self.image.name} shows what {copy.name} shows, {turn}"
                if contradiction is not None:
                    refuse(
                        AGREE,
                        f"section {self.section!r}: {contradiction}, so that the coordinates fit one of them alone. "
                        f"{remedy}",
                    )
                if likeness and max(map(abs, likeness.values())) < UNLIKE:
                    warn(
                        AGREE,
                        f"section {self.section!r}: {self.image.name} and {copy.name} do not show the same "
                        f"(correlation of gray levels {likeness['']:.2f}, turned and mirrored in every way "
                        f"{max(likeness.values()):.2f}): one of them may be of another section, or cropped. {remedy}",
                    )
                elif copy.shape[0] * copy.shape[1] < self.image.shape[0] * self.image.shape[1]:
                    self._copies.append(other)

    def warn_of_turned(self, others: Sequence[View], remedy: str) -> None:
        """Warn of other images at the same place that show the same turned or mirrored; `remedy` says what to do."""
        if not is_on(AGREE):
            return
        for other in others:
            with other.opener() as picture:
                likeness = _likeness(self.image, picture, other.to_px @ np.linalg.inv(self.view.to_px))
                if (turn := _turn(likeness)) not in ("", RESCALED):
                    warn(
                        AGREE,
                        f"section {self.section!r}: {self.image.name} shows what {picture.name} shows, {turn}, so that "
                        f"one of them lies wrongly in the coordinate system. {remedy}",
                    )

    def same_colours(self, xy: np.ndarray, copy: View, usual: np.ndarray) -> bool:
        """Warn of coordinates of a slot of their own that lie elsewhere on the tissue than the usual ones on a copy.

        Parameters
        ----------
        xy
            (n, 2) spots in px of the image.
        copy
            A copy of what the usual coordinates refer to.
        usual
            (n, 2) the spots in px of the copy, by the usual coordinates.

        Returns
        -------
        Whether they see the same, as far as that can be told.
        """
        if not is_on(AGREE) or len(xy) < FEWEST_SPOTS:
            return True
        some = np.linspace(0, len(xy) - 1, min(GRID**2, len(xy))).astype(int)
        with copy.opener() as opened:
            if min(*opened.shape, *self.image.shape) < SMALLEST_PX:
                return True
            areas = _areas(copy.scale / self.view.scale)
            grays = [_grays(self.image, xy[some], areas[0]), _grays(opened, usual[some], areas[1])]
        likeness = _correlation(*grays)
        alike = not likeness < UNLIKE  # NaN where there is nothing to compare
        if not alike:
            warn(
                AGREE,
                f"section {self.section!r}: the spots do not see the same on {self.image.name} by {self.slot} as on "
                f"{copy.name} by obsm['spatial'] (correlation of gray levels {likeness:.2f}): is {self.slot} of "
                "another image? `image_key=` and `spatial_key=` name an image and its coordinates",
            )
        return alike

    def require_on_tissue(self, xy: np.ndarray, *, said: bool) -> None:
        """Refuse spots that lie on bare glass, and warn where many do.

        Parameters
        ----------
        xy
            (n, 2) spots in px of the image.
        said
            Whether the table says that these spots were under tissue.

        Raises
        ------
        InputError
            If most spots lie on glass, and would lie on tissue set right, or if nearly all do that were under tissue.
        """
        if not is_on(ON_TISSUE) or len(xy) < FEWEST_SPOTS or self._ground is None:
            return
        on_tissue, on_glass = self._ground.shares(xy)
        if on_glass < LEAST_ON_GLASS:
            return
        looks = self.way_out(xy)
        found = (
            f"section {self.section!r}: {on_glass:.0%} of the {len(xy)} spots lie on bare glass or outside the image, "
            f"{on_tissue:.0%} on tissue"
        )
        advice = (
            f"The coordinates in {self.slot} look as if they were {looks}"
            if looks
            else f"Are the coordinates in {self.slot} px of the full-resolution image (column, row), and of this very "
            "image? Spots that are not under tissue are left out by obs['in_tissue']"
        )
        if (looks and on_glass > MOST_ON_GLASS) or (said and on_glass > SURELY_ON_GLASS):
            refuse(ON_TISSUE, f"{found}. {advice}")
        elif looks or on_glass > MANY_ON_GLASS:
            warn(ON_TISSUE, f"{found}. {advice}")

    def way_out(self, xy: np.ndarray) -> str | None:
        """Say what coordinates look like: the first way of setting them right by which they lie on tissue, if any."""
        if not is_on(ON_TISSUE) or len(xy) < FEWEST_SPOTS or self._ground is None:
            return None
        _, on_glass = self._ground.shares(xy)
        full_mpp = None if self.mpp is None else self.mpp * self.view.scale
        for looks, mended in ways_to_lie(self.image.shape, self.views, full_mpp).items():
            on_tissue, still_on_glass = self._ground.shares(mended(xy))
            if on_tissue >= MENDED and still_on_glass <= on_glass / 4:
                return looks
        return None

    @cached_property
    def _copies(self) -> list[View]:
        """Smaller images that agree with the chosen one, as far as is known by now."""
        return []

    @cached_property
    def _ground(self) -> "Ground | None":
        """What lies under the spots; found on a copy where there is one, which is quicker to read."""
        for copy in self._copies:
            with copy.opener() as opened:
                if max(opened.shape) >= ENOUGH_PX:
                    return ground(opened, self.image.shape, self.mpp)
        return ground(self.image, self.image.shape, self.mpp)


# --- images among themselves


def _other_extent(
    image: SectionImage, copy: SectionImage, between: np.ndarray, likeness: Mapping[str, float]
) -> str | None:
    """Say how the extent of the image differs from that of its copy; None where it does not."""
    if not np.allclose(between[[0, 1], [1, 0]], 0, atol=1e-6 * spread(between)):
        return None  # one is laid turned on the other: their sides do not match
    size, of_copy = np.array(image.shape[::-1], dtype=float), np.array(copy.shape[::-1], dtype=float)
    low, high = moved(np.stack([0 * size, size]), between)  # in px of the copy
    tolerance = np.maximum(TOLERANCE_PX * max(1.0, spread(between)), TOLERANCE * of_copy)
    if (np.abs(low) <= tolerance).all() and (np.abs(high - of_copy) <= tolerance).all():
        return None
    expected = of_copy / np.diag(between)[:2]
    found = (
        f"{image.name} is {size[0]:.0f} x {size[1]:.0f} px; by the size and the scale of {copy.name} it should be "
        f"{abs(expected[0]):.0f} x {abs(expected[1]):.0f} px"
    )
    turn = _turn(likeness)
    if turn == RESCALED:
        why = f"it is a scan {((high - low) / of_copy).mean():.3g} times as large, or the scale factor is wrong"
    elif turn:
        why = f"it is {turn}"
    elif (np.abs((high - low)[::-1] - of_copy) <= tolerance).all():
        why = "it is turned by 90 degrees"
    else:
        why = "one of them is cropped, padded, or of another scan"
    return f"{found}: {why}"


def _turn(likeness: Mapping[str, float]) -> str:
    """Name the turn of an image that fits clearly better than the image as it lies; "" where none does."""
    best = max(likeness, key=lambda turn: likeness[turn], default="")
    clearly = best and likeness[""] < SAME and likeness[best] >= ALIKE and 1 - likeness[best] < (1 - likeness[""]) / 2
    return best if clearly else ""


def _likeness(image: SectionImage, copy: SectionImage, between: np.ndarray) -> dict[str, float]:
    """Correlation of two images' gray levels, as they lie ("") and for each way in which the first may be turned.

    By where the image lies the copy may show a part of it; turned, the one as a whole is laid on the other as a whole.

    Empty where one of them is too small, or shows next to nothing. A few hundred small areas are read, so that of an
    image without reduced levels few tiles are decoded.
    """
    if min(*image.shape, *copy.shape) < SMALLEST_PX:
        return {}
    area, of_copys = _areas(spread(between))
    of_copy = _grays(copy, _grid(copy.shape), of_copys).reshape(GRID, GRID)
    as_it_lies = moved(_grid(copy.shape), np.linalg.inv(between))
    within = ((as_it_lies >= 0) & (as_it_lies < image.shape[::-1])).all(axis=1)
    if within.mean() < 0.1:
        return {}
    found = {"": _correlation(_grays(image, as_it_lies[within], area), of_copy.ravel()[within])}
    own = _grays(image, _grid(image.shape), area).reshape(GRID, GRID)
    found |= {name: _correlation(_unturned(own, *turn), of_copy) for name, turn in TURNS.items()}
    return {} if np.isnan(list(found.values())).any() else found


def _areas(ratio: float) -> tuple[float, float]:
    """Side of what is averaged at a place, in px of an image and of a copy with `ratio` px per px of the image."""
    of_copy = COARSE_PX * max(1.0, ratio)
    return of_copy / ratio, of_copy


def _grid(shape: tuple[int, int]) -> np.ndarray:
    """(GRID * GRID, 2) places spread over an image."""
    height, width = shape
    steps = (np.arange(GRID) + 0.5) / GRID
    return np.stack(np.meshgrid(steps * width, steps * height), axis=-1).reshape(-1, 2)


def _grays(image: SectionImage, xy: np.ndarray, area: float) -> np.ndarray:
    """(n,) mean gray level around places."""
    return np.asarray(image.read_patches(xy, field=area, size=1).mean(axis=(1, 2, 3)), dtype=np.float64)


def _unturned(pixels: np.ndarray, swap: bool, mirror_x: bool, mirror_y: bool) -> np.ndarray:
    """Lay a turned picture as it lay before: mirror its axes back, then swap them back."""
    pixels = pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
    return pixels.T if swap else pixels


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel(), b.ravel()
    if min(a.std(), b.std()) < LEAST_CONTRAST:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


# --- coordinates on the image


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Ground:
    """What spots may lie on, in px of the image: tissue, bare glass, or what could be either."""

    tissue: TissueMask
    bare: TissueMask

    def shares(self, xy: np.ndarray) -> tuple[float, float]:
        """Share of spots on tissue, and of those on bare glass or outside the image."""
        height, width = self.tissue.mask.shape
        outside = ((xy < 0) | (xy >= np.array([width, height]) * self.tissue.factor)).any(axis=1)
        return float(self.tissue.contains(xy).mean()), float((self.bare.contains(xy) | outside).mean())


def ground(image: SectionImage, shape: tuple[int, int], mpp: float | None) -> Ground | None:
    """Find tissue and bare glass on an image; None where no tissue is found, as on images that are not stained by H&E.

    Parameters
    ----------
    image
        The image or a copy of it.
    shape
        Height and width of the image that coordinates refer to.
    mpp
        um per px of that image.
    """
    look = image.thumbnail(LOOK_PX)
    tissue = find_tissue(look, shape, mpp=mpp)
    if min(tissue.mask.shape) < SMALLEST_PX or not tissue.mask.any():
        return None
    height, width = tissue.mask.shape
    small = np.asarray(Image.fromarray(look).resize((width, height), Image.Resampling.BOX))
    density = np.abs(np.log(glass(look) + 1.0) - np.log(small + 1.0)).mean(axis=2)
    bare = (ndimage.uniform_filter(density, 5) < BARE) & ~tissue.mask
    return Ground(tissue, TissueMask(bare, tissue.factor, mpp))


def ways_to_lie(shape: tuple[int, int], views: Sequence[View], per_unit: float | None) -> dict[str, Way]:
    """List what coordinates may be instead of px of the image, and how they are set right: simple ones first.

    Parameters
    ----------
    shape
        Height and width of the image, px.
    views
        All images of the section.
    per_unit
        um per unit of the coordinates, None where unknown.
    """
    found: dict[str, Way] = {"swapped: x is to be the column and y the row": lambda xy: xy[:, ::-1]}
    for view in views:
        if not np.isclose(view.scale, 1):
            found[f"px of {view.name}: divide them by its scale, {view.scale:.5g}"] = partial(
                np.multiply, 1 / view.scale
            )
    if per_unit is not None and not np.isclose(per_unit, 1):
        found[f"um: divide them by {per_unit:.5g} um per px"] = partial(np.multiply, 1 / per_unit)
    for factor in MAGNIFICATIONS:
        found[f"px of a smaller scan: multiply them by {factor:g}"] = partial(np.multiply, factor)
    for name, turn in TURNS.items():
        if any(turn[1:]):
            found[f"of an image that was {name}: lay the image as the coordinates are"] = partial(_turned, turn, shape)
    return found


def _turned(turn: tuple[bool, bool, bool], shape: tuple[int, int], xy: np.ndarray) -> np.ndarray:
    """Lay places (n, 2) as an image of a shape (height, width) was turned."""
    swap, *mirror = turn
    signs, offset = np.where(mirror, -1, 1), np.where(mirror, shape[::-1], 0)
    return np.asarray((xy[:, ::-1] if swap else xy) * signs + offset)
