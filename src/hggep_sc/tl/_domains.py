import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from .. import _keys
from .._version import __version__
from ..errors import LeakageWarning, MissingSlotError
from ..evaluation.spatial_null import agreement, agreement_pvalues, contingency, moved_maps
from ..runtime.messages import listed, warn
from ..runtime.validators import flag, names, number, seed_of, text, text_or_none, whole, whole_or_none
from ..section import (
    CountMatrix,
    coordinates_of,
    copy_of,
    open_sections,
    read_prediction,
    require_free,
    require_key,
    require_no_backed_view,
    section_column,
    table_of,
    under_tissue,
    warn_of_replaced,
)
from ..section.expression import ExpressionScale
from ._leiden import expression_graph, leiden, most_variable, resolution_for, spatial_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    Data = TypeVar("Data", AnnData, SpatialData)

logger = logging.getLogger(__name__)

MIN_SPOTS = 3
MIN_GENES = 2  # of which a principal component can be taken


def domains(
    data: "Data",
    *,
    layer: str | None = _keys.KEY,
    key_added: str = _keys.DOMAIN,
    label_key: str | None = None,
    exclude_label: str | Sequence[str] | None = _keys.UNDETERMINED,
    resolution: float = 1.0,
    n_domains: int | None = None,
    scan: Sequence[float] | None = None,
    spatial_weight: float = 0.0,
    n_pcs: int = 50,
    n_neighbors: int = 15,
    n_permutations: int = 999,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    copy: bool = False,
) -> "Data | None":
    """Find tissue domains: PCA, nearest neighbours and Leiden on predicted, or any, expression.

    Labels never enter the clustering: with `label_key` its result is compared with them afterwards.

    Parameters
    ----------
    data
        AnnData or SpatialData of one section or several.
    layer
        What to cluster: a prediction (its spots and genes alone), or another layer, or None for `X`. Raw counts are
        normalised to ln(1 + counts per 10,000), other values are taken as they are, at the spots under tissue; of
        more than 2,000 genes the most variable count.
    key_added
        Name of the result.
    label_key
        Column of `obs` with labels, such as a pathologist's, to compare the domains with. Spots without are left
        out of the comparison.
    exclude_label
        Labels that say nothing, whose spots are left out too; None for none.
    resolution
        Of Leiden: the higher, the more domains.
    n_domains
        How many domains, instead of a resolution, which is searched for.
    scan
        Resolutions, instead of one, of which that with the best adjusted Rand index is taken. The figures are
        optimistic then, as the labels chose the resolution, and are marked so.
    spatial_weight
        Weight of a graph of neighbouring spots beside that of like expression, both scaled to one total.
    n_pcs, n_neighbors
        Principal components, and neighbours in the graph of like expression.
    n_permutations
        Motions of the domains over the section, by which the p-values are found; 0 for no p-values.
    library_key
        AnnData of several sections: column of `obs` that tells them apart; None for the one that the prediction was
        given. Needed for neighbours and p-values alone.
    spatial_key
        `obsm` slot of the spots' coordinates; a SpatialData without it has those of its shapes.
    table_key
        SpatialData: which of several tables.
    seed
        The same seed gives the same domains and p-values, in whatever order the spots are.
    overwrite
        Replace what is in the way of the result. Without it earlier domains under this key are replaced, and nothing
        else; what the object cannot do without, such as `obs["in_tissue"]`, never is.
    copy
        Return a new object instead of writing into `data`.

    Returns
    -------
    None, or the new object with `copy=True`. Written are

    - `obs[key_added]`: categorical of "0", "1", ..., by size; NaN for spots that were not clustered
    - `uns[f"{key_added}_colors"]`: removed, as colours of earlier domains
    - `uns[key_added]`: the parameters, the resolution, the number of domains; with labels `ari`, `nmi` (adjusted
      Rand index; mutual information over the mean entropy), `n_labelled`, `ari_pval`, `nmi_pval`, and `optimistic`
      where a scan chose the resolution, with the table of the `scan`

    Raises
    ------
    MissingSlotError
        If there is no such prediction, layer, column or slot.
    ValueError
        If the number of domains cannot be had, fewer than two labels are there, values are missing, a parameter is
        out of its range, or a slot holds something else.
    TypeError
        If a parameter is of another kind.

    Notes
    -----
    The p-values are those of a spatially aware null: `docs/domains.md`.
    """
    flag("copy", copy)
    target = copy_of(data) if copy else data
    table = table_of(target, table_key)
    require_no_backed_view(table)
    resolution, scan = number("resolution", resolution, above=0), _resolutions(scan)
    spatial_weight = number("spatial_weight", spatial_weight, least=0)
    n_domains, n_permutations = whole_or_none("n_domains", n_domains), whole("n_permutations", n_permutations, least=0)
    n_pcs, n_neighbors = whole("n_pcs", n_pcs), whole("n_neighbors", n_neighbors)
    for name, value in {"layer": layer, "label_key": label_key, "library_key": library_key}.items():
        text_or_none(name, value)
    text("spatial_key", spatial_key)
    seed = seed_of("seed", seed)
    exclude_label = [exclude_label] if isinstance(exclude_label, str) else exclude_label
    excluded = [] if exclude_label is None else names("exclude_label", exclude_label)
    _require_one_choice(resolution, n_domains, scan, label_key)
    require_key(key_added)
    slots = [("obs", key_added), ("uns", key_added)]
    owned = slots if {"hggep_sc", "n_domains"} <= set(_record(table, key_added)) else []
    reads = [("obs", name) for name in (label_key, library_key) if name is not None]
    replaced = require_free(table, slots, owned=owned, overwrite=overwrite, reads=reads)

    rows, expression, record = _expression(table, layer)
    if len(rows) < max(MIN_SPOTS, n_domains or 0):
        raise ValueError(f"{n_domains or 'some'} domains of {len(rows)} spots: there are too few spots")
    if expression.shape[1] < MIN_GENES:
        raise ValueError(f"domains of {expression.shape[1]} gene(s): spots are compared by {MIN_GENES} or more")
    if (expression.max(axis=0) - expression.min(axis=0)).sum() == 0:
        raise ValueError(f"{'X' if layer is None else f'layers[{layer!r}]'} is the same at every spot: no domains")
    labels = None if label_key is None else _labels(table, rows, label_key, excluded)
    if spatial_weight > 0 or (labels is not None and n_permutations > 0):
        xy, section = _places(target, table, rows, library_key or record.get("library_key"), spatial_key, table_key)

    graphs = [expression_graph(expression, n_pcs=n_pcs, n_neighbors=n_neighbors, seed=seed)]
    if spatial_weight > 0:
        graphs.append(spatial_graph(xy, section))
        if not graphs[1].nnz:
            raise ValueError("spatial_weight is given, but no section has two spots that could be neighbours")
    partition = partial(leiden, graphs, [1.0, spatial_weight][: len(graphs)], seed=seed)
    if n_domains is None:
        resolutions = [resolution] if scan is None else scan
        clusterings = np.stack([partition(value) for value in resolutions])
    else:
        found, codes = resolution_for(n_domains, partition)
        resolutions, clusterings = [found], codes[None]

    chosen = 0
    comparison: dict[str, Any] = {}
    if labels is not None:
        ari, nmi = _agreement(clusterings, labels)
        chosen = int(ari.argmax())
        comparison = {
            "label_key": label_key,
            "exclude_label": np.array(excluded, dtype=object),
            "n_labelled": int((labels >= 0).sum()),
            "ari": float(ari[chosen]),
            "nmi": float(nmi[chosen]),
            "optimistic": scan is not None,
        }
        if scan is not None:
            sizes = clusterings.max(axis=1) + 1
            comparison["scan"] = {"resolution": np.array(resolutions), "n_domains": sizes, "ari": ari, "nmi": nmi}
            warn(
                f"the labels chose the resolution, the best of {len(sizes)}: ARI and NMI are optimistic",
                LeakageWarning,
            )
        if n_permutations > 0:
            maps = _maps(xy, section, labels >= 0, n_permutations, seed)
            ari_pval, nmi_pval = agreement_pvalues(clusterings, labels, maps)
            comparison |= {"ari_pval": ari_pval, "nmi_pval": nmi_pval, "n_permutations": n_permutations}

    codes = clusterings[chosen]
    column = np.full(table.n_obs, -1, dtype=np.int64)
    column[rows] = codes
    categories = pd.Index([str(code) for code in range(int(codes.max()) + 1)])
    warn_of_replaced(replaced)
    table.obs[key_added] = pd.Categorical.from_codes(column, categories=categories)
    table.uns.pop(f"{key_added}_colors", None)  # of other domains
    table.uns[key_added] = {
        "hggep_sc": __version__,
        "layer": "X" if layer is None else layer,
        "n_spots": len(rows),
        "n_genes": expression.shape[1],
        "n_pcs": n_pcs,
        "n_neighbors": n_neighbors,
        "spatial_weight": spatial_weight,
        "seed": seed,
        "resolution": resolutions[chosen],
        "n_domains": len(categories),
        **comparison,
    }
    return target if copy else None


def _resolutions(scan: Sequence[float] | None) -> list[float] | None:
    if scan is None:
        return None
    if isinstance(scan, str) or not isinstance(scan, Iterable):
        raise TypeError(f"scan={scan!r} must be a list of resolutions")
    if not (values := [number("scan", value, above=0) for value in scan]):
        raise ValueError(f"scan={scan!r} is empty: give resolutions, or None")
    return values


def _record(table: "AnnData", key: str) -> Mapping[str, Any]:
    """Return what `uns` holds under a key, if it could be a record."""
    record = table.uns.get(key)
    return record if isinstance(record, Mapping) else {}


def _require_one_choice(
    resolution: float, n_domains: int | None, scan: list[float] | None, label_key: str | None
) -> None:
    given = {"resolution": resolution != 1.0, "n_domains": n_domains is not None, "scan": scan is not None}
    if sum(given.values()) > 1:
        raise ValueError(f"{' and '.join(name for name in given if given[name])} are given: give one of them")
    if scan is not None and label_key is None:
        raise ValueError("scan= chooses a resolution by labels: name their column by label_key=")


def _expression(table: "AnnData", layer: str | None) -> tuple[np.ndarray, Any, dict[str, Any]]:
    """Rows to cluster, in the order of their names, their log expression, and the record where it is a prediction."""
    if layer is not None and (layer not in table.layers or _keys.predicted(layer) in table.var):
        record, columns = read_prediction(table, layer)
        values = np.asarray(table.layers[layer])[:, columns]
        rows = np.flatnonzero(np.isfinite(values).all(axis=1))
        rows = rows[_by_name(table, rows)]
        return rows, values[rows], record
    rows = under_tissue(table, np.arange(table.n_obs), "data")
    rows = rows[_by_name(table, rows)]
    matrix = CountMatrix(table, layer, "the table")
    values = matrix.values(rows)
    if not np.isfinite(values.data).all():
        raise ValueError(f"{matrix.slot} holds NaN or infinite values: domains need a value at every spot and gene")
    if not values.data.any():
        raise ValueError(f"{matrix.slot} holds zeros alone at the {len(rows)} spots under tissue")
    if (values.data >= 0).all() and np.array_equal(values.data, np.rint(values.data)):
        logger.info("%s holds raw counts: they are normalised to ln(1 + counts per 10,000)", matrix.slot)
        totals = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
        rows, values = rows[totals > 0], ExpressionScale().transform_sparse(values[totals > 0], totals[totals > 0])
    return rows, most_variable(values), {}


def _by_name(table: "AnnData", rows: np.ndarray) -> np.ndarray:
    """Order of spots by name: Leiden's result depends on the order, which says nothing."""
    return np.argsort(table.obs_names.to_numpy(dtype=str)[rows], kind="stable")


def _labels(table: "AnnData", rows: np.ndarray, key: str, excluded: list[str]) -> np.ndarray:
    """Codes of the labels at `rows`, -1 where there is none that counts."""
    if key not in table.obs:
        raise MissingSlotError(f"`label_key`: obs has no column {key!r}; columns: {listed(table.obs.columns)}")
    column = table.obs[key].iloc[rows]
    names = column.astype(str).where(column.notna().to_numpy() & ~column.astype(str).isin(excluded).to_numpy())
    codes, found = pd.factorize(names, sort=True)
    if len(found) < 2:
        raise ValueError(
            f"obs[{key!r}] holds {len(found)} label(s) ({listed(found)}) at the {len(rows)} clustered spots, without "
            f"{listed(excluded)}: domains are compared with two or more"
        )
    return codes.astype(np.int64)


def _agreement(clusterings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ARI and NMI of each clustering with the labels, at the labelled spots."""
    seen = labels >= 0
    shape = (int(clusterings.max()) + 1, int(labels.max()) + 1)
    return agreement(np.stack([contingency(codes[seen], labels[seen], shape) for codes in clusterings]))


def _places(
    data: "AnnData | SpatialData",
    table: "AnnData",
    rows: np.ndarray,
    library_key: str | None,
    spatial_key: str,
    table_key: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of `rows`, (n, 2), and the name of each one's section."""
    xy, section = np.full((table.n_obs, 2), np.nan), np.full(table.n_obs, "", dtype=object)
    if spatial_key in table.obsm:
        xy = coordinates_of(table, spatial_key)
        column = section_column(table, library_key)
        if column is not None:
            if column not in table.obs:
                raise MissingSlotError(
                    f"`library_key`: obs has no column {column!r}; columns: {listed(table.obs.columns)}"
                )
            section = table.obs[column].astype(str).to_numpy()
        elif len(libraries := table.uns.get(_keys.SPATIAL, {})) > 1:
            raise ValueError(
                f"uns['spatial'] holds several sections: {listed(libraries)}; name the column of obs that says which "
                "spot is whose by `library_key=`"
            )
    elif data is table:
        raise MissingSlotError(
            f"no coordinates: obsm[{spatial_key!r}] is missing; obsm holds {listed(table.obsm)}. `spatial_key=` names "
            "another slot; without them, leave out spatial_weight= and set n_permutations=0"
        )
    else:
        for opened in open_sections(data, table_key=table_key, noted=list(table.layers), check=False):
            xy[opened.obs_rows] = opened.xy
            section[opened.obs_rows] = opened.name
    if xy.shape != (table.n_obs, 2) or not np.isfinite(xy[rows]).all():
        raise ValueError(f"coordinates of shape {xy.shape}: two finite numbers are expected for every clustered spot")
    return xy[rows], section[rows]


def _maps(xy: np.ndarray, section: np.ndarray, labelled: np.ndarray, n_maps: int, seed: int) -> np.ndarray:
    """Motions of every section that has labels over itself: (n_maps, n_spots) as `moved_maps` gives them."""
    maps = np.full((n_maps, len(xy)), -1, dtype=np.int64)
    for i, name in enumerate(np.unique(section[labelled])):
        rows = np.flatnonzero(section == name)
        try:
            moved = moved_maps(xy[rows], n_maps, seed=seed + i, targets=labelled[rows])
        except ValueError as error:
            raise ValueError(
                f"section {name!r}: no p-values can be had, and n_permutations=0 leaves them out: {error}"
            ) from error
        maps[:, rows] = np.where(moved >= 0, rows[moved], -1)
    return maps
