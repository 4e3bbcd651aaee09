import logging
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import pandas as pd

from .. import _keys, metrics
from ..expression import ExpressionScale, observed_expression
from ..section import copy_of, read_prediction, table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    Data = TypeVar("Data", AnnData, SpatialData)

logger = logging.getLogger(__name__)

SUBSET = 0.8  # share of the training sections' genes, below which a library is not the full one


@overload
def evaluate(
    data: "Data",
    *,
    key: str = ...,
    observed_layer: str | None = ...,
    table_key: str | None = ...,
    copy: Literal[False] = ...,
) -> pd.DataFrame: ...
@overload
def evaluate(
    data: "Data",
    *,
    key: str = ...,
    observed_layer: str | None = ...,
    table_key: str | None = ...,
    copy: Literal[True],
) -> "tuple[Data, pd.DataFrame]": ...


def evaluate(
    data: "Data",
    *,
    key: str = _keys.KEY,
    observed_layer: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
) -> "pd.DataFrame | tuple[Data, pd.DataFrame]":
    """Compare predicted with observed expression, gene by gene across the spots.

    The observed counts are brought to the scale that the prediction was made on, and both to the natural logarithm.
    Spots without counts, and those not predicted, are left out; a gene that is constant has no correlation (NaN).

    Parameters
    ----------
    data
        A section after `hggep_sc.tl.predict`, with raw counts.
    key
        Name of the prediction.
    observed_layer
        Layer with raw counts; None for the one `predict` was given, else `X`.
    table_key
        SpatialData: which of several tables.
    copy
        Leave `data` as it is, and return a new object beside the table.

    Returns
    -------
    Table with a row per predicted gene: `pcc` (Pearson correlation) and `rmse` (natural log units). Written are
    `var[f"{key}_pcc"]`, `var[f"{key}_rmse"]` and, in `uns[key]["metrics"]`, the mean and median PCC and how many
    genes and spots they are over. With `copy=True`: the new object and the table.

    Raises
    ------
    KeyError
        If there is no prediction under `key`.
    ValueError
        If there are no counts to compare with.
    """
    target = copy_of(data) if copy else data
    table = table_of(target, table_key)
    record, columns = read_prediction(table, key)
    genes = table.var_names[columns]
    scale = ExpressionScale.of_record(record)
    layer = observed_layer or record.get("counts_layer")
    rows = np.flatnonzero(np.isfinite(table.layers[key][:, columns]).all(axis=1))
    observed = observed_expression(table, rows, list(genes), scale, layer=layer)
    seen = np.isfinite(observed).all(axis=1)
    if seen.sum() < 2:
        raise ValueError(f"a correlation needs two predicted spots with counts; found {seen.sum()}")
    _warn_of_a_subset(table, record, len(genes))
    observed = observed[seen]
    predicted = np.asarray(table.layers[key][rows[seen]][:, columns]) * scale.log_unit
    result = pd.DataFrame(
        {"pcc": metrics.pearson(predicted, observed), "rmse": metrics.rmse(predicted, observed)}, index=genes
    )
    summary: dict[str, Any] = {
        "mean_pcc": float(result["pcc"].mean()),
        "median_pcc": float(result["pcc"].median()),
        "mean_rmse": float(result["rmse"].mean()),
        "n_genes": int(result["pcc"].notna().sum()),
        "n_constant_genes": int(result["pcc"].isna().sum()),
        "n_spots": int(seen.sum()),
    }
    for name in result:
        table.var[_keys.metric(key, str(name))] = result[name].reindex(table.var_names)
    table.uns[key] = {**record, "metrics": summary}
    return (target, result) if copy else result


def _warn_of_a_subset(table: "AnnData", record: dict[str, Any], n_genes: int) -> None:
    """Say so where counts are scaled or compared otherwise than in training."""
    predicted = {str(gene) for gene in record["genes"]}
    n_sections = len(record["sections"]["name"])
    if record["normalize"] == "library" and table.n_vars < SUBSET * record["library_genes"]:
        logger.warning(
            "the object holds %d genes, those of training %d: counts are scaled by a total that is not the full "
            "library; evaluate before subsetting",
            table.n_vars,
            record["library_genes"],
        )
    if record["normalize"] == "panel" and n_genes < len(predicted):
        logger.warning(
            "%d of the %d predicted genes are missing: counts are scaled by the total of the others",
            len(predicted) - n_genes,
            len(predicted),
        )
    if n_sections > 1:
        logger.warning(
            "the object holds %d sections: correlations are across the spots of all, so that differences between "
            "sections enter; evaluate them one by one to judge the prediction within a section",
            n_sections,
        )
