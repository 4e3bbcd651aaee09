"""Which spots are held out of training to validate on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..section import Section

BLOCKS_PER_SIDE = 5


def held_out_spots(sections: Sequence["Section"], validation: str | float | None, seed: int) -> list[np.ndarray] | None:
    """Choose the spots to validate on: a whole section by name, or spatial blocks of every section.

    Returns
    -------
    Per section a bool mask over its spots; None without validation.

    Raises
    ------
    ValueError
        If the name is no section's, the fraction is not between 0 and 1, or nothing would be left to train on.
    """
    if validation is None:
        return None
    if isinstance(validation, str):
        names = [section.name for section in sections]
        if validation not in names:
            raise ValueError(f"validation={validation!r} is not a training section; they are {names}")
        if len(sections) == 1:
            raise ValueError("validation= names the only training section: give a fraction, or more sections")
        return [np.full(len(section.xy), section.name == validation) for section in sections]
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation!r} must be a training section's name or a fraction between 0 and 1")
    masks = []
    for number, section in enumerate(sections):
        counted = section.library() > 0
        masks.append(hold_out_blocks(section.xy, counted, validation, seed + number))
        if not (counted & ~masks[-1]).any():
            raise ValueError(f"validation={validation!r} leaves no spot of section {section.name!r} to train on")
    return masks


def hold_out_blocks(xy: np.ndarray, counted: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose whole spatial blocks of a section until they hold `fraction` of its spots with counts.

    Neighbouring spots share tissue, so spots drawn one by one would be told by their neighbours.

    Returns
    -------
    Bool mask over the section's spots.
    """
    low, span = xy.min(0), np.ptp(xy, axis=0).clip(min=1e-9)
    cell = np.minimum(((xy - low) / span * BLOCKS_PER_SIDE).astype(int), BLOCKS_PER_SIDE - 1)
    block = cell[:, 0] * BLOCKS_PER_SIDE + cell[:, 1]
    held_out = np.zeros(len(block), dtype=bool)
    for candidate in np.random.default_rng(seed).permutation(np.unique(block)):
        if (held_out & counted).sum() >= fraction * counted.sum():
            break
        held_out |= block == candidate
    return held_out
