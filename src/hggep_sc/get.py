"""Look results up."""

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np

from . import _keys
from .section import read_prediction, table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


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
    New AnnData with the predicted spots and genes; `X` is the predicted log expression (float32, no NaN), `obs`,
    `var`, `obsm` and `uns` are copies. `data` is not changed.

    Raises
    ------
    KeyError
        If there is no prediction under `key`.
    """
    from anndata import AnnData

    table = table_of(data, table_key)
    _, columns = read_prediction(table, key)
    expression = np.asarray(table.layers[key][:, columns])
    rows = np.flatnonzero(np.isfinite(expression).all(axis=1))
    predicted = table[rows]
    return AnnData(
        X=expression[rows],
        obs=predicted.obs.copy(),
        var=table.var.iloc[columns].copy(),
        obsm={name: array.copy() for name, array in predicted.obsm.items()},
        uns=deepcopy(dict(table.uns)),
    )
