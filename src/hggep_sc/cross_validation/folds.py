"""Folds of a cross-validation: what is left out, what has to be run for it, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ..section import Section


@dataclass(frozen=True)
class Fold:
    """Sections that are predicted, and those that are trained on for it."""

    name: str
    training: list[Section]
    test: list[Section]


@dataclass(frozen=True, eq=False)  # told apart as objects: sections have no equality
class Task:
    """One fold by one method with one seed: all that another process needs.

    Attributes
    ----------
    fold, method, seed
        What it is called.
    training, test
        Its sections.
    settings
        Arguments of `fit_method`, but for the sections.
    package_settings
        `hggep_sc.settings` of the caller, which another process would not have.
    identity
        Hash of everything that the result depends on.
    """

    fold: str
    method: str
    seed: int
    training: list[Section] = field(repr=False)
    test: list[Section] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    package_settings: dict[str, Any] = field(repr=False)
    identity: str

    @property
    def name(self) -> str:
        """The task in a message."""
        return f"fold {self.fold!r}, method {self.method!r}, seed {self.seed}"


@dataclass(frozen=True)
class FoldResult:
    """What a task gives back.

    Attributes
    ----------
    genes
        Predicted genes.
    predictions
        Expression per test section, float32 (n_spots, n_genes), on the model's scale.
    records
        Per test section what `tl.predict` notes in `uns`.
    scores
        Tidy table: fold, section, method, seed, gene, metric, value.
    facts
        The row of `CrossValidation.folds`.
    reliability, uncertainties
        Of the model's genes, and per test section of its spots, as `tl.predict` writes them; None where the model has
        no confidence.
    """

    genes: list[str]
    predictions: dict[str, np.ndarray]
    records: dict[str, dict[str, Any]]
    scores: pd.DataFrame
    facts: dict[str, Any]
    reliability: np.ndarray | None = None
    uncertainties: dict[str, np.ndarray] | None = None


def leave_out(sections: Sequence[Section], n_folds: int | None) -> list[Fold]:
    """Split sections into folds: one section, or one group of sections, is left out at a time.

    Parameters
    ----------
    sections
        All sections, of groups (`section.grouped`) or without.
    n_folds
        Number of folds, over which sections or groups are dealt in turn; None for one each.

    Raises
    ------
    ValueError
        If there is one alone, or there are more folds than sections or groups.
    """
    group_of = {section.name: section.name if section.group is None else section.group for section in sections}
    units = list(dict.fromkeys(group_of.values()))
    kind = "sections" if all(section.group is None for section in sections) else "groups"
    if len(units) < 2:
        raise ValueError(f"cross-validation needs at least two {kind}; found {', '.join(units) or 'none'}")
    if n_folds is not None and not 2 <= n_folds <= len(units):
        raise ValueError(
            f"n_folds={n_folds} must be between 2 and the number of {kind}, {len(units)}; None leaves one out at a time"
        )
    n = len(units) if n_folds is None else n_folds
    folds = []
    for number in range(n):
        left_out = set(units[number::n])
        test = [section for section in sections if group_of[section.name] in left_out]
        training = [section for section in sections if group_of[section.name] not in left_out]
        folds.append(Fold("+".join(units[number::n]), training, test))
    return folds
