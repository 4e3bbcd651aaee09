"""What a baseline learns from, and how it chooses a setting: every training section or group is left out in turn."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from ..errors import InputError
from ..features.moments import rows_at_once
from ..metrics import pearson
from .split import leave_out

logger = logging.getLogger(__name__)

Candidate = TypeVar("Candidate", int, float)


@dataclass
class Training:
    """Spots with counts of all training sections.

    Attributes
    ----------
    features
        (n_spots, n_features), standardised within each section.
    targets
        (n_spots, n_genes) log expression less the section's mean.
    held_out
        Bool masks over the spots, each of what is left out at a time to choose a setting.
    """

    features: np.ndarray
    targets: np.ndarray
    held_out: list[np.ndarray]

    @classmethod
    def of(
        cls,
        features: np.ndarray,
        targets: Sequence[np.ndarray],
        xy: Sequence[np.ndarray],
        groups: Sequence[str | None],
        seed: int,
    ) -> Self:
        """Take features of all sections, joined, and the rest by section.

        A section that trains alone has spatial blocks left out, several draws of them.
        """
        for what, parts in {"features": [features], "targets": targets}.items():
            if not all(np.isfinite(part[rows]).all() for part in parts for rows in rows_at_once(len(part))):
                raise InputError(
                    f"{what} to learn from are NaN or infinite: look for values far out of the ordinary in the counts, "
                    "the embeddings and the file of weights"
                )
        held_out = [np.concatenate(masks) for masks in leave_out(xy, groups, seed)]
        return cls(features, np.concatenate(targets), held_out)


def choose(
    name: str,
    candidates: Sequence[Candidate],
    training: Training,
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[Candidate]], Iterator[np.ndarray]],
) -> Candidate:
    """Choose the candidate with the best mean per-gene Pearson correlation over what is left out.

    Parameters
    ----------
    name
        What messages call the setting.
    candidates
        Values to choose from; a single one is taken as it is.
    training
        What to choose on; nothing else has a say.
    predict
        Yields, for each candidate, the prediction from training features, training targets and new features.

    Returns
    -------
    The candidate, the first of equals. Genes that are constant count as uncorrelated.

    Raises
    ------
    ValueError
        If all spots lie in one block of one section, so that nothing can be left out.
    """
    if len(candidates) == 1:
        return candidates[0]
    if not training.held_out:
        raise ValueError(
            f"config.{name} cannot be chosen on {len(training.targets)} spots with counts: give a single value, "
            "or more spots"
        )
    scores = np.zeros(len(candidates))
    for held_out in training.held_out:
        left, kept = _rows(held_out), _rows(~held_out)
        observed = training.targets[left]
        predictions = predict(training.features[kept], training.targets[kept], training.features[left], candidates)
        scores += [np.nan_to_num(pearson(predicted, observed)).mean() for predicted in predictions]
    scores /= len(training.held_out)
    best = int(scores.argmax())
    logger.info("%s=%g chosen, with a mean PCC of %.3f over what was left out", name, candidates[best], scores[best])
    return candidates[best]


def _rows(mask: np.ndarray) -> "slice | np.ndarray":
    """Return a mask as a slice, by which nothing is copied, where its rows follow one another, as a section's do."""
    rows = np.flatnonzero(mask)
    return slice(rows[0], rows[-1] + 1) if len(rows) and len(rows) == rows[-1] - rows[0] + 1 else mask
