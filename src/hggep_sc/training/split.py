"""Which spots are held out of training to validate on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..section import Section

BLOCKS_PER_SIDE = 5
BLOCK_DRAWS, BLOCK_SHARE = 5, 0.2  # of the only section, where there is no other to leave out


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


def leave_out(
    xy: Sequence[np.ndarray], groups: Sequence[str | None], seed: int, max_turns: int | None = None
) -> list[list[np.ndarray]]:
    """Choose what is left out in turn, inside the training sections.

    It is each group of sections where there are several; else each section; or blocks of the only one.

    Parameters
    ----------
    xy
        Coordinates of each section's spots.
    groups
        The group of each section, None where it has none.
    seed
        Of the draws of blocks.
    max_turns
        Groups or sections are dealt among at most this many turns. None: each by itself.

    Returns
    -------
    Per turn a bool mask over each section's spots; none where all spots lie in one block.
    """
    if len(xy) == 1:
        counted = np.ones(len(xy[0]), dtype=bool)
        draws = [hold_out_blocks(xy[0], counted, BLOCK_SHARE, seed + draw) for draw in range(BLOCK_DRAWS)]
        return [[mask] for mask in draws if not mask.all()]
    units = units_of(groups)
    n_turns = min(max(units) + 1, max_turns or len(xy))
    return [
        [np.full(len(points), unit % n_turns == turn) for unit, points in zip(units, xy, strict=True)]
        for turn in range(n_turns)
    ]


def units_of(groups: Sequence[str | None]) -> list[int]:
    """Tell by a number what each section is left out with: its group where there are several, else itself alone."""
    if len(set(groups)) < 2:
        return list(range(len(groups)))
    order = list(dict.fromkeys(groups))
    return [order.index(group) for group in groups]
