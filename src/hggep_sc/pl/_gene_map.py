from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize

from .. import _keys
from ..runtime.validators import number, whole_or_none
from ..section import open_sections
from ._arguments import Limit, colour_map, limits, names
from ._axes import GivenAxes, given_axes
from ._expression import OBSERVED, Expression, correlation, read_expression
from ._tissue import (
    View,
    draw_colour_bar,
    draw_scale_bar,
    draw_spots,
    draw_tissue,
    fit_figure,
    inches_in,
    new_panels,
    panel_inches,
    titled,
    view_of,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

SIDE_BY_SIDE = 4  # panels of predictions alone
Extend = Literal["neither", "min", "max", "both"]  # ends of a colour bar beyond which values lie


def gene_map(
    data: "AnnData | SpatialData | Sequence[Any] | Mapping[str, Any]",
    genes: str | Sequence[str],
    *,
    key: str | Sequence[str] = _keys.KEY,
    observed_layer: str | None = None,
    library_key: str | None = None,
    library_id: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    image_key: str | Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | Mapping[str, float] | None = None,
    image: bool = True,
    crop: bool = True,
    cmap: str | Colormap = "viridis",
    vmin: Limit | Sequence[Limit] = "p1",
    vmax: Limit | Sequence[Limit] = "p99",
    shared_scale: bool = False,
    alpha: float | None = None,
    spot_size: float = 1.0,
    ncols: int | None = None,
    ax: GivenAxes = None,
) -> list[Axes]:
    """Draw observed beside predicted expression on the H&E image, a row of panels per section and gene.

    All are in natural-log expression, the observed counts brought to the scale that the prediction was made on. Every
    panel has a colour scale of its own, without the outermost hundredths of its values, so that it shows what the
    correlation in its title tells: where expression is high and where low. Of a section that the model was trained on,
    the title says so: its correlation is goodness of fit. A prediction varies less than what was
    observed; its colour bar says how much, and `shared_scale=True` shows it. Spots that were not predicted, or where
    nothing was counted, are left out of that panel. Without raw counts there are the predicted panels alone.

    Parameters
    ----------
    data
        A section after `hggep_sc.tl.predict`; or several, in one object (of which `library_id` or `shapes_key` can
        choose one), in a list or in a dict.
    genes
        Predicted genes to draw.
    key
        Name of the prediction, or of several, a panel each.
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
    vmin, vmax
        Limits of the colour scales, as in Scanpy: a value, a percentile of the panel's values as "p99", or None for
        their least or greatest; one for all genes, or a list with one for each.
    shared_scale
        One colour scale, and one colour bar, for all panels of a gene in a section.
    alpha
        Opacity of the spots. None: 1, and 0.6 for squares, which leave no tissue to be seen between them.
    spot_size
        Factor on the spots' true diameter, as in `scanpy.pl.spatial`. Where that is unknown, circles are drawn 0.55
        (as in Visium) and squares 1 times as wide as spots are apart.
    ncols
        Panels beside each other. None: those of a gene in a row; predictions alone four in a row.
    ax
        Axes to draw on, one per panel, of a figure best made with `layout="constrained"`; None for a new figure.

    Returns
    -------
    The Axes, row by row: section by section, gene by gene, observed before predicted. Titles hold the Pearson
    correlation across spots; the scale bar needs a known mpp.

    Raises
    ------
    MissingSlotError
        If there is no prediction under `key`, or a gene is not in the object or not predicted.
    TypeError
        If `genes` or `key` is a set, which has no order, or no name.
    ValueError
        If there is no section, gene or key, one is named twice or one of several keys is "observed", predictions are
        on different scales, `observed_layer` holds no counts, an argument is out of its range, `vmin` is not below
        `vmax`, or for another number of Axes than needed.
    """
    genes, keys = names(genes, "genes", "a predicted gene"), names(key, "key", "a prediction")
    scales = _Scales(genes, limits(vmin, "vmin", len(genes)), limits(vmax, "vmax", len(genes)), shared_scale)
    colours, size = colour_map(cmap), number("spot_size", spot_size, above=0)
    alpha = None if alpha is None else number("alpha", alpha, above=0, most=1)
    n_columns = whole_or_none("ncols", ncols)
    sections = open_sections(
        data,
        library_key=library_key,
        library_id=library_id,
        spatial_key=spatial_key,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        mpp=mpp,
        noted=keys,
        check=False,
    )
    several = isinstance(data, list | tuple | Mapping) or len(sections) > 1
    found = [read_expression(s.table, s.obs_rows, genes, keys, observed_layer) for s in sections]
    panels = [
        list(scales.panels(expression, section.name)) for expression, section in zip(found, sections, strict=True)
    ]
    views = [view_of(section, image=image, crop=crop) for section in sections]
    if ax is None:
        columns = max((list(expression.values) for expression in found), key=len)
        n_columns = n_columns or (len(columns) if len(columns) > 1 else SIDE_BY_SIDE)
        rows, grid, views_of_rows = _grid(panels, views, genes, columns, n_columns)
    else:
        rows = _on_given(ax, panels, genes)
    for i, drawn in rows:
        section, view = sections[i], views[i]
        for panel, panel_ax in drawn:
            width, height = panel_inches(view) if ax is None else inches_in(panel_ax, view)
            draw_tissue(panel_ax, view)
            look = {"array": np.ma.masked_invalid(panel.values), "cmap": colours, "norm": panel.norm, "alpha": alpha}
            spots = draw_spots(panel_ax, section, size, **look)
            heading = f"{section.name}: {panel.gene}" if several else panel.gene
            panel_ax.set_title(titled(heading, panel.title, inches=width), fontsize="medium")
            if panel.with_bar:
                unit = found[i].unit if panel is drawn[-1][0] else ""
                draw_colour_bar(panel_ax, spots, (width, height), extend=panel.extend, label=unit)
        if section.mpp is not None:
            draw_scale_bar(drawn[0][1], view, section.mpp)
    if ax is None:
        fit_figure(grid, views_of_rows)
    return [panel_ax for _, drawn in rows for _, panel_ax in drawn]


@dataclass(frozen=True)
class _Panel:
    """What a panel shows of a gene."""

    gene: str
    name: str
    title: str
    values: np.ndarray
    norm: Normalize
    extend: Extend
    with_bar: bool


@dataclass(frozen=True)
class _Scales:
    """The colour scales that were asked for: limits of each gene."""

    genes: list[str]
    vmin: list[Limit]
    vmax: list[Limit]
    shared: bool

    def __post_init__(self) -> None:
        for low, high in zip(self.vmin, self.vmax, strict=True):
            percentiles = isinstance(low, str) and isinstance(high, str) and float(low[1:]) >= float(high[1:])
            values = not isinstance(low, str | None) and not isinstance(high, str | None) and low >= high
            if percentiles or values:
                raise ValueError(f"vmin={low!r} must be below vmax={high!r}")

    def panels(self, expression: Expression, section: str) -> Iterator[_Panel]:
        """Panels of a section, gene by gene."""
        for j, (gene, low, high) in enumerate(zip(self.genes, self.vmin, self.vmax, strict=True)):
            values = {name: matrix[:, j] for name, matrix in expression.values.items()}
            for name, array in values.items():
                of = np.concatenate(list(values.values())) if self.shared else array
                where = f"section {section!r}, gene {gene!r}" + ("" if self.shared else f", {name}")
                norm, extend = _colour_scale(of, low, high, where)
                title = name
                if name != OBSERVED and OBSERVED in values:
                    trained = section in expression.trained[name]
                    told = correlation(array, values[OBSERVED], expression.scored[name], trained=trained)
                    title += f", {told}"
                with_bar = not self.shared or name == list(values)[-1]
                yield _Panel(gene, name, title, array, norm, extend, with_bar)


Row: TypeAlias = "tuple[int, list[tuple[_Panel, Axes]]]"  # number of its section, and what is drawn where


def _grid(
    panels: list[list[_Panel]], views: list[View], genes: list[str], columns: list[str], n_columns: int
) -> tuple[list[Row], np.ndarray, list[View]]:
    """Axes of a new figure for all panels, those of a section in rows of their own; the grid, and each row's view."""
    placed: list[tuple[int, list[_Panel | None]]] = []
    for i, of_section in enumerate(panels):
        by_place = {(panel.gene, panel.name): panel for panel in of_section}
        places = [by_place.get((gene, name)) for gene in genes for name in columns]  # none where nothing was counted
        placed += [(i, places[start : start + n_columns]) for start in range(0, len(places), n_columns)]
    placed = [(i, places) for i, places in placed if any(place is not None for place in places)]
    views_of_rows = [views[i] for i, _ in placed]
    grid = new_panels(views_of_rows, max(len(places) for _, places in placed))
    rows: list[Row] = []
    for (i, places), axes in zip(placed, grid, strict=True):
        for panel_ax in axes[[place is None for place in places] + [True] * (len(axes) - len(places))]:
            panel_ax.remove()
        drawn = [(panel, panel_ax) for panel, panel_ax in zip(places, axes, strict=False) if panel is not None]
        rows.append((i, drawn))
    return rows, grid, views_of_rows


def _on_given(ax: Any, panels: list[list[_Panel]], genes: list[str]) -> list[Row]:
    """Put all panels on the caller's Axes, a gene in a row."""
    columns = max(([panel.name for panel in of_section if panel.gene == genes[0]] for of_section in panels), key=len)
    of = f"{len(genes)} genes" + (f" in each of {len(panels)} sections" if len(panels) > 1 else "")
    needed = sum(map(len, panels))
    given = iter(given_axes(ax, needed, f"{' and '.join(columns)} for each of {of}"))
    return [
        (i, [(panel, next(given)) for panel in of_section if panel.gene == gene])
        for i, of_section in enumerate(panels)
        for gene in genes
    ]


def _colour_scale(values: np.ndarray, vmin: Limit, vmax: Limit, where: str) -> tuple[Normalize, Extend]:
    """Range of the values between two limits, and at which ends values lie beyond it."""
    values = values[np.isfinite(values)]
    if not values.size:
        return Normalize(0, 1), "neither"
    least, most = float(values.min()), float(values.max())
    low, high = (_value(limit, values, end) for limit, end in ((vmin, least), (vmax, most)))
    if low == high:  # a gene that hardly any spot has
        low, high = min(low, least), max(high, most)
    if low > high:
        raise ValueError(
            f"{where}: vmin={vmin!r} is {low:.3g} and not below vmax={vmax!r}, which is {high:.3g} there: give both as "
            "values, or leave both to the data"
        )
    ends: dict[tuple[bool, bool], Extend] = {
        (False, False): "neither",
        (True, False): "min",
        (False, True): "max",
        (True, True): "both",
    }
    return Normalize(low, high), ends[least < low, most > high]


def _value(limit: Limit, values: np.ndarray, end: float) -> float:
    """Return the value that a limit stands for; `end` is that of the data."""
    if isinstance(limit, str):
        return float(np.percentile(values, float(limit[1:])))
    return end if limit is None else float(limit)
