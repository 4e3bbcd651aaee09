import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_hex, to_rgba_array
from matplotlib.lines import Line2D

from .. import _keys
from ..errors import MissingSlotError, ResultWarning
from ..runtime.messages import listed, warn
from ..runtime.validators import number, text_or_none
from ..section import open_sections, table_of
from ._arguments import names
from ._axes import GivenAxes, given_axes
from ._style import COLOURS, GREY
from ._tissue import (
    SMALL_LETTER_INCHES,
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

LEGEND_LETTERS = 40  # of a line of a name


def domains(
    data: "AnnData | SpatialData",
    keys: str | Sequence[str] = _keys.DOMAIN,
    *,
    label_key: str | None = None,
    exclude_label: str | Sequence[str] | None = _keys.UNDETERMINED,
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
    alpha: float | None = None,
    spot_size: float = 1.0,
    ax: GivenAxes = None,
) -> list[Axes]:
    """Draw domains on the H&E image, a panel per column of `obs`, and the labels to compare them with.

    Colours are those of `uns[f"{column}_colors"]`, as Scanpy keeps them. A column that has none there is given some:
    what overlaps most has the same colour in every panel, in that the column's categories are matched to the labels
    (without them to the first column) so that as many spots as can be agree in colour. Spots without a domain,
    without a label or with one that is excluded are grey.

    Parameters
    ----------
    data
        An object with the columns, of one section or of several, each of which has a row of panels (`library_id` or
        `shapes_key` chooses one).
    keys
        Columns of `obs`, such as `hggep_sc.tl.domains` writes.
    label_key
        Column of `obs` with labels, drawn last.
    exclude_label
        Labels that say nothing; None where all count.
    library_key, library_id, spatial_key, image_key, shapes_key, table_key, coordinate_system, mpp
        As in `hggep_sc.tl.fit`; `library_id` (AnnData) and `shapes_key` (SpatialData) choose the section.
    image
        Draw the H&E image under the spots.
    crop
        Show the spots with a margin; False for the whole image.
    alpha, spot_size
        As in `hggep_sc.pl.gene_map`.
    ax
        Axes to draw on, one per panel, of a figure best made with `layout="constrained"`; None for a new figure.

    Returns
    -------
    The Axes, section by section. With labels, titles hold the adjusted Rand index over the section's labelled spots,
    and where `hggep_sc.tl.domains` compared with the same labels in this section alone, its p-value. Written, as
    Scanpy's plots do, is

    - `uns[f"{column}_colors"]`: a list of hex colours, one for each category of the column in their order, where there
      was none, or one too short; of categorical columns alone, and not into a view

    Raises
    ------
    MissingSlotError
        If a column is missing.
    TypeError
        If `keys` is a set, which has no order, or no name.
    ValueError
        If the sections are of several objects, there is no column, one twice, one that holds the same name as a number
        and as text, an argument is out of its range, or for another number of Axes than needed.
    """
    keys = names(keys, "keys", "a column of obs")
    text_or_none("label_key", label_key)
    size = number("spot_size", spot_size, above=0)
    alpha = None if alpha is None else number("alpha", alpha, above=0, most=1)
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
        noted=_layers(data, table_key),
        check=False,
    )
    table = sections[0].table
    if any(section.table is not table for section in sections):
        raise ValueError(
            f"data holds {len(sections)} objects, whose domains are not the same ones: draw the domains of each apart"
        )
    excluded = [exclude_label] if isinstance(exclude_label, str) else list(exclude_label or [])
    rows = np.concatenate([section.obs_rows for section in sections])
    columns = {key: _column(table, key, rows) for key in keys}
    if label_key is not None:
        labels = _column(table, label_key, rows)
        columns[label_key] = labels.cat.remove_categories(labels.cat.categories.intersection(excluded))
    own = {key: found for key in columns if (found := _own_colours(table, key))}
    palette = _matched(columns, own, keys[0] if label_key is None else label_key)
    views = [view_of(section, image=image, crop=crop) for section in sections]
    if ax is None:
        grid = new_panels(views, len(columns))
    else:
        of = ", ".join(columns) + (f" in each of {len(sections)} sections" if len(sections) > 1 else "")
        grid = np.array(given_axes(ax, len(columns) * len(sections), of), dtype=object).reshape(len(sections), -1)
    of_section = np.split(np.arange(len(rows)), np.cumsum([len(section.obs_rows) for section in sections])[:-1])
    for section, view, spots, axes in zip(sections, views, of_section, grid, strict=True):
        for panel, (name, of_all) in zip(axes, columns.items(), strict=True):
            column = of_all.iloc[spots].cat.remove_unused_categories()
            inches = panel_inches(view) if ax is None else inches_in(panel, view)
            draw_tissue(panel, view)
            of_category = to_rgba_array([*(palette[name][category] for category in column.cat.categories), GREY])
            draw_spots(panel, section, size, facecolor=of_category[column.cat.codes], alpha=alpha)
            title = [f"{section.name}: {name}" if len(sections) > 1 else name]
            if label_key is not None and name != label_key:
                compared = columns[label_key].iloc[spots]
                title.append(_agreement(column, compared, _record(table, name, label_key)))
            panel.set_title(titled(*title, inches=inches[0]), fontsize="medium")
            _draw_legend(panel, column, palette[name], inches)
        if section.mpp is not None:
            draw_scale_bar(axes[0], view, section.mpp)
    if ax is None:
        fit_figure(grid, views)
    for key in columns:
        _keep_colours(table, key, palette[key], excluded if key == label_key else [])
    return list(grid.ravel())


def _layers(data: Any, table_key: str | None) -> list[str]:
    """Return the layers of all objects, which may be predictions that noted their scale."""
    objects = data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else [data]
    return list(dict.fromkeys(name for one in objects for name in table_of(one, table_key).layers))


def _column(table: "AnnData", key: str, rows: np.ndarray) -> pd.Series:
    """Read a column of obs as a categorical of the names that occur."""
    if key not in table.obs:
        raise MissingSlotError(f"obs has no column {key!r}; columns: {', '.join(map(str, table.obs.columns))}")
    column = table.obs[key].iloc[rows].astype("category").cat.remove_unused_categories()
    names = pd.Index([str(category) for category in column.cat.categories])
    if not names.is_unique:
        twice = listed(names[names.duplicated()].unique())
        raise ValueError(f"obs[{key!r}] holds {twice} both as text and as another type; bring the column to one type")
    return column.cat.rename_categories(names)


def _own_colours(table: "AnnData", key: str) -> dict[str, str] | None:
    """Colour of each category of a column as Scanpy keeps them, None where there are none that serve."""
    if not isinstance(table.obs[key].dtype, pd.CategoricalDtype) or (slot := f"{key}_colors") not in table.uns:
        return None
    found, categories = table.uns[slot], table.obs[key].cat.categories
    kept = list(np.atleast_1d(found)) if isinstance(found, str | Sequence | np.ndarray) else []
    if len(kept) < len(categories):
        warn(
            f"uns[{slot!r}] holds {len(kept)} colours, and obs[{key!r}] {len(categories)} categories: others are "
            "taken, and kept there",
            ResultWarning,
        )
        return None
    if wrong := [shade for shade in kept if not is_color_like(shade)]:
        warn(
            f"uns[{slot!r}] holds {listed(wrong[:1])}, which is no colour to Matplotlib: others are taken",
            ResultWarning,
        )
        return None
    return {str(category): to_hex(shade) for category, shade in zip(categories, kept, strict=False)}


def _keep_colours(table: "AnnData", key: str, colours: dict[str, str], grey: Sequence[str]) -> None:
    """Keep the colours of a column where Scanpy looks for them, unless as many are there; `grey` are labels left out.

    A category that no spot drawn has is given the next colour.
    """
    column, slot = table.obs[key], f"{key}_colors"
    if table.is_view or not isinstance(column.dtype, pd.CategoricalDtype):
        return
    categories = [str(category) for category in column.cat.categories]
    if slot in table.uns and len(np.atleast_1d(table.uns[slot])) >= len(categories):
        return
    others = _unlike(colours.values())
    table.uns[slot] = [
        to_hex(GREY) if name in grey else colours[name] if name in colours else next(others) for name in categories
    ]


def _unlike(taken: Iterable[str]) -> Iterator[str]:
    """Colours from the first, without those that are taken until there are no others."""
    taken = set(taken)
    yield from (shade for shade in map(to_hex, COLOURS) if shade not in taken)
    yield from map(to_hex, cycle(COLOURS))


def _matched(
    columns: dict[str, pd.Series], own: Mapping[str, dict[str, str]], anchor: str
) -> dict[str, dict[str, str]]:
    """Give each category of each column its colour: its own, or one by what it overlaps with.

    A column without colours is matched to the anchor, or where that has none either and another has, the anchor to
    the first of those: categories are paired so that most spots agree. What is left over has a colour of its own,
    unlike any other panel's.
    """
    from scipy.optimize import linear_sum_assignment

    palette = {name: dict(own[name]) for name in columns if name in own}
    kept = {shade for colours in palette.values() for shade in colours.values()}
    others, n_kept, n_new = _unlike(kept), len(kept), 0
    for name in sorted((name for name in columns if name not in own), key=lambda name: name != anchor):
        categories = columns[name].cat.categories
        colours: dict[str, str] = {}
        model = anchor if anchor in palette else next(iter(palette), None)
        if model is not None:
            models = columns[model].cat.categories
            table = pd.crosstab(columns[name], columns[model]).reindex(index=categories, columns=models, fill_value=0)
            shared = table.to_numpy()
            pairs = zip(*linear_sum_assignment(shared, maximize=True), strict=True)
            colours = {categories[i]: palette[model][models[j]] for i, j in pairs if shared[i, j] > 0}
        for category in categories.difference(list(colours), sort=False):
            colours[category] = next(others)
            n_new += 1
        palette[name] = colours
    if n_new and n_new + n_kept > len(COLOURS):
        warn(
            f"there are {n_new + n_kept} domains to tell apart and {len(COLOURS)} colours, which repeat", ResultWarning
        )
    return palette


def _record(table: "AnnData", key: str, label_key: str) -> Mapping[str, Any]:
    """Return what `tl.domains` noted of a column, where it compared it with these labels."""
    record = table.uns.get(key)
    return record if isinstance(record, Mapping) and record.get("label_key") == label_key else {}


def _agreement(column: pd.Series, labels: pd.Series, record: Mapping[str, Any]) -> str:
    from sklearn.metrics import adjusted_rand_score

    both = column.notna() & labels.notna()
    if not both.any():
        return "no labelled spot"
    ari = adjusted_rand_score(labels[both], column[both])
    text = f"ARI = {ari:.2f}"
    # of the same spots, and not of several sections
    if np.isclose(record.get("ari", np.nan), ari) and "ari_pval" in record:
        text += f", p = {record['ari_pval']:.2g}"
        if record.get("optimistic", False):
            text += " (best of a scan)"
    return text


def _draw_legend(panel: Axes, column: pd.Series, colours: dict[str, str], inches: tuple[float, float]) -> None:
    """Legend right of a panel that is higher than wide, below another, in as many columns as it takes to be no longer.

    `inches` are the panel's width and height.
    """
    width, height = inches
    categories = list(column.cat.categories)
    shades = [colours[category] for category in categories] + [GREY] * bool(column.isna().any())
    beside = height > width
    letters = LEGEND_LETTERS if beside else int(np.clip(width / SMALL_LETTER_INCHES - 4, 10, LEGEND_LETTERS))
    labels = [textwrap.fill(name, letters) for name in categories + ["none"] * bool(column.isna().any())]
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}
    handles = [Line2D([], [], color=shade, label=name, **look) for shade, name in zip(shades, labels, strict=True)]

    def drawn(ncols: int) -> np.ndarray:
        """Draw the legend; its width and height in inches."""
        legend = panel.legend(
            handles=handles,
            ncols=ncols,
            loc="center left" if beside else "upper center",
            bbox_to_anchor=(1, 0.5) if beside else (0.5, -0.01),
            fontsize="small",
            frameon=False,
            handletextpad=0.1,
            columnspacing=0.8,
        )
        return np.asarray(legend.get_window_extent().size) / panel.figure.dpi

    wide, high = drawn(1)
    n_columns = int(np.ceil(high / height)) if beside else int(np.clip(width / wide, 1, len(labels)))
    if n_columns > 1:
        drawn(-(-len(labels) // -(-len(labels) // n_columns)))  # of equal length
