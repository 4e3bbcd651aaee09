"""A section predicted in compact chunks: each spot once, among the spots around it."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..nn import Output, average_views
from ..runtime.device import compute_alone, mixed_precision
from ..storage.arrays import array_store
from ..storage.checkpoint import Checkpoint
from .context import layers_at_pitch

if TYPE_CHECKING:
    from scipy.spatial import KDTree

    from ..config import Config
    from ..features.frozen import Features
    from ..nn.interface import Network

logger = logging.getLogger(__name__)

CORE = 0.5  # share of a chunk's spots that are predicted, at most; the rest is their surroundings
DESCRIBED = 512  # spots that are described together, at most: what a kill loses
SCORES = 2 * 4  # bytes for each head and pair of spots, where attention is not fused: scores and weights


class Chunk(NamedTuple):
    """Spots that the network sees together, and which of them it predicts."""

    spots: np.ndarray  # sorted indices
    core: np.ndarray  # bool, one per spot; the others are the halo

    @property
    def predicted(self) -> np.ndarray:
        """Indices of the core's spots."""
        return self.spots[self.core]


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


def described_together(xy: np.ndarray, max_spots: int | None) -> list[np.ndarray]:
    """Split spots into the parts whose patches are described together, where so many make a chunk.

    Larger sections are split as into cores: the smaller the parts, the less is held along the border.
    """
    size = min(max_spots or DESCRIBED, DESCRIBED)
    return spatial_chunks(xy, size if len(xy) <= size else max(int(CORE * size), 1))


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


def spots_at_once(n: int, config: "Config", device: torch.device, *, name: str, chunk_spots: int | None = None) -> int:
    """Return the spots of a chunk: as asked for, else as many as the model's `config.chunk_spots` and memory allow.

    Parameters
    ----------
    n
        Spots of the section.
    config
        The model's.
    device
        Whose memory it is: what is free has to hold the scores and weights of attention that is not fused, heads x n x
        n. Where it does not, a warning says so.
    name
        The section's, for it.
    chunk_spots
        What was asked for.
    """
    if chunk_spots is not None:
        return min(n, chunk_spots)
    wanted = min(n, config.chunk_spots or n)
    free = _free_memory(device)
    limit = max(isqrt(free // (SCORES * config.vit_heads)), 1)
    if wanted > limit:
        logger.warning(
            "section %r: %d spots at once may not fit into the %.1f GiB that are free; it is predicted in chunks of %d "
            "(chunk_spots= sets another number)",
            name,
            wanted,
            free / 2**30,
            limit,
        )
    return min(wanted, limit)


@torch.inference_mode()
def predict_in_chunks(
    network: "Network",
    features: "Features",
    xy: np.ndarray,
    positions: Tensor,
    config: "Config",
    *,
    name: str,
    max_spots: int,
    pitch: float | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict all spots of a section from their features, which are computed once.

    Where the GPU runs out of memory, chunks are halved from there on, with a warning.

    Parameters
    ----------
    network
        In evaluation mode.
    features
        Takes parts of the spots and gives the features of each, (n, views, ...), on the network's device.
    xy
        (n_spots, 2) spot centres, by which the section is cut.
    positions
        (n_spots, 2) what the network takes for them, on its device.
    config
        The network's.
    name
        The section's, for warnings.
    max_spots
        Spots of a chunk, see `spots_at_once`.
    pitch
        Distance, in the unit of `xy`, of the neighbours that the network knows, where spots lie so much closer that
        they are dealt into layers, see `layers_at_pitch`; None where they do not.
    checkpoint
        Holds the predictions of chunks that are not to be predicted again, and is given those of the others; features
        that no later chunk needs are removed from it.

    Returns
    -------
    Log expression (n_spots, n_genes) and latent representation (n_spots, d), both float32.
    """
    checkpoint = checkpoint or Checkpoint()
    predicted: list[np.ndarray] = []

    def put(spots: np.ndarray, values: Sequence[np.ndarray]) -> None:
        if not predicted:
            predicted.extend(np.empty((len(xy), value.shape[1]), dtype=np.float32) for value in values)
        for whole, value in zip(predicted, values, strict=True):
            whole[spots] = value

    todo = []
    for chunk in _chunks(xy, max_spots, pitch):
        if chunk.predicted not in checkpoint.predicted:
            todo.append(chunk)
            continue
        known = checkpoint.predicted.read(chunk.predicted)
        put(chunk.predicted, [known[name].numpy() for name in ("expression", "latent")])
    parts = described_together(xy, max_spots)
    gather = _features_of if pitch is None else _features_of_layers
    with (
        _views_at_once(positions.device, max_spots, config) as each,
        closing(gather(todo, features, parts, checkpoint)) as arriving,
    ):
        decoder = _Decoder(network, xy, positions, max_spots, each, name)
        for chunk, seen in zip(todo, arriving, strict=True):
            for spots, values in decoder.core(chunk, seen):
                put(spots, values)
            kept = [torch.from_numpy(whole[chunk.predicted]) for whole in predicted]
            checkpoint.predicted.write(chunk.predicted, expression=kept[0], latent=kept[1])
    expression, latent = predicted  # a section has spots
    return expression, latent


def _chunks(xy: np.ndarray, max_spots: int, pitch: float | None) -> list[Chunk]:
    """Cut a section into chunks, or each of its layers."""
    if pitch is None:
        return chunks_with_halo(xy, np.ones(len(xy), dtype=bool), max_spots)
    return [
        Chunk(spots[part.spots], part.core)
        for spots, own in layers_at_pitch(xy, pitch)
        for part in chunks_with_halo(xy[spots], own, max_spots)
    ]


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
def _views_at_once(device: torch.device, max_spots: int, config: "Config") -> Iterator[Callable[..., Iterable[Output]]]:
    """Give a `map` over views: by a CPU's threads, each computing alone, which is faster than all of them at one.

    There are as many as free memory holds, see `spots_at_once`.
    """
    n_threads = 1
    if device.type == "cpu":
        room = _free_memory(device) // (SCORES * config.vit_heads * max_spots**2)
        n_threads = min(torch.get_num_threads(), room)
    if n_threads <= 1:
        yield map
        return
    with ThreadPoolExecutor(n_threads, "views", compute_alone) as pool:

        def each(function: Callable[[Tensor], Output], views: Sequence[Tensor]) -> Iterable[Output]:
            return pool.map(torch.inference_mode()(function), views) if len(views) > 1 else map(function, views)

        yield each


def _features_of(
    chunks: Sequence[Chunk], features: "Features", parts: Sequence[np.ndarray], checkpoint: Checkpoint
) -> Generator[Tensor, None, None]:
    """Give the features of each chunk in turn.

    They are computed by `parts`, a partition of the spots. Those along the border between what is predicted and what is
    not wait until no later chunk needs them: on disk, where the checkpoint keeps them, else in memory, as on a GPU.
    """
    n = sum(map(len, parts))
    part_of, row_of = np.empty(n, dtype=int), np.empty(n, dtype=int)
    for i, spots in enumerate(parts):
        part_of[spots], row_of[spots] = i, np.arange(len(spots))
    needed = [np.unique(part_of[chunk.spots]) for chunk in chunks]
    unknown = [i for i, spots in enumerate(parts) if spots not in checkpoint.described]  # whatever has been predicted
    last_use = {part: i for i, of_chunk in enumerate(needed) for part in of_chunk}
    arrived: set[int] = set()
    held: dict[int, Tensor] = {}
    with closing(features([parts[part] for part in dict.fromkeys(chain(*needed, unknown))])) as arriving:

        def of_part(part: int) -> Tensor:
            if part in arrived:
                return held[part] if part in held else checkpoint.features.read(parts[part])["features"]
            found = next(arriving)
            arrived.add(part)
            if found.device.type != "cpu" or parts[part] not in checkpoint.features:
                held[part] = found
            return found

        for i, ((spots, _), of_chunk) in enumerate(zip(chunks, needed, strict=True)):
            seen: Tensor | None = None
            for part in of_chunk:
                found = of_part(part)
                seen = found.new_empty((len(spots), *found.shape[1:])) if seen is None else seen
                here = part_of[spots] == part
                seen[here] = found[row_of[spots[here]]]
            assert seen is not None  # a chunk has spots
            del found
            done = [part for part in of_chunk if last_use[part] == i]
            for part in done:
                held.pop(part, None)
            yield seen
            for part in done:  # the chunk has been predicted
                checkpoint.features.remove(parts[part])
        for _ in arriving:
            pass
    for spots in parts:  # what a kill has left
        checkpoint.features.remove(spots)


def _features_of_layers(
    chunks: Sequence[Chunk], features: "Features", parts: Sequence[np.ndarray], checkpoint: Checkpoint
) -> Generator[Tensor, None, None]:
    """Give the features of each chunk in turn, where chunks take some spots of every part: all are held."""
    wanted = [spots for spots in parts if chunks or spots not in checkpoint.described]
    with ExitStack() as open_until_done:
        arriving = open_until_done.enter_context(closing(features(wanted)))
        held: np.ndarray | None = None
        device = torch.device("cpu")
        for spots, found in zip(wanted, arriving, strict=True):
            if held is None:
                shape, device = (sum(map(len, parts)), *found.shape[1:]), found.device
                (held,) = open_until_done.enter_context(array_store([shape], np.float32))
            held[spots] = found.float().cpu().numpy()
        for chunk in chunks:
            assert held is not None  # a chunk has spots
            yield torch.from_numpy(held[chunk.spots]).to(device)
    for spots in parts:
        checkpoint.features.remove(spots)


def _free_memory(device: torch.device) -> int:
    """Bytes that are free: of a GPU, else of the machine."""
    import psutil

    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own
    return int(torch.cuda.mem_get_info(device)[0] + unused)
