"""Physical scale: um per px, from all that tells it, which has to agree; and how far apart spots are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from .. import _keys
from ..errors import ScaleWarning
from ..image import SANE_MPP
from ..runtime import checks
from ..runtime.messages import warn
from ._lattice import ENOUGH, FEW, SAMPLE, Array, Lattice, array_lattice, point_lattice, sampled
from ._spots import array_places
from ._values import entries, number, text

VISIUM_UM, ST_UM = 100.0, 200.0  # from spot to spot
ALIKE, APART = 1.1, 2.0  # times another source's um per px: from here on said, refused
GIVEN = "mpp="  # the source that is the user's word
HD_BARCODE = re.compile(r"s_(\d+)um_(\d+)_(\d+)")  # bin, row and column
HD_NAME = re.compile(r"square_(\d+)um")
VISIUM_BARCODE = re.compile(r"(?:^|[^ACGT])[ACGT]{16}-\d")
UNITS = {"metres": 1e6, "millimetres": 1e3, "nanometres": 1e-3}  # um in each


@dataclass(frozen=True)
class Told:
    """What one source says of the scale.

    Attributes
    ----------
    mpp
        um per px.
    by
        The source, as it is noted beside a prediction.
    words
        What messages call it.
    """

    mpp: float
    by: str
    words: str


@dataclass(frozen=True)
class SpotGrid:
    """What the spots say of the scale.

    Attributes
    ----------
    spacing
        px from a spot to the nearest place for another; None where too few are left to tell.
    told
        um per px by the spacing of a known technology; None where it is not known, or the grid is not.
    squares
        Whether spots are the bins of Visium HD.
    """

    spacing: float | None
    told: Told | None
    squares: bool


def checked_mpp(mpp: Any) -> float | None:
    """Return um per px that a caller gave, refusing what is no positive number."""
    if mpp is None:
        return None
    if isinstance(mpp, bool) or not isinstance(mpp, int | float | np.number) or not (0 < mpp < np.inf):
        raise ValueError(f"`mpp` is um per px, a positive number; found {mpp!r}")
    return float(mpp)


def given(mpp: float | None) -> list[Told]:
    """Return what the caller says of the scale: nothing, or `mpp=`."""
    return [] if mpp is None else [Told(mpp, GIVEN, "`mpp=`")]


def of_scalefactors(entry: Mapping[str, Any]) -> list[Told]:
    """Return what a library's `microns_per_pixel` says, which `pp.tile` may have taken from its caller."""
    mpp = number(entries(entry, "scalefactors").get("microns_per_pixel"))
    if mpp is None:
        return []
    by = GIVEN if text(entries(entry, "metadata").get("mpp_source")) == GIVEN else "scalefactors"
    return [Told(mpp, by, "`mpp=` of `pp.tile`" if by == GIVEN else "scalefactors['microns_per_pixel']")]


def settled(sources: Sequence[Told | None], name: str, *, reduction: float = 1.0, aspect: float = 1.0) -> Told | None:
    """Take the first of the sources that tell um per px, if it is plausible and the others agree.

    Parameters
    ----------
    sources
        In the order of precedence.
    name
        Of the section or image, for messages.
    reduction
        Full-resolution px per px that the um are of.
    aspect
        Height of a px over its width, as the image file says.

    Raises
    ------
    InputError
        If um per px are not those of a microscope, sources contradict each other, or px are no squares.
    """
    told = [source for source in sources if source is not None]
    if not told:
        return None
    first, *others = told
    if not _plausible(first.mpp / reduction):
        checks.refuse("scale_plausible", f"{name}: {implausible(first, others)}")
    users = first.by == GIVEN
    for other in others:
        times = _times(first.mpp, other.mpp)
        if times <= ALIKE:
            continue
        message = (
            f"{name}: {first.words} {_says(first)} {first.mpp:.4g} um per px, but {other.words} {_says(other)} "
            f"{other.mpp:.4g}"
        )
        if times > APART and not users and _plausible(other.mpp / reduction):
            checks.refuse("scales_agree", f"{message}. Find out which is right, and give it by `mpp=`")
        else:
            checks.warn("scales_agree", f"{message}; {first.mpp:.4g} is taken")
    if _times(aspect, 1.0) > ALIKE:
        message = (
            f"{name}: the image file says that its px are {aspect:.3g} times as high as wide, and patches are squares "
            "of px: resample the image to square px"
        )
        (checks.warn if users else checks.refuse)("scales_agree", f"{message}, or give um per px by `mpp=`")
    return first


def scale_of_section(
    sources: Sequence[Told | None], name: str, *, noted: float | None, reduction: float = 1.0, aspect: float = 1.0
) -> Told | None:
    """Take a section's scale from its sources, as `settled`; `noted` is what a prediction took, and is not doubted.

    Where nothing tells it, that is said.
    """
    if noted is not None:
        return Told(noted, "noted", "the prediction")
    found = settled(sources, f"section {name!r}", reduction=reduction, aspect=aspect)
    if found is None:
        warn(
            f"section {name!r}: the physical scale of the image is unknown: a full-resolution px is taken as equal to "
            "one of the other sections. Give it by `mpp=` (um per px)",
            ScaleWarning,
        )
    return found


def noted_scale(table: AnnData, keys: str | Sequence[str], part: str) -> float | None:
    """Return um per full-resolution px that the first of some predictions noted of a library or region."""
    for key in [keys] if isinstance(keys, str) else keys:
        record = entries(table.uns.get(key), "sections")
        names, scales = (np.asarray(record.get(entry, ())).reshape(-1) for entry in ("name", "mpp_fullres"))
        known = {str(name): number(scale) for name, scale in zip(names, scales, strict=False)}
        # of several objects at once, names were those of the dict
        found = known.get(part) or (next(iter(known.values())) if len(known) == 1 else None)
        if found is not None:
            return found
    return None


def require_plausible(mpp: Any) -> float | None:
    """Return um per px that a caller gave, refusing what is none of an image of tissue."""
    checked = checked_mpp(mpp)
    if checked is not None and not _plausible(checked):
        checks.refuse("scale_plausible", implausible(given(checked)[0]))
    return checked


def implausible(told: Told, others: Sequence[Told] = ()) -> str:
    """Say that um per px are out of range, and what they may be instead."""
    mpp, (least, most) = told.mpp, SANE_MPP
    units = [unit for unit, um in UNITS.items() if 0.1 <= mpp * um <= 10]
    printed = [dpi for dpi in (72, 96, 300) if _times(mpp * dpi, 25_400) < 1.01]
    guess = ""
    if printed:
        guess = f". They are the {printed[0]} dpi that programs write where they know nothing"
    elif units:
        guess = f". Is that in {units[0]}, {mpp * UNITS[units[0]]:.3g} um?"
    others_say = "".join(f"; {other.words} {_says(other)} {other.mpp:.4g}" for other in others)
    return (
        f"{told.words} {_says(told)} {mpp:.4g} um per px, which is implausible: images of tissue have {least:g} to "
        f"{most:g}{others_say}{guess}. Check unit and decimal point, and give um per px by `mpp=`"
    ).replace("?.", "?")


def _plausible(mpp: float) -> bool:
    return SANE_MPP[0] * (1 - 1e-9) <= mpp <= SANE_MPP[1] * (1 + 1e-9)


def _times(one: float, other: float) -> float:
    return max(one / other, other / one)


def _says(source: Told) -> str:
    return "say" if source.by == "spots" else "says"


def spot_grid(
    entry: Mapping[str, Any],
    xy: np.ndarray,
    table: AnnData,
    rows: np.ndarray,
    *,
    called: Sequence[str] = (),
    reader: str | None = None,
    side: float | None = None,
) -> SpotGrid:
    """Find how far apart spots are, in px, and in um where their technology is known.

    Parameters
    ----------
    entry
        The library: `metadata`, `scalefactors`.
    xy
        (n, 2) centres of the spots, px.
    table, rows
        Where the spots' barcodes and array positions are.
    called
        Names that may tell the size of the bins of Visium HD.
    reader
        The reader of spatialdata-io that made the object.
    side
        Diameter of a spot in px: of Visium HD, the side of a bin.
    """
    some = sampled(len(xy))
    names = table.obs_names[rows[some]].astype(str)
    barcodes = list(names[:64])
    bin_um = _bin_um(entry, barcodes, called)
    words = _words(entry, reader)
    hd = re.search("visium ?hd", words) is not None
    squares = bin_um is not None or hd
    places = array_places(table, rows[some])
    if places is None and squares:
        places = _places_of(names)
    visium = not squares and ("visium" in words or "spatial 3'" in words)
    signs = "fiducial_diameter_fullres" in entries(entry, "scalefactors") or all(map(VISIUM_BARCODE.search, barcodes))
    legacy = not squares and not visium and words.strip() in ("st", "spatial transcriptomics")
    array: Array | None = "bins" if squares else "square" if legacy else "hexagonal" if visium or signs else None
    found = None if places is None else array_lattice(places, xy[some], array)
    if array == "hexagonal" and not visium:  # by signs alone, it has to look like one
        visium = found is not None and (found.hexagonal or len(xy) < ENOUGH)
        found = found if visium or places is None else array_lattice(places, xy[some])
    found = found or point_lattice(xy)
    if found is None and bin_um is not None and side is not None:
        found = Lattice(side, hexagonal=False)
    if found is None:
        return SpotGrid(_nearest(xy), None, squares)
    um = None
    if squares:
        # a size of bins that is noted for spots which leave gaps between them is how they are drawn
        named = hd or any(map(HD_BARCODE.search, barcodes))
        bins = named or side is None or _times(found.pitch, side) < ALIKE
        um = bin_um if bins and not found.hexagonal else None
    elif visium:
        um = VISIUM_UM
    elif legacy and not found.hexagonal:
        um = ST_UM / np.sqrt(2) if found.skips else ST_UM  # array positions by twos: 200 um are two steps of the array
    if um is None:
        return SpotGrid(found.pitch, None, squares)
    kind = "bins" if squares else "spots"
    return SpotGrid(
        found.pitch, Told(float(um / found.pitch), "spots", f"the {kind}, which lie {um:.4g} um apart,"), squares
    )


def cell_scale(reader: str | None, table: AnnData, rows: np.ndarray, xy: np.ndarray) -> Told | None:
    """Return what cells of a Xenium say of the scale: spatialdata-io keeps their centroids, in um, in the table.

    Parameters
    ----------
    reader
        The reader of spatialdata-io that made the object.
    table, rows
        Where the centroids are.
    xy
        (n, 2) the same cells in px.
    """
    if reader != "xenium" or _keys.SPATIAL not in table.obsm:
        return None
    um = np.asarray(table.obsm[_keys.SPATIAL], dtype=np.float64)[rows]
    extents = [np.sqrt(((at - at.mean(axis=0)) ** 2).sum()) for at in (um, xy)]
    if not min(extents) > 0:  # a single cell
        return None
    return Told(float(extents[0] / extents[1]), "spots", "the cells' centroids in um, obsm['spatial'],")


def _words(entry: Mapping[str, Any], reader: str | None) -> str:
    """Return what names the technology, in lower case."""
    metadata = entries(entry, "metadata")
    named = (text(metadata.get("technology")), text(metadata.get("chemistry_description")), reader)
    return " ".join(word.lower().replace("_", " ") for word in named if word)


def _bin_um(entry: Mapping[str, Any], barcodes: Sequence[str], called: Sequence[str]) -> float | None:
    """Side of the bins of Visium HD in um, by barcodes, scale factors or names."""
    found = {match[1] if (match := HD_BARCODE.search(barcode)) else None for barcode in barcodes}
    if len(found) == 1 and (size := found.pop()) is not None:
        return float(size)
    stored = number(entries(entry, "scalefactors").get("bin_size_um"))
    named = (float(match[1]) for name in called if (match := HD_NAME.search(name)))
    return stored if stored is not None else next(named, None)


def _places_of(barcodes: Iterable[str]) -> np.ndarray | None:
    """Array positions (x, y) in barcodes of Visium HD; None unless all have one."""
    matches = [HD_BARCODE.search(barcode) for barcode in barcodes]
    return np.array([(int(m[3]), int(m[2])) for m in matches if m]) if all(matches) else None


def _nearest(xy: np.ndarray) -> float | None:
    """Median distance to the nearest other spot, of spots on no grid."""
    return spot_spacing(xy) if len(xy) >= FEW else None


def spot_spacing(xy: np.ndarray) -> float | None:
    """Median distance to the nearest other spot, None for a single spot."""
    if len(xy) < 2:
        return None
    from scipy.spatial import cKDTree

    some = xy[sampled(len(xy))] if len(xy) > SAMPLE else xy
    return float(np.median(cKDTree(xy).query(some, k=2)[0][:, 1]))
