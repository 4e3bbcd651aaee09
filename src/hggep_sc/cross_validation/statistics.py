"""What protocols need of finished folds beside the scores: moments of predictions, and of genes in training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.moments import section_moments
from ..section import Section
from ..section.expression import ExpressionScale
from .folds import FoldResult, Task


def result_moments(results: Mapping[Task, FoldResult]) -> list[pd.DataFrame]:
    """Return `section_moments` of every prediction, with columns fold, section, method, seed and gene."""
    return [
        labelled_moments(
            tested.scored, result.predictions[tested.section.name], result.genes, scale_of(result), task.facts
        )
        for task, result in results.items()
        for tested in task.test
    ]


def labelled_moments(
    section: Section,
    predicted: np.ndarray,
    genes: Sequence[str],
    scale: ExpressionScale,
    facts: Mapping[str, Any],
) -> pd.DataFrame:
    """Return `section_moments` over the genes that the section has, and whose they are."""
    there = np.flatnonzero(np.isin(genes, section.var_names))
    moments = section_moments(section, predicted[:, there], [genes[int(j)] for j in there], scale)
    labels = {name: facts[name] for name in ("fold", "method", "seed")}
    return moments.reset_index().assign(section=section.name, **labels)


def training_statistics(results: Mapping[Task, FoldResult]) -> pd.DataFrame:
    """Return mean and variance of every gene in the training sections, by fold and method.

    Both are of log expression on the method's scale, in natural log units, over the spots with counts of each section,
    and the mean over the sections that have the gene.

    Returns
    -------
    Columns fold, method, gene, mean, variance.
    """
    known: dict[tuple[int, tuple[str, ...], ExpressionScale], np.ndarray] = {}
    first = {(task.fold, task.method): (task, result) for task, result in reversed(list(results.items()))}
    parts = []
    for (fold, method), (task, result) in reversed(list(first.items())):
        genes, scale = tuple(result.genes), replace(scale_of(result), log_base="e")
        for section in task.training:
            if (key := (id(section), genes, scale)) not in known:  # folds share their sections
                known[key] = _mean_and_variance(section, genes, scale)
        of_sections = np.stack([known[id(section), genes, scale] for section in task.training])
        there = np.isfinite(of_sections)
        mean, variance = np.where(there, of_sections, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        parts.append(pd.DataFrame({"fold": fold, "method": method, "gene": genes, "mean": mean, "variance": variance}))
    return pd.concat(parts, ignore_index=True)


def scale_of(result: FoldResult) -> ExpressionScale:
    """Return the scale of a fold's predictions."""
    return ExpressionScale.of_record(next(iter(result.records.values())))


def _mean_and_variance(section: Section, genes: Sequence[str], scale: ExpressionScale) -> np.ndarray:
    """Return both of each gene over the spots with counts, (2, n_genes); NaN for genes that the section lacks."""
    from sklearn.utils.sparsefuncs import mean_variance_axis

    there = np.flatnonzero(np.isin(genes, section.var_names))
    counts = section.counts([genes[int(j)] for j in there])
    totals = scale.totals(counts, section.library())
    seen = totals > 0
    found = np.full((2, len(genes)), np.nan)
    found[:, there] = mean_variance_axis(scale.transform_sparse(counts[seen], totals[seen]).astype(np.float64), axis=0)
    return found
