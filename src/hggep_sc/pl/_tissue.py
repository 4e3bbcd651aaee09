"""Drawing on the tissue: the image under a section's spots, the spots, the scale bar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from ..section import Section, spot_spacing

PANEL_INCHES = 3.4  # longer side of a panel in a figure of our own
PANEL_PX = 1000  # longer side of the image under a panel
IMAGE_PX = 4096  # longest side of the reduced image that a panel is cut from
IMAGE_STRENGTH = 0.65  # of the image's colours on white
WHITE = np.full(3, 255, dtype=np.uint8)
MANY_SPOTS = 5000  # from here on a vector file holds the spots as pixels


@dataclass
class View:
    """What all panels share: the part of the section that is shown, px of the image's finest level."""

    left: float
    right: float
    top: float
    bottom: float
    pixels: np.ndarray | None  # (h, w, 3) uint8
    extent: tuple[float, float, float, float]  # left, right, bottom, top of `pixels`
    background: np.ndarray  # (3,) uint8, beyond the image

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


def one_section(sections: list[Section]) -> Section:
    if len(sections) > 1:
        names = ", ".join(repr(section.name) for section in sections)
        raise ValueError(
            f"the object holds several sections: {names}; choose one by library_id= (AnnData) or "
            "shapes_key= (SpatialData)"
        )
    return sections[0]


def view_of(section: Section, *, image: bool, crop: bool) -> View:
    low, high = section.xy.min(axis=0), section.xy.max(axis=0)
    margin = 0.03 * (high - low).max() + _diameter(section)
    (left, top), (right, bottom) = low - margin, high + margin
    if crop and not image:
        return View(left, right, top, bottom, None, (0, 0, 0, 0), WHITE)
    with section.open_image() as opened:
        height, width = opened.shape
        if not crop:
            left, top, right, bottom = 0.0, 0.0, float(width), float(height)
        if not image:
            return View(left, right, top, bottom, None, (0, 0, 0, 0), WHITE)
        reduction = max(right - left, bottom - top) / PANEL_PX
        reduced = opened.thumbnail(int(np.clip(max(width, height) / reduction, 1, IMAGE_PX)))
        background = opened.background
    # paler than the spots, which are to stand out
    reduced, background = (
        (255 - (255 - colours.astype(np.float32)) * IMAGE_STRENGTH).round().astype(np.uint8)
        for colours in (reduced, background)
    )
    step = np.array([width / reduced.shape[1], height / reduced.shape[0]])
    # the spots may reach beyond the image
    start = np.clip(np.floor(np.array([left, top]) / step), 0, None).astype(int)
    stop = np.ceil(np.array([right, bottom]) / step).astype(int)
    pixels = reduced[start[1] : stop[1], start[0] : stop[0]]
    corner = (start + np.array(pixels.shape[1::-1])) * step
    extent = (start[0] * step[0], corner[0], corner[1], start[1] * step[1])
    return View(left, right, top, bottom, pixels, extent, background)


def _diameter(section: Section) -> float:
    """Diameter or side of a spot in px."""
    if section.spot_diameter is not None:
        return section.spot_diameter
    spacing = spot_spacing(section.xy)
    if spacing is None:
        return 100.0
    return spacing if section.spot_shape == "square" else 0.55 * spacing


def new_panels(views: Sequence[View], n_columns: int, *, beside: float, above: float, below: float = 0) -> np.ndarray:
    """Axes of a new figure, (len(views), n_columns): a view per row; inches beside a row, above and below a panel."""
    heights = [PANEL_INCHES * view.height / max(view.width, view.height) for view in views]
    width = max(PANEL_INCHES * view.width / max(view.width, view.height) for view in views)
    size = (n_columns * width + beside, sum(heights) + (above + below) * len(views))
    # what stands right of and below a panel keeps its place where its shape leaves room
    look: dict[str, Any] = {"subplot_kw": {"anchor": "SE"}, "gridspec_kw": {"height_ratios": heights}}
    _, axes = plt.subplots(len(views), n_columns, figsize=size, layout="constrained", squeeze=False, **look)
    return axes


def draw_tissue(ax: Axes, view: View) -> None:
    if view.pixels is not None:
        ax.imshow(view.pixels, extent=view.extent)
        ax.set_facecolor(tuple(view.background / 255))
    ax.set(xlim=(view.left, view.right), ylim=(view.bottom, view.top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_spots(ax: Axes, section: Section, spot_size: float, **look: Any) -> Collection:
    """Draw spots at `spot_size` times their true size; `look` is set on the collection."""
    size = spot_size * _diameter(section)
    spots: Collection
    if section.spot_shape == "square":
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
        squares = list(section.xy[:, None] + corners)
        spots = PolyCollection(squares, antialiased=False)  # no seams between bins
    else:
        n = np.full(len(section.xy), size)
        spots = EllipseCollection(n, n, np.zeros(len(n)), units="xy", offsets=section.xy, offset_transform=ax.transData)
    spots.set(linewidth=0, rasterized=len(section.xy) > MANY_SPOTS, **look)
    ax.add_collection(spots, autolim=False)
    return spots


def draw_scale_bar(ax: Axes, view: View, mpp: float) -> None:
    """Round length of at most a quarter of the panel's width."""
    longest = view.width * mpp / 4
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    bar = AnchoredSizeBar(
        ax.transData,
        length / mpp,
        label,
        loc="lower right",
        borderpad=0.4,
        size_vertical=0.006 * view.height,
        label_top=True,
    )
    bar.patch.set(alpha=0.75, linewidth=0)
    ax.add_artist(bar)
