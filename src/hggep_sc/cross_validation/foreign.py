"""Predictions of other tools, in layers, scored on the same folds, spots, genes and scale as the methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from ..errors import FailedWarning, MissingSlotError
from ..evaluation.section_scores import layer_scores, predicted_part, tidy
from ..methods.registry import names as method_names
from ..runtime.messages import listed, warn
from .folds import Fold, FoldResult, Task
from .statistics import labelled_moments, scale_of


@dataclass(frozen=True)
class ForeignResult:
    """What is known of another tool's prediction of a fold.

    Attributes
    ----------
    facts
        The row of `CrossValidation.folds`.
    scores, moments
        Parts of its `table` and of its `moments`; nothing where the layer could not be scored.
    beside
        The method whose genes it was scored on.
    """

    facts: dict[str, Any]
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    moments: list[pd.DataFrame] = field(default_factory=list)
    beside: str = ""


def foreign_layers(
    layers: Mapping[str, str] | None, runs: Mapping[str, Mapping[str, Any]], folds: Sequence[Fold]
) -> dict[str, str]:
    """Return the layers of other tools by label, refusing what could not be scored."""
    if layers is not None and not isinstance(layers, Mapping):
        raise TypeError(f"layers={layers!r} must be a dict: the layer of each tool's prediction by a label")
    found = {str(label): name for label, name in (layers or {}).items()}
    if taken := [label for label in found if label in runs or label in method_names()]:
        raise ValueError(f"layers= calls {', '.join(map(repr, taken))} what is a method's name: choose another label")
    for label, name in found.items():
        for section in {tested.section.name: tested.section for fold in folds for tested in fold.test}.values():
            if name not in section.table.layers:
                raise MissingSlotError(
                    f"layers[{label!r}]: section {section.name!r} has no layer {name!r}; layers: "
                    f"{listed(section.table.layers)}"
                )
    return found


def score_foreign(
    fold: Fold, results: Mapping[Task, FoldResult], label: str, layer: str, seed: int
) -> ForeignResult | None:
    """Score another tool's prediction of a fold, on the genes and the scale of the methods'."""
    task, result = next(((t, r) for t, r in results.items() if t.fold == fold.name), (None, None))
    if task is None or result is None:  # every method failed, so that it is not known what to compare
        return None
    scale = replace(scale_of(result), log_base="e")
    facts = {**task.facts, "method": label, "algorithm": f"layers[{layer!r}]", "seed": seed, "training": ""}
    scores, moments = [], []
    try:
        for section in (tested.scored for tested in fold.test):
            genes = [gene for gene in result.genes if gene in section.var_names]
            figures = layer_scores(section.table, section.obs_rows, layer, genes, scale, layer=section.layer)
            scores.append(tidy(figures, fold=fold.name, section=section.name, method=label, seed=seed))
            spots, predicted, found = predicted_part(section.table, section.obs_rows, genes, layer)
            moments.append(labelled_moments(section.subset(spots), predicted, found, scale, facts))
    except (ValueError, KeyError) as error:  # as a fold that fails: the others are worth having
        warn(f"fold {fold.name!r}, layer {layer!r} could not be scored: {error}", FailedWarning)
        return ForeignResult({**facts, "error": f"{type(error).__name__}: {error}"})
    known = {name: result.facts[name] for name in ("n_genes", "n_spots")}
    return ForeignResult({**facts, **known, "error": ""}, pd.concat(scores, ignore_index=True), moments, task.method)
