"""Folds of a cross-validation: what is left out, what has to be run for it, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from ..section import Section, reach, within

BLOCKS = 5  # folds where there is no second section or group


@dataclass(frozen=True)
class Tested:
    """A section that is predicted: whole, and which of its spots are left out of training and scored; None for all."""

    section: Section
    spots: np.ndarray | None = None

    @property
    def scored(self) -> Section:
        """The section with the spots that are scored alone."""
        return self.section if self.spots is None else self.section.subset(self.spots)


@dataclass(frozen=True)
class Fold:
    """Sections that are predicted, and those that are trained on for it."""

    name: str
    training: list[Section]
    test: list[Tested]


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
    test: list[Tested] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    package_settings: dict[str, Any] = field(repr=False)
    identity: str

    @property
    def name(self) -> str:
        """The task in a message."""
        return f"fold {self.fold!r}, method {self.method!r}, seed {self.seed}"

    @property
    def algorithm(self) -> str:
        """The method that the label `method` stands for."""
        return str(self.settings["method"].method)

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the task before it is run, as in `CrossValidation.folds`."""
        return {
            "fold": self.fold,
            "method": self.method,
            "algorithm": self.algorithm,
            "seed": self.seed,
            "test": ", ".join(
                tested.section.name if tested.spots is None else f"{tested.section.name} ({self.fold})"
                for tested in self.test
            ),
            "training": ", ".join(section.name for section in self.training),
        }


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


def leave_out(
    sections: Sequence[Section], n_folds: int | None, fields: Mapping[str, float] | None = None
) -> list[Fold]:
    """Split sections into folds: one section, or one group of sections, is left out at a time.

    Where there is one alone, spatial blocks of its sections are: they tell of other tissue of the same section.

    Parameters
    ----------
    sections
        All sections, of groups (`section.grouped`) or without.
    n_folds
        Number of folds, over which sections or groups are dealt in turn; None for one each. Of a single one the number
        of blocks; None for five.
    fields
        The largest field of view by section, px of its image: no spot nearer than that to a block is trained on.

    Raises
    ------
    ValueError
        If there are more folds than sections or groups, or too few spots for so many blocks.
    """
    group_of = {section.name: section.name if section.group is None else section.group for section in sections}
    units = list(dict.fromkeys(group_of.values()))
    kind = "sections" if all(section.group is None for section in sections) else "groups"
    if len(units) == 1:
        return _leave_blocks_out(sections, BLOCKS if n_folds is None else n_folds, fields or {})
    if n_folds is not None and not 2 <= n_folds <= len(units):
        raise ValueError(
            f"n_folds={n_folds} must be between 2 and the number of {kind}, {len(units)}; None leaves one out at a time"
        )
    n = len(units) if n_folds is None else n_folds
    folds = []
    for number in range(n):
        left_out = set(units[number::n])
        test = [Tested(section) for section in sections if group_of[section.name] in left_out]
        training = [section for section in sections if group_of[section.name] not in left_out]
        folds.append(Fold("+".join(units[number::n]), training, test))
    return folds


def _leave_blocks_out(sections: Sequence[Section], n_folds: int, fields: Mapping[str, float]) -> list[Fold]:
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds} must be at least 2: so many spatial blocks are left out in turn")
    blocks = {section.name: spatial_blocks(section.xy, n_folds) for section in sections}
    folds = []
    for number in range(n_folds):
        name, training, test = f"block {number + 1}", [], []
        for section in sections:
            block = blocks[section.name] == number
            near = within(section.xy, section.xy[block], reach(section.xy, fields.get(section.name, 0.0)))
            test.append(Tested(section, np.flatnonzero(block)))
            training.append(replace(section.subset(~near), name=f"{section.name} (without {name})"))
        for section, tested in zip(training, test, strict=True):
            if len(section.xy) < 2 or len(tested.scored.xy) < 2:
                raise ValueError(
                    f"n_folds={n_folds}: section {tested.section.name!r} of {len(tested.section.xy)} spots is too "
                    "small. "
                    f"{name.capitalize()} has {len(tested.scored.xy)} spots, and {len(section.xy)} are left to train "
                    "on, without those whose patches overlap with its own: give another number, smaller fields of view "
                    "(config={'fields_um': ...}), or more sections"
                )
        folds.append(Fold(name, training, test))
    return folds


def spatial_blocks(xy: np.ndarray, n: int) -> np.ndarray:
    """Cut a section into compact blocks with as many spots each, whatever the order of the spots.

    Returns
    -------
    (n_spots,) the block of each spot, 0 to n - 1.
    """
    block = np.empty(len(xy), dtype=np.int64)
    todo = [(np.arange(len(xy)), range(n))]
    while todo:
        spots, numbers = todo.pop()
        if len(numbers) == 1:
            block[spots] = numbers[0]
            continue
        points = xy[spots]
        axis = int(len(spots) and np.ptp(points[:, 1]) > np.ptp(points[:, 0]))
        order = spots[np.lexsort((points[:, 1 - axis], points[:, axis]))]
        half = len(numbers) // 2
        cut = round(len(order) * half / len(numbers))
        todo += [(order[:cut], numbers[:half]), (order[cut:], numbers[half:])]
    return block
