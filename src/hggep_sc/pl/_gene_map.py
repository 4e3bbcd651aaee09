from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize

from .. import _keys, _validators
from ..section import open_sections
from ._axes import GivenAxes, given_axes
from ._expression import OBSERVED, correlation, read_expression
from ._tissue import View, draw_scale_bar, draw_spots, draw_tissue, new_panels, one_section, view_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

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
    alpha: float = 1.0,
    spot_size: float = 1.0,
    ax: GivenAxes = None,
) -> list[Axes]:
    """Draw observed beside predicted expression on the H&E image, a row of panels per section and gene.

    All are in natural-log expression, the observed counts brought to the scale that the prediction was made on; one
    colour scale, without the outermost hundredths of the values, serves all panels of a row. Spots that were not
    predicted, or where nothing was counted, are left out of that panel. Without raw counts there are the predicted
    panels alone.

    Parameters
    ----------
    data
        One section after `hggep_sc.tl.predict`, or several of which `library_id` or `shapes_key` chooses one; or a
        list or dict of sections, which are all drawn.
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
    alpha
        Opacity of the spots.
    spot_size
        Factor on the spots' true diameter. Where that is unknown, circles are drawn 0.55 (as in Visium) and
        squares 1 times as wide as spots are apart.
    ax
        Axes to draw on, one per panel, of a figure best made with `layout="constrained"`; None for a new figure.

    Returns
    -------
    The Axes, row by row: section by section, gene by gene, observed before predicted. Titles hold the Pearson
    correlation across spots; the scale bar needs a known mpp.

    Raises
    ------
    KeyError
        If there is no prediction under `key`, or a gene is not in the object or not predicted.
    ValueError
        If one object holds several sections and none is chosen, no gene or key is given, a key is given twice or one
        of several is "observed", predictions are on different scales, `observed_layer` holds no counts, or for
        another number of Axes than needed.
    """
    genes = [genes] if isinstance(genes, str) else _validators.names("genes", genes)
    keys = [key] if isinstance(key, str) else _validators.names("key", key)
    if not genes:
        raise ValueError("genes is empty: name at least one predicted gene")
    if not keys:
        raise ValueError("key is empty: name at least one prediction")
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
    several = isinstance(data, list | tuple | Mapping)
    if not several:
        sections = [one_section(sections)]
    found = [read_expression(s.table, s.obs_rows, genes, keys, observed_layer) for s in sections]
    views = [view_of(section, image=image, crop=crop) for section in sections]
    rows = _panels(ax, [list(expression.values) for expression in found], views, len(genes))
    for i, (section, view, expression) in enumerate(zip(sections, views, found, strict=True)):
        for j, gene in enumerate(genes):
            heading = f"{section.name}: {gene}" if several else gene
            values = {panel: matrix[:, j] for panel, matrix in expression.values.items()}
            norm, extend = _colour_scale(np.concatenate(list(values.values())))
            drawn = rows[i * len(genes) + j]
            for panel_ax, (panel, array) in zip(drawn, values.items(), strict=True):
                draw_tissue(panel_ax, view)
                look = {"array": np.ma.masked_invalid(array), "cmap": cmap, "norm": norm, "alpha": alpha}
                spots = draw_spots(panel_ax, section, spot_size, **look)
                title = panel
                if panel != OBSERVED and OBSERVED in values:
                    title += f", {correlation(array, values[OBSERVED])}"
                panel_ax.set_title(f"{heading}\n{title}", fontsize="medium")
            if section.mpp is not None:
                draw_scale_bar(drawn[0], view, section.mpp)
            # in the panel's own frame: as high as the image, wherever the caller's Axes are
            beside = drawn[-1].inset_axes((1.03, 0, 0.045, 1))
            drawn[-1].figure.colorbar(spots, cax=beside, extend=extend, label=expression.unit)
    return [panel_ax for drawn in rows for panel_ax in drawn]


def _panels(ax: GivenAxes, panels: list[list[str]], views: list[View], n_genes: int) -> list[list[Axes]]:
    """Axes of each row, section by section and gene by gene; `panels` names those of each section's rows."""
    rows = [names for names in panels for _ in range(n_genes)]
    columns = max(rows, key=len)
    if ax is not None:
        of = f"{n_genes} genes" + (f" in each of {len(panels)} sections" if len(panels) > 1 else "")
        given = iter(given_axes(ax, sum(map(len, rows)), f"{' and '.join(columns)} for each of {of}"))
        return [[next(given) for _ in names] for names in rows]
    grid = new_panels([view for view in views for _ in range(n_genes)], len(columns), beside=0.9, above=0.5)
    for names, axes in zip(rows, grid, strict=True):
        for name, panel in zip(columns, axes, strict=True):
            if name not in names:
                panel.remove()
    return [list(axes[-len(names) :]) for names, axes in zip(rows, grid, strict=True)]  # what is missing comes first


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
