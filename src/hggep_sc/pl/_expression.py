"""Observed and predicted expression as plots show them: on one scale, in natural log units."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from .._keys import predicted as predicted_column
from ..errors import MissingSlotError, ResultWarning
from ..metrics import pearson
from ..runtime.messages import listed, warn
from ..section import gene_name_hint, read_prediction, unmeasured, without_counts
from ..section.expression import ExpressionScale, observed_expression

if TYPE_CHECKING:
    from anndata import AnnData

OBSERVED, PREDICTED = "observed", "predicted"


@dataclass(frozen=True)
class Expression:
    """Expression of some genes at some spots.

    Attributes
    ----------
    values
        (n_spots, n_genes) each: "observed" first, where there are counts, then "predicted", or the key of each of
        several predictions.
    scored
        (n_spots,) bool of each prediction: where it was made without the spot's own counts.
    trained
        Sections of each prediction that its model was trained on.
    unit
        What the values are.
    """

    values: dict[str, np.ndarray]
    scored: dict[str, np.ndarray]
    trained: dict[str, frozenset[str]]
    unit: str


def read_expression(
    table: "AnnData", rows: np.ndarray, genes: Sequence[str], keys: Sequence[str], observed_layer: str | None
) -> Expression:
    """Read predictions and what was observed.

    Raises
    ------
    MissingSlotError
        If a prediction, a gene or the named layer is not there.
    ValueError
        If a prediction is called "observed" beside another, the predictions are not on one scale, or
        `observed_layer` holds no counts.
    """
    if len(keys) > 1 and OBSERVED in keys:
        raise ValueError(f"a prediction called {OBSERVED!r} cannot stand beside what was observed: draw it alone")
    found = {key: _Prediction.read(table, key) for key in keys}
    for key, prediction in found.items():
        _require_predicted(genes, key, prediction.panel, list(table.var_names))
    first = found[keys[0]]
    for key, other in found.items():
        _require_same_scale(keys[0], first, key, other)
    columns = table.var_names.get_indexer(genes)
    predicted = {
        PREDICTED if len(keys) == 1 else key: np.asarray(table.layers[key][rows][:, columns]) * each.scale.log_unit
        for key, each in found.items()
    }
    observed = _observed(table, rows, genes, first, observed_layer)
    of = "" if first.scale.normalize == "library" else " of the panel"
    unit = f"ln(1 + counts per {first.scale.target_sum:,.0f}{of})"
    scored = dict(zip(predicted, (other.scored[rows] for other in found.values()), strict=True))
    trained = dict(zip(predicted, (other.trained for other in found.values()), strict=True))
    return Expression(({} if observed is None else {OBSERVED: observed}) | predicted, scored, trained, unit)


def correlation(predicted: np.ndarray, observed: np.ndarray, scored: np.ndarray, *, trained: bool) -> str:
    """Pearson correlation over the spots that have both and may be scored, for a title; it says if it is of a fit."""
    seen = np.isfinite(predicted) & np.isfinite(observed) & scored
    r = float(pearson(predicted[seen, None], observed[seen, None])[0])
    return (f"r = {r:.2f}" if np.isfinite(r) else "r undefined") + (" (trained on)" if trained else "")


@dataclass(frozen=True)
class _Prediction:
    """Genes and scale of a prediction, and what else `tl.predict` noted."""

    panel: list[str]
    scale: ExpressionScale
    record: dict[str, Any]
    scored: np.ndarray

    @property
    def trained(self) -> frozenset[str]:
        """Names of the sections that the model was trained on."""
        sections = self.record["sections"]
        return frozenset(
            str(name) for name, role in zip(sections["name"], sections["role"], strict=True) if role == "train"
        )

    @classmethod
    def read(cls, table: "AnnData", key: str) -> "_Prediction":
        record, columns = read_prediction(table, key)
        scored = unmeasured(table, record, key)
        return cls(list(table.var_names[columns]), ExpressionScale.of_record(record), record, scored)


def _require_predicted(genes: Sequence[str], key: str, panel: list[str], var_names: list[str]) -> None:
    """Refuse genes that are not predicted; all of them at once, each with what may have been meant."""
    predicted, present = set(panel), set(var_names)
    faults = []
    if lacking := [gene for gene in genes if gene in present and gene not in predicted]:
        faults.append(
            f"{_called(lacking)} not predicted by the model, though in the object: its {len(panel)} genes are "
            f"var_names[var[{predicted_column(key)!r}]], and `genes=` of hggep_sc.tl.fit chooses them"
        )
    by_lower = {name.lower(): name for name in panel}
    absent = [gene for gene in genes if gene not in present]
    for gene in absent:
        close = [by_lower[name] for name in get_close_matches(str(gene).lower(), by_lower, n=5, cutoff=0.7)]
        hint = f"similar predicted genes: {', '.join(close)}" if close else f"predicted are {len(panel)} genes"
        faults.append(f"{_called([gene])} not in the object; {hint}")
    if faults:
        raise MissingSlotError(". ".join(faults) + gene_name_hint(absent, panel).replace(" One", ". One", 1))


def _called(genes: list[str]) -> str:
    return f"gene {genes[0]!r} is" if len(genes) == 1 else f"genes {listed(genes)} are"


def _require_same_scale(key: str, one: _Prediction, other_key: str, other: _Prediction) -> None:
    """Observed expression is drawn once, so that it must mean the same for all predictions."""
    if (one.scale.normalize, one.scale.target_sum) != (other.scale.normalize, other.scale.target_sum):
        raise ValueError(
            f"predictions {key!r} and {other_key!r} are on different scales, {one.scale} and {other.scale}: draw them "
            "apart"
        )
    if one.scale.normalize == "panel" and set(one.panel) != set(other.panel):
        raise ValueError(
            f"predictions {key!r} and {other_key!r} are scaled by the totals of different genes ({len(one.panel)} "
            f"and {len(other.panel)}): draw them apart"
        )


def _observed(
    table: "AnnData", rows: np.ndarray, genes: Sequence[str], prediction: _Prediction, named: str | None
) -> np.ndarray | None:
    """Observed expression; None where there are no raw counts, unless the user said where they are.

    What may be an oversight is warned of: counts that are none, or that may lie elsewhere.
    """
    if named is not None and named not in table.layers:
        raise MissingSlotError(f"`observed_layer`: there is no layer {named!r}; layers: {list(table.layers)}")
    layer = named or prediction.record.get("counts_layer")
    if layer is None and without_counts(table, rows):
        return None
    try:
        return observed_expression(table, rows, prediction.panel, prediction.scale, genes=genes, layer=layer)
    except (KeyError, ValueError) as error:
        if named is not None:
            raise
        warn(f"only the prediction is drawn: {error.args[0]}", ResultWarning)
        return None
