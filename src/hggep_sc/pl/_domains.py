import logging
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D

from .. import _keys
from ..section import listed, open_sections, table_of
from ._axes import GivenAxes, given_axes
from ._style import COLOURS, GREY, colour
from ._tissue import draw_scale_bar, draw_spots, draw_tissue, new_panels, one_section, view_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

LEGEND_LETTERS = 40  # that fit below a panel side by side


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
    alpha: float = 1.0,
    spot_size: float = 1.0,
    ax: GivenAxes = None,
) -> list[Axes]:
    """Draw domains on the H&E image, a panel per column of `obs`, and the labels to compare them with.

    What overlaps most has the same colour in every panel: domains are matched to the labels (without them to the
    first column) so that as many spots as can be agree in colour. Spots without a domain, without a label or with
    one that is excluded are grey.

    Parameters
    ----------
    data
        One section with the columns, or several of which `library_id` or `shapes_key` chooses one.
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
    alpha
        Opacity of the spots.
    spot_size
        As in `hggep_sc.pl.gene_map`.
    ax
        Axes to draw on, one per panel, of a figure best made with `layout="constrained"`; None for a new figure.

    Returns
    -------
    The Axes. With labels, titles hold the adjusted Rand index over the section's labelled spots, and where
    `hggep_sc.tl.domains` compared with the same labels in this section alone, its p-value.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If there are several sections and none is chosen, no column, one that holds the same name as a number and as
        text, or another number of Axes than needed.
    """
    keys = [keys] if isinstance(keys, str) else list(keys)
    if not keys:
        raise ValueError("keys is empty: name at least one column of obs")
    section = one_section(
        open_sections(
            data,
            library_key=library_key,
            library_id=library_id,
            spatial_key=spatial_key,
            image_key=image_key,
            shapes_key=shapes_key,
            table_key=table_key,
            coordinate_system=coordinate_system,
            mpp=mpp,
            noted=list(table_of(data, table_key).layers),
            check=False,
        )
    )
    table = section.table
    excluded = [exclude_label] if isinstance(exclude_label, str) else list(exclude_label or [])
    panels = {key: _column(table, key, section.obs_rows) for key in keys}
    if label_key is not None:
        labels = _column(table, label_key, section.obs_rows)
        panels[label_key] = labels.cat.remove_categories(labels.cat.categories.intersection(excluded))
    view = view_of(section, image=image, crop=crop)
    if ax is None:
        lines = max(_legend_lines(column) for column in panels.values())
        axes = list(new_panels([view], len(panels), beside=0.2, above=0.5, below=0.2 * lines)[0])
    else:
        axes = given_axes(ax, len(panels), ", ".join(panels))
    palette = _matched(panels, keys[0] if label_key is None else label_key)
    for panel, (name, column) in zip(axes, panels.items(), strict=True):
        draw_tissue(panel, view)
        of_category = to_rgba_array([colour(palette[name][category]) for category in column.cat.categories] + [GREY])
        draw_spots(panel, section, spot_size, facecolor=of_category[column.cat.codes], alpha=alpha)
        title = name
        if label_key is not None and name != label_key:
            title += f"\n{_agreement(column, panels[label_key], _record(table, name, label_key))}"
        panel.set_title(title, fontsize="medium")
        _draw_legend(panel, column, palette[name])
    if section.mpp is not None:
        draw_scale_bar(axes[0], view, section.mpp)
    return axes


def _column(table: "AnnData", key: str, rows: np.ndarray) -> pd.Series:
    """Read a column of obs as a categorical of the names that occur."""
    if key not in table.obs:
        raise KeyError(f"obs has no column {key!r}; columns: {', '.join(map(str, table.obs.columns))}")
    column = table.obs[key].iloc[rows].astype("category").cat.remove_unused_categories()
    names = pd.Index([str(category) for category in column.cat.categories])
    if not names.is_unique:
        twice = listed(names[names.duplicated()].unique())
        raise ValueError(f"obs[{key!r}] holds {twice} both as text and as another type; bring the column to one type")
    return column.cat.rename_categories(names)


def _matched(columns: dict[str, pd.Series], anchor: str) -> dict[str, dict[str, int]]:
    """Give each category of each column the number of its colour; the anchor's are 0, 1, ...

    Every other column's categories are paired with the anchor's so that most spots agree. What is left over has a
    colour of its own, unlike any other panel's.
    """
    from scipy.optimize import linear_sum_assignment

    anchored = columns[anchor].cat.categories
    numbers = {anchor: {category: i for i, category in enumerate(anchored)}}
    n = len(anchored)
    for name, column in columns.items():
        if name == anchor:
            continue
        categories = column.cat.categories
        shared = pd.crosstab(column, columns[anchor]).reindex(index=categories, columns=anchored, fill_value=0)
        pairs = zip(*linear_sum_assignment(shared, maximize=True), strict=True)
        numbers[name] = {categories[i]: int(j) for i, j in pairs if shared.to_numpy()[i, j] > 0}
        for category in categories.difference(list(numbers[name]), sort=False):
            numbers[name][category] = n
            n += 1
    if n > len(COLOURS):
        logger.warning("there are %d domains to tell apart and %d colours, which repeat", n, len(COLOURS))
    return numbers


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


def _draw_legend(panel: Axes, column: pd.Series, numbers: dict[str, int]) -> None:
    shades = [colour(numbers[category]) for category in column.cat.categories] + [GREY] * bool(column.isna().any())
    names = _legend_names(column)
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}
    panel.legend(
        handles=[Line2D([], [], color=shade, label=name, **look) for shade, name in zip(shades, names, strict=True)],
        ncols=_legend_columns(names),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        fontsize="small",
        frameon=False,
        handletextpad=0.1,
        columnspacing=0.8,
    )


def _legend_names(column: pd.Series) -> list[str]:
    names = [*column.cat.categories, *["none"] * bool(column.isna().any())]
    return [textwrap.fill(name, LEGEND_LETTERS) for name in names]


def _legend_columns(names: list[str]) -> int:
    return max(1, LEGEND_LETTERS // (max(map(len, names), default=0) + 4))


def _legend_lines(column: pd.Series) -> int:
    names = _legend_names(column)
    in_column = -(-len(names) // _legend_columns(names))
    return in_column * max(name.count("\n") + 1 for name in names)
