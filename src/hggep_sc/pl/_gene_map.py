from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import Colormap, Normalize
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from .. import _keys
from ..expression import ExpressionScale, observed_expression
from ..metrics import pearson
from ..section import Section, open_sections, read_prediction, table_of
from ._axes import given_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Extend = Literal["neither", "min", "max", "both"]  # ends of a colour bar beyond which values lie

PANEL_INCHES = 3.4  # longer side of a panel in a figure of our own
PANEL_PX = 1000  # longer side of the image under a panel
IMAGE_PX = 4096  # longest side of the reduced image that a panel is cut from
IMAGE_STRENGTH = 0.65  # of the image's colours on white
WHITE = np.full(3, 255, dtype=np.uint8)
MANY_SPOTS = 5000  # from here on a vector file holds the spots as pixels


def gene_map(
    data: "AnnData | SpatialData",
    genes: str | Sequence[str],
    *,
    key: str = _keys.KEY,
    observed_layer: str | None = None,
    library_key: str | None = None,
    library_id: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    image: bool = True,
    crop: bool = True,
    cmap: str | Colormap = "viridis",
    alpha: float = 1.0,
    spot_size: float = 1.0,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
) -> list[Axes]:
    """Draw observed beside predicted expression on the H&E image, a row of two panels per gene.

    Both are in natural-log expression, the observed counts brought to the scale that the prediction was made
    on; one colour scale, without the outermost hundredths of the values, serves both panels of a gene. Spots
    that were not predicted, or where nothing was counted, are left out of that panel. Without counts there is
    the predicted panel alone.

    Parameters
    ----------
    data
        One section after `hggep_sc.tl.predict`, or several of which `library_id` or `shapes_key` chooses one.
    genes
        Predicted genes to draw.
    key
        Name of the prediction.
    observed_layer
        Layer with raw counts; None for the one `predict` was given, else `X`.
    library_key, library_id, spatial_key, image_key, shapes_key, table_key, coordinate_system, mpp
        As in `hggep_sc.tl.fit`; `library_id` (AnnData) and `shapes_key` (SpatialData) choose the section. A
        reduced image is quicker: `image_key="hires"`.
    image
        Draw the H&E image under the spots.
    crop
        Show the spots with a margin; False for the whole image.
    cmap
        Colour map.
    alpha
        Opacity of the spots.
    spot_size
        Factor on the spots' true diameter. Where that is unknown, circles are drawn 0.55 (as in Visium) and
        squares 1 times as wide as spots are apart.
    ax
        Axes to draw on, a pair per gene (one per gene without counts), of a figure best made with
        `layout="constrained"`; None for a new figure.

    Returns
    -------
    The Axes, row by row. Titles hold the Pearson correlation across spots; the scale bar needs a known mpp.

    Raises
    ------
    KeyError
        If there is no prediction under `key`, or a gene is not in the object or not predicted.
    ValueError
        If there are several sections and none is chosen, no gene, or another number of Axes than needed.
    """
    if isinstance(data, list | tuple | dict):
        raise TypeError(f"gene_map draws one object at a time, found a {type(data).__name__}: pass one of its items")
    table = table_of(data, table_key)
    record, columns = read_prediction(table, key)
    panel = list(table.var_names[columns])
    genes = [genes] if isinstance(genes, str) else list(genes)
    _require_predicted(genes, panel, list(table.var_names))
    layer = observed_layer or record.get("counts_layer")
    if observed_layer is not None and observed_layer not in table.layers:
        raise KeyError(f"`observed_layer`: there is no layer {observed_layer!r}; layers: {list(table.layers)}")
    section = _one_section(
        open_sections(
            data,
            library_key=library_key,
            library_id=library_id,
            spatial_key=spatial_key,
            image_key=image_key,
            shapes_key=shapes_key,
            table_key=table_key,
            coordinate_system=coordinate_system,
            layer=layer,
            mpp=mpp,
        )
    )
    scale = ExpressionScale.of_record(record)
    values = {"predicted": _predicted(table, key, section, genes, scale)}
    if section.has_counts:
        observed = observed_expression(table, section.obs_rows, panel, scale, genes=genes, layer=layer)
        values = {"observed": observed, **values}

    view = _view(section, image=image, crop=crop)
    n = len(values)
    if ax is None:
        axes = _new_axes(len(genes), n, view)
    else:
        axes = given_axes(ax, len(genes) * n, f"{' and '.join(values)} for each of {len(genes)} genes")
    for row, gene in enumerate(genes):
        drawn = axes[row * n : (row + 1) * n]
        of_gene = {kind: matrix[:, row] for kind, matrix in values.items()}
        _draw_gene(drawn, gene, of_gene, section, view, scale, cmap=cmap, alpha=alpha, spot_size=spot_size)
    return axes


@dataclass
class _View:
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


def _require_predicted(genes: list[str], panel: list[str], var_names: list[str]) -> None:
    if not genes:
        raise ValueError("genes is empty: name at least one predicted gene")
    predicted = set(panel)
    for gene in genes:
        if gene in predicted:
            continue
        by_lower = {name.lower(): name for name in panel}
        close = [by_lower[name] for name in get_close_matches(str(gene).lower(), by_lower, n=5)]
        found = "is not predicted by the model" if gene in set(var_names) else "is not in the object"
        hint = f"; similar predicted genes: {', '.join(close)}" if close else f"; predicted are {len(panel)} genes"
        raise KeyError(f"gene {gene!r} {found}{hint}")


def _one_section(sections: list[Section]) -> Section:
    if len(sections) > 1:
        names = ", ".join(repr(section.name) for section in sections)
        raise ValueError(
            f"the object holds several sections: {names}; choose one by library_id= (AnnData) or "
            "shapes_key= (SpatialData)"
        )
    return sections[0]


def _predicted(table: "AnnData", key: str, section: Section, genes: list[str], scale: ExpressionScale) -> np.ndarray:
    columns = table.var_names.get_indexer(genes)
    return np.asarray(table.layers[key][section.obs_rows][:, columns]) * scale.log_unit


def _view(section: Section, *, image: bool, crop: bool) -> _View:
    low, high = section.xy.min(axis=0), section.xy.max(axis=0)
    margin = 0.03 * (high - low).max() + _diameter(section)
    (left, top), (right, bottom) = low - margin, high + margin
    if crop and not image:
        return _View(left, right, top, bottom, None, (0, 0, 0, 0), WHITE)
    with section.open_image() as opened:
        height, width = opened.shape
        if not crop:
            left, top, right, bottom = 0.0, 0.0, float(width), float(height)
        if not image:
            return _View(left, right, top, bottom, None, (0, 0, 0, 0), WHITE)
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
    return _View(left, right, top, bottom, pixels, extent, background)


def _diameter(section: Section) -> float:
    """Diameter or side of a spot in px."""
    if section.spot_diameter is not None:
        return section.spot_diameter
    if len(section.xy) < 2:
        return 100.0
    from scipy.spatial import cKDTree

    spacing = float(np.median(cKDTree(section.xy).query(section.xy, k=2)[0][:, 1]))
    return spacing if section.spot_shape == "square" else 0.55 * spacing


def _new_axes(n_genes: int, n_panels: int, view: _View) -> list[Axes]:
    unit = PANEL_INCHES / max(view.width, view.height)
    size = (n_panels * unit * view.width + 0.9, n_genes * (unit * view.height + 0.5))
    _, axes = plt.subplots(n_genes, n_panels, figsize=size, layout="constrained", squeeze=False)
    return list(axes.ravel())


def _draw_gene(
    axes: list[Axes],
    gene: str,
    values: dict[str, np.ndarray],
    section: Section,
    view: _View,
    scale: ExpressionScale,
    *,
    cmap: str | Colormap,
    alpha: float,
    spot_size: float,
) -> None:
    norm, extend = _colour_scale(np.concatenate(list(values.values())))
    for ax, (kind, array) in zip(axes, values.items(), strict=True):
        _draw_tissue(ax, view)
        spots = _spots(section, ax, spot_size * _diameter(section))
        spots.set(array=np.ma.masked_invalid(array), cmap=cmap, norm=norm, alpha=alpha, linewidth=0)
        spots.set_rasterized(len(array) > MANY_SPOTS)
        ax.add_collection(spots, autolim=False)
        title = kind
        if kind == "predicted" and "observed" in values:
            title += f", {_correlation(array, values['observed'])}"
        ax.set_title(f"{gene}\n{title}", fontsize="medium")
    if section.mpp is not None:
        _draw_scale_bar(axes[0], view, section.mpp)
    # in the panel's own frame: as high as the image, wherever the caller's Axes are
    beside = axes[-1].inset_axes((1.03, 0, 0.045, 1))
    axes[-1].figure.colorbar(spots, cax=beside, extend=extend, label=_unit(scale))


def _colour_scale(values: np.ndarray) -> tuple[Normalize, Extend]:
    """Range of all but the outermost hundredths, and at which ends values lie beyond it."""
    values = values[np.isfinite(values)]
    if not values.size:
        return Normalize(0, 1), "neither"
    least, most = float(values.min()), float(values.max())
    low, high = (float(limit) for limit in np.percentile(values, [1, 99]))
    if low == high:  # a gene that hardly any spot has
        low, high = least, most
    ends: dict[tuple[bool, bool], Extend] = {
        (False, False): "neither",
        (True, False): "min",
        (False, True): "max",
        (True, True): "both",
    }
    return Normalize(low, high), ends[least < low, most > high]


def _draw_tissue(ax: Axes, view: _View) -> None:
    if view.pixels is not None:
        ax.imshow(view.pixels, extent=view.extent)
        ax.set_facecolor(tuple(view.background / 255))
    ax.set(xlim=(view.left, view.right), ylim=(view.bottom, view.top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _spots(section: Section, ax: Axes, size: float) -> Collection:
    if section.spot_shape == "square":
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
        squares = list(section.xy[:, None] + corners)
        return PolyCollection(squares, antialiased=False)  # no seams between bins
    n = np.full(len(section.xy), size)
    return EllipseCollection(n, n, np.zeros(len(n)), units="xy", offsets=section.xy, offset_transform=ax.transData)


def _correlation(predicted: np.ndarray, observed: np.ndarray) -> str:
    seen = np.isfinite(predicted) & np.isfinite(observed)
    r = float(pearson(predicted[seen, None], observed[seen, None])[0])
    return f"r = {r:.2f}" if np.isfinite(r) else "r undefined"


def _draw_scale_bar(ax: Axes, view: _View, mpp: float) -> None:
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


def _unit(scale: ExpressionScale) -> str:
    of = "" if scale.normalize == "library" else " of the panel"
    return f"ln(1 + counts per {scale.target_sum:,.0f}{of})"
