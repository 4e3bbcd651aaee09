"""A section predicted in compact chunks: each spot once, among the spots around it."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .device import compute_alone, mixed_precision
from .nn import Output, average_views

if TYPE_CHECKING:
    from scipy.spatial import KDTree

    from .config import Config
    from .nn.interface import Network

logger = logging.getLogger(__name__)

CORE = 0.5  # share of a chunk's spots that are predicted, at most; the rest is their surroundings


class Chunk(NamedTuple):
    """Spots that the network sees together, and which of them it predicts."""

    spots: np.ndarray  # sorted indices
    core: np.ndarray  # bool, one per spot; the others are the halo


def spatial_chunks(xy: np.ndarray, max_spots: int | None) -> list[np.ndarray]:
    """Split spots into compact chunks by halving along the longer side; the order of the spots does not matter.

    Returns
    -------
    Sorted indices of each chunk; one chunk where `max_spots` is None or not exceeded.
    """
    todo, chunks = [np.arange(len(xy))], []
    while todo:
        spots = todo.pop()
        if max_spots is None or len(spots) <= max_spots:
            chunks.append(np.sort(spots))
            continue
        points = xy[spots]
        axis = int(np.ptp(points[:, 1]) > np.ptp(points[:, 0]))
        order = spots[np.lexsort((points[:, 1 - axis], points[:, axis]))]
        todo += [order[len(order) // 2 :], order[: len(order) // 2]]
    return chunks


def chunks_with_halo(xy: np.ndarray, core: np.ndarray, max_spots: int) -> list[Chunk]:
    """Cut spots into compact cores, and surround each by the spots nearest to it.

    Parameters
    ----------
    xy
        (n, 2) spot centres.
    core
        (n,) bool: the spots to be predicted.
    max_spots
        Spots of a chunk, the halo with them.

    Returns
    -------
    Chunks of `max_spots` spots each, whose cores hold at most half of these and are a partition of `core`; one
    chunk where there are no more than `max_spots` spots. They come in order along the section's longer side.
    """
    from scipy.spatial import KDTree

    if len(xy) <= max_spots:
        return [Chunk(np.arange(len(xy)), core)]
    tree, predicted = KDTree(xy), np.flatnonzero(core)
    cores = [predicted[own] for own in spatial_chunks(xy[predicted], max(int(CORE * max_spots), 1))]
    along = np.ptp(xy, axis=0).argsort(kind="stable")[::-1]
    cores.sort(key=lambda own: tuple(xy[own].mean(0)[along]))  # end to end: neighbours follow each other
    return [_surrounded(own, xy, tree, max_spots) for own in cores]


def _surrounded(own: np.ndarray, xy: np.ndarray, tree: "KDTree", size: int) -> Chunk:
    """Fill a core up to `size` spots with those nearest to its bounding box, by the larger of both axes' distances."""
    low, high = xy[own].min(0), xy[own].max(0)
    centre = (low + high) / 2
    # half the side of a square with `size` spots: none of the halo lies farther from the box than that
    reach = tree.query(centre, k=[size], p=np.inf)[0][0]
    near = np.array(tree.query_ball_point(centre, (reach + (high - low).max() / 2) * (1 + 1e-9), p=np.inf))
    near = np.setdiff1d(near, own)
    gap = np.maximum(low - xy[near], xy[near] - high).max(1)
    order = np.lexsort((*xy[near].T, np.hypot(*(xy[near] - centre).T), gap))  # whatever the order of the spots
    spots = np.sort(np.concatenate([own, near[order[: size - len(own)]]]))
    return Chunk(spots, np.isin(spots, own))


@torch.inference_mode()
def predict_in_chunks(
    network: "Network",
    features: Callable[[np.ndarray], Tensor],
    xy: np.ndarray,
    positions: Tensor,
    config: "Config",
    *,
    name: str,
    chunk_spots: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict all spots of a section from their features, which are computed once.

    Where the GPU runs out of memory, chunks are halved from there on, with a warning.

    Parameters
    ----------
    network
        In evaluation mode.
    features
        Takes indices of spots and gives their features (n, views, ...), on the network's device.
    xy
        (n_spots, 2) spot centres, by which the section is cut.
    positions
        (n_spots, 2) what the network takes for them, on its device.
    config
        `chunk_spots` of the model; where it is None, a section is cut only if free memory does not hold it.
    name
        The section's, for warnings.
    chunk_spots
        Spots of a chunk instead of these.

    Returns
    -------
    Log expression (n_spots, n_genes) and latent representation (n_spots, d), both float32.
    """
    n = len(xy)
    bounded = chunk_spots or config.chunk_spots
    limit = bounded or _spots_in_memory(n, config, positions.device, name)
    chunks = chunks_with_halo(xy, np.ones(n, dtype=bool), limit)
    predicted: list[np.ndarray] | None = None
    # a section taken whole fills the memory there is with one view
    with _views_at_once(positions.device) if bounded else nullcontext(map) as each:
        decoder = _Decoder(network, xy, positions, limit, each, name)
        for chunk, seen in zip(chunks, _features_of(chunks, features, spatial_chunks(xy, limit)), strict=True):
            for spots, values in decoder.core(chunk, seen):
                if predicted is None:
                    predicted = [np.empty((n, value.shape[1]), dtype=np.float32) for value in values]
                for whole, value in zip(predicted, values, strict=True):
                    whole[spots] = value
    assert predicted is not None  # a section has spots
    expression, latent = predicted
    return expression, latent


class _Decoder:
    """Takes a section's chunks through the network; where the GPU runs out of memory, in halves from there on.

    Parameters
    ----------
    network, xy, positions, name
        As in `predict_in_chunks`.
    limit
        Spots at once.
    each
        A `map` over views.
    """

    def __init__(
        self,
        network: "Network",
        xy: np.ndarray,
        positions: Tensor,
        limit: int,
        each: Callable[..., Iterable[Output]],
        name: str,
    ) -> None:
        self.network, self.xy, self.positions = network, xy, positions
        self.limit, self.each, self.name = limit, each, name

    def core(self, chunk: Chunk, seen: Tensor) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Yield some of the spots in a chunk's core at a time, with log expression and latent representation.

        `seen` are the features of all of the chunk's spots.
        """
        todo = [Chunk(np.arange(len(chunk.spots)), chunk.core)]
        while todo:
            part = todo.pop()
            spots = chunk.spots[part.spots]
            if len(spots) > self.limit:
                parts = chunks_with_halo(self.xy[spots], part.core, self.limit)
                todo += [Chunk(part.spots[smaller.spots], smaller.core) for smaller in parts]
                continue
            try:
                with mixed_precision(self.positions.device):
                    out = average_views(self.network, seen[part.spots], self.positions[spots], self.each)
            except torch.OutOfMemoryError:
                if len(spots) == 1:
                    raise
                self.limit = len(spots) // 2
                todo.append(part)
                logger.warning(
                    "section %r: the GPU ran out of memory with %d spots at once; going on with chunks of %d "
                    "(chunk_spots=%d in tl.predict starts with these)",
                    self.name,
                    len(spots),
                    self.limit,
                    self.limit,
                )
                continue
            yield spots[part.core], [value.float().cpu().numpy()[part.core] for value in out]


@contextmanager
def _views_at_once(device: torch.device) -> Iterator[Callable[..., Iterable[Output]]]:
    """Give a `map` over views: by a CPU's threads, each computing alone, which is faster than all of them at one."""
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        yield map
        return
    with ThreadPoolExecutor(n_threads, "views", compute_alone) as pool:

        def each(function: Callable[[Tensor], Output], views: Sequence[Tensor]) -> Iterable[Output]:
            return pool.map(torch.inference_mode()(function), views) if len(views) > 1 else map(function, views)

        yield each


def _features_of(
    chunks: Sequence[Chunk], features: Callable[[np.ndarray], Tensor], parts: Sequence[np.ndarray]
) -> Iterator[Tensor]:
    """Give the features of each chunk in turn.

    They are computed by `parts`, a partition of the spots, and held until no later chunk needs them: in memory are
    the parts along the border between what is predicted and what is not, not the section.
    """
    n = sum(map(len, parts))
    part_of, row_of = np.empty(n, dtype=int), np.empty(n, dtype=int)
    for i, spots in enumerate(parts):
        part_of[spots], row_of[spots] = i, np.arange(len(spots))
    last_use = {part: i for i, chunk in enumerate(chunks) for part in np.unique(part_of[chunk.spots])}
    held: dict[int, Tensor] = {}
    for i, (spots, _) in enumerate(chunks):
        needed = np.unique(part_of[spots])
        held |= {part: features(parts[part]) for part in needed if part not in held}
        some = held[needed[0]]
        seen = some.new_empty((len(spots), *some.shape[1:]))
        for part in needed:
            here = part_of[spots] == part
            seen[here] = held[part][row_of[spots[here]]]
        held = {part: values for part, values in held.items() if last_use[part] > i}
        yield seen


def _spots_in_memory(n: int, config: "Config", device: torch.device, name: str) -> int:
    """Return n, or where attention that is not fused (scores and weights, heads x n x n) does not fit, what does."""
    import psutil

    free = psutil.virtual_memory().available
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, unused
    limit = max(isqrt(free // (2 * 4 * config.vit_heads)), 1)
    if n > limit:
        logger.warning(
            "section %r: preset %r takes sections whole, but %d spots may not fit into the %.1f GiB that are free; "
            "it is predicted in chunks of %d (chunk_spots= in tl.predict sets another number)",
            name,
            config.preset,
            n,
            free / 2**30,
            limit,
        )
    return min(n, limit)
