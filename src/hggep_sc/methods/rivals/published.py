"""Checkpoints of the authors' own codes: found in their file, measured, and filled into a network."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ...encoders.weights import read_state_dict
from ...errors import ModelError

if TYPE_CHECKING:
    from .base import Rival, RivalConfig

Shapes = Mapping[str, tuple[int, ...]]


def published_state(path: Path, *, within: str = "", prefix: str = "") -> dict[str, Tensor]:
    """Read the state dict of a checkpoint, of whose file nothing is run.

    Parameters
    ----------
    path
        The file: a state dict, or what holds one.
    within
        Entry that holds it, where there is such a one, as Lightning's "state_dict".
    prefix
        Start of the names, which is taken off where all have it, as DataParallel's "module.".

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelError
        If it holds no state dict.
    """
    state = read_state_dict(path, within)
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def published_network(
    rival: "type[Rival]",
    path: Path,
    state: dict[str, Tensor],
    sizes: "Callable[[Shapes], RivalConfig]",
    *,
    bias: str,
    n_genes: int,
    axis: int = 0,
) -> "tuple[nn.Module, RivalConfig]":
    """Fill a rival's network from a checkpoint, whose shapes tell its sizes.

    Parameters
    ----------
    rival
        The method.
    path
        The file, for messages.
    state
        What `published_state` read in it.
    sizes
        Makes the settings from the entries' shapes.
    bias, axis
        Entry, and which of its axes, with a value for each gene.
    n_genes
        How many there have to be.

    Raises
    ------
    ModelError
        If an entry is missing or has another shape, or there is one too many.
    ValueError
        If the number of genes is another.
    """
    foreign = f"{path} is not a checkpoint of the published code of {rival.__name__}"
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    try:
        found = shapes[bias][axis]
        config = sizes(shapes)
    except KeyError as missing:
        raise ModelError(f"{foreign}: entry {missing} is missing") from None
    except (IndexError, TypeError, ValueError) as error:  # a shape of another number of axes, a size that cannot be
        raise ModelError(f"{foreign}: the shapes of its entries do not fit ({error})") from error
    if found != n_genes:
        raise ValueError(f"{path} predicts {found} genes, but genes= has {n_genes} names")
    try:
        return rival.filled(config, n_genes, None, state), config
    except RuntimeError as error:
        raise ModelError(f"{foreign}: {error}") from error


def count_blocks(names: Collection[str], start: str, first: int = 0) -> int:
    """Return how many blocks "<start>0.", "<start>1.", ... have entries; their numbers may begin at 1."""
    number = first
    while any(name.startswith(f"{start}{number}.") for name in names):
        number += 1
    return number - first


def depths_of(names: Collection[str], start: str, within: str = ".", first: int = 0) -> tuple[int, ...]:
    """Return how many blocks each stage has: "<start>1<within>0.", "<start>1<within>1.", "<start>2<within>0.", ..."""
    depths: list[int] = []
    while count := count_blocks(names, f"{start}{len(depths) + 1}{within}", first):
        depths.append(count)
    return tuple(depths)
