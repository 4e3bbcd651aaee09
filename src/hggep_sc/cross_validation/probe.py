"""A linear probe of every fold on features that are computed once: held-out predictions of all spots."""

from collections.abc import Sequence

import numpy as np

from ..section import Section
from ..training.ridge import low_rank_ridge, ridge
from ..training.selection import Training
from .folds import Fold

PROBES = ("low_rank_ridge", "ridge")


def held_out_predictions(
    sections: Sequence[Section],
    folds: Sequence[Fold],
    features: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    probe: str,
    alphas: Sequence[float],
    rank: int,
    seed: int,
) -> list[np.ndarray]:
    """Predict every spot by a probe of the fold that leaves it out.

    Predictions are around the mean of a fold's training, which is not added: a block with much of a gene leaves a low
    mean to the rest, and means of blocks beside each other would run against what was observed.

    Parameters
    ----------
    sections
        Sections, of the spots that have counts alone.
    folds
        What `leave_out` made of the whole sections.
    features
        (n_spots, n_features) of each section, standardised within it.
    targets
        (n_spots, n_genes) log expression of each section.
    probe, alphas, rank
        One of `PROBES`, the penalties that it chooses from, and the components of the low-rank ridge.
    seed
        Of the blocks by which a probe of one section chooses its penalty.

    Returns
    -------
    (n_spots, n_genes) of each section.
    """
    predicted = [np.empty_like(target) for target in targets]
    for fold in folds:
        seen = [(i, spots) for i, section in enumerate(sections) if (spots := _within(section, fold.training)).any()]
        training = Training.of(
            np.concatenate([features[i][spots] for i, spots in seen]),
            [targets[i][spots] - targets[i][spots].mean(axis=0) for i, spots in seen],
            [sections[i].xy[spots] for i, spots in seen],
            [sections[i].group for i, _ in seen],
            seed,
        )
        if probe == "ridge":
            _, coefficients = ridge(training, alphas)
        else:
            _, coefficients, components = low_rank_ridge(training, alphas, rank)
        left_out = [tested.scored for tested in fold.test]
        for section, described, result in zip(sections, features, predicted, strict=True):
            spots = _within(section, left_out)
            response = described[spots] @ coefficients
            result[spots] = response if probe == "ridge" else response @ components
    return predicted


def _within(section: Section, others: Sequence[Section]) -> np.ndarray:
    """Mark the spots that others hold too, which may be parts of the section under another name."""
    rows = [other.obs_rows for other in others if other.table is section.table]
    return np.isin(section.obs_rows, np.concatenate(rows)) if rows else np.zeros(len(section.xy), dtype=bool)
