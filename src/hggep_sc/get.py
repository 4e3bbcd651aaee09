"""Look results up."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _keys
from .section import read_prediction, table_of
from .section.expression import ExpressionScale

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

# what Scanpy and squidpy compute from X, in `uns` and `obsm`; their next steps would take it for the prediction's
OF_X = re.compile(
    r"(X_)?(pca|umap|tsne|diffmap|draw_graph_\w+)|diffmap_evals|draw_graph|leiden|louvain|paga|hvg|log1p"
    r"|rank_genes_groups(_filtered)?|dendrogram_.*|moranI|gearyC"
)


def prediction(data: "AnnData | SpatialData", *, key: str = _keys.KEY, table_key: str | None = None) -> "AnnData":
    """Return the predicted genes as an AnnData of their own, ready for Scanpy.

    Parameters
    ----------
    data
        A section after `hggep_sc.tl.predict`.
    key
        Name of the prediction.
    table_key
        SpatialData: which of several tables.

    Returns
    -------
    New AnnData with the predicted spots and genes, nothing of it shared with `data`:

    - `X`: the predicted log expression (float32, no NaN), and `uns["log1p"]["base"]`, by which Scanpy undoes the log
    - `obs`, `var`, `obsm` and `uns` of these spots and genes, with the colours of the categories that are left
    - `obsp`: graphs of places, as `squidpy.gr.spatial_neighbors` makes them, with their record in `uns`

    What was computed from other expression is left out, as what comes next would take it for the prediction's: `raw`,
    layers, `varm`, `varp`, the PCA, embeddings such as UMAP, graphs of like expression and tests of genes.

    Raises
    ------
    MissingSlotError
        If there is no prediction under `key`.
    TypeError
        If `data` is no AnnData or SpatialData.
    InputError
        If it has several tables and `table_key` names none.
    """
    from anndata import AnnData

    table = table_of(data, table_key)
    record, columns = read_prediction(table, key)
    expression = np.asarray(table.layers[key][:, columns])
    rows = np.flatnonzero(np.isfinite(expression).all(axis=1))
    predicted = table[rows]  # categories and their colours, graphs: as anndata takes some of the spots
    slots, graphs = _of_places(dict(predicted.uns), list(predicted.obsp))
    return AnnData(
        X=expression[rows],
        obs=predicted.obs.copy(),
        var=table.var.iloc[columns].copy(),
        obsm={name: array.copy() for name, array in predicted.obsm.items() if not OF_X.fullmatch(name)},
        obsp={name: predicted.obsp[name].copy() for name in graphs},
        uns=deepcopy(slots) | {"log1p": {"base": float(np.exp(ExpressionScale.of_record(record).log_unit))}},
    )


def _of_places(uns: dict[str, Any], obsp: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Slots of `uns` and names in `obsp` that do not come from the expression; a graph and its record go together."""
    kept = {name: value for name, value in uns.items() if not OF_X.fullmatch(name)}
    graphs = {
        name: value for name, value in kept.items() if isinstance(value, Mapping) and "connectivities_key" in value
    }
    dropped: set[str] = set()
    for name, graph in graphs.items():
        matrices = {str(graph[slot]) for slot in ("connectivities_key", "distances_key") if slot in graph}
        # of Scanpy's graphs, which are of like expression, the metric is noted
        if "metric" in graph.get("params", {}) or not matrices <= set(obsp):
            dropped |= matrices
            del kept[name]
    return kept, [name for name in obsp if name not in dropped]
