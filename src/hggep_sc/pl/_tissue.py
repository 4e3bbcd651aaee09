"""Drawing on the tissue: the image under a section's spots, the spots, the scale bar."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from ..section import Section, spot_spacing

PANEL_INCHES = 3.4  # longer side of a panel in a figure of our own
SHORTER_INCHES = 1.6  # its shorter side, where the longer one does not grow beyond
LONGEST_INCHES = 7.0
SPARE_INCHES = 0.15  # above each row
SMALLEST_INCHES = 2.2  # a figure of our own is this wide, for the title
LETTER_INCHES = 0.085  # of a title
SMALL_LETTER_INCHES = 0.07  # of the unit beside a colour bar
PANEL_PX = 1000  # longer side of the image under a panel
IMAGE_PX = 4096  # longest side of the reduced image that a panel is cut from
IMAGE_STRENGTH = 0.65  # of the image's colours on white
SQUARES_ALPHA = 0.6  # they leave no tissue to be seen between them
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


def panel_inches(view: View) -> tuple[float, float]:
    """Width and height of a panel of our own: a long narrow section is drawn larger, so that its spots are seen."""
    shorter, longer = sorted((view.width, view.height))
    inches = min(max(PANEL_INCHES / longer, SHORTER_INCHES / shorter), LONGEST_INCHES / longer)
    return view.width * inches, view.height * inches


def inches_in(ax: Axes, view: View) -> tuple[float, float]:
    """Width and height that a panel has in the caller's Axes, as they are now."""
    box, dpi = ax.get_window_extent(), ax.figure.dpi
    inches = min(box.width / view.width, box.height / view.height) / dpi
    return view.width * inches, view.height * inches


def new_panels(views: Sequence[View], n_columns: int) -> np.ndarray:
    """Axes of a new figure, (len(views), n_columns): a view per row. `fit_figure` sizes it when all is drawn."""
    widths, heights = zip(*map(panel_inches, views), strict=True)
    # panels have about their size before they are laid out, amid Matplotlib's default margins
    size = (n_columns * max(widths) / 0.65, sum(heights) / 0.65)
    # what stands right of and below a panel keeps its place where its shape leaves room
    look: dict[str, Any] = {"subplot_kw": {"anchor": "SE"}, "gridspec_kw": {"height_ratios": heights}}
    _, axes = plt.subplots(len(views), n_columns, figsize=size, layout="constrained", squeeze=False, **look)
    return axes


def fit_figure(axes: np.ndarray, views: Sequence[View]) -> None:
    """Give a figure of `new_panels` the size at which panels are as large as planned beside all that they hold."""
    figure = axes[0, 0].figure
    panels = np.zeros((*axes.shape, 2))  # inches
    around = np.zeros((*axes.shape, 4))  # left, below, right, above
    for row, view in enumerate(views):
        for column, ax in enumerate(axes[row]):
            if ax in figure.axes:  # not removed
                held, box = ax.get_tightbbox(for_layout_only=True), ax.get_window_extent()
                panels[row, column] = panel_inches(view)
                around[row, column] = np.concatenate([box.p0 - held.p0, held.p1 - box.p1]) / figure.dpi
    pads = plt.rcParams["figure.constrained_layout.w_pad"], plt.rcParams["figure.constrained_layout.h_pad"]
    widths = panels[..., 0].max(axis=0) + around[..., [0, 2]].max(axis=0).sum(axis=1) + 2 * pads[0]
    heights = panels[..., 1].max(axis=1) + around[..., [1, 3]].max(axis=1).sum(axis=1) + 2 * pads[1]
    # constrained layout finds too little room for titles, unless it is the width that limits panels
    figure.set_size_inches(max(widths.sum(), SMALLEST_INCHES), heights.sum() + SPARE_INCHES * len(views))


def titled(*lines: str, inches: float) -> str:
    """Title of lines that are as wide as a panel, or as 22 letters."""
    width = max(22, int(inches / LETTER_INCHES))
    return "\n".join(textwrap.fill(line, width) for line in lines)


def draw_tissue(ax: Axes, view: View) -> None:
    if view.pixels is not None:
        ax.imshow(view.pixels, extent=view.extent)
        ax.set_facecolor(tuple(view.background / 255))
    ax.set(xlim=(view.left, view.right), ylim=(view.bottom, view.top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_spots(ax: Axes, section: Section, size: float, **look: Any) -> Collection:
    """Draw spots at `size` times their true size; `look` is set on the collection."""
    size = size * _diameter(section)
    spots: Collection
    if look["alpha"] is None:
        look["alpha"] = SQUARES_ALPHA if section.spot_shape == "square" else 1.0
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


def draw_colour_bar(ax: Axes, spots: Collection, inches: tuple[float, float], *, extend: str, label: str) -> None:
    """Colour bar beside a panel of that width and height, as high as the panel wherever the caller's Axes are."""
    width, height = inches
    beside = ax.inset_axes((1 + 0.07 / width, 0, 0.13 / width, 1))
    ticks = MaxNLocator(int(np.clip(height / 0.35, 1, 6)))
    bar = ax.figure.colorbar(spots, cax=beside, extend=extend, ticks=ticks)
    bar.ax.tick_params(labelsize="small", pad=2, length=2.5)
    # in lines no longer than the panel is high, as the next row follows
    bar.set_label(textwrap.fill(label, max(10, int(height / SMALL_LETTER_INCHES))), fontsize="small")


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
