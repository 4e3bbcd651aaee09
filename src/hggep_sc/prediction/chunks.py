"""A section predicted in compact chunks: each spot once, among the spots around it."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import MemoryWarning
from ..features.parts import halved
from ..nn import average_views
from ..nn.interface import upload
from ..runtime.device import mixed_precision
from ..runtime.messages import warn
from ..runtime.threads import Result, ahead, compute_alone
from ..storage.arrays import let_go
from ..storage.checkpoint import Parts
from .context import layers_at_pitch

if TYPE_CHECKING:
    from scipy.spatial import KDTree

    from ..nn.interface import Network

CORE = 0.5  # share of a chunk's spots that are predicted, at most; the rest is their surroundings
SCORES = 2 * 4  # bytes for each head and pair of spots, where attention is not fused: scores and weights


class ChunkSettings(Protocol):
    """Settings by which the memory of a chunk is reckoned."""

    @property
    def chunk_spots(self) -> int | None:
        """Spots of a chunk, at most; None for a whole section."""

    @property
    def vit_heads(self) -> int:
        """Attention heads."""


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
    return halved(xy, lambda spots: max_spots is None or len(spots) <= max_spots)


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


def spots_at_once(
    n: int, config: ChunkSettings, device: torch.device, *, name: str, chunk_spots: int | None = None
) -> int:
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
        warn(
            f"section {name!r}: {wanted} spots at once may not fit into the {free / 2**30:.1f} GiB that are free; it "
            f"is predicted in chunks of {limit} (chunk_spots= sets another number)",
            MemoryWarning,
        )
    return min(wanted, limit)


@torch.inference_mode()
def predict_in_chunks(
    network: "Network",
    features: np.ndarray,
    xy: np.ndarray,
    positions: Tensor,
    config: ChunkSettings,
    *,
    name: str,
    max_spots: int,
    pitch: float | None = None,
    kept: Parts | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict all spots of a section from their features.

    Where the GPU runs out of memory, chunks are halved from there on, with a warning.

    Parameters
    ----------
    network
        In evaluation mode.
    features
        (n_spots, views, ...); the predictions of several views are averaged.
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
    kept
        Predictions of chunks that are not to be predicted again, and where those of the others are put away.

    Returns
    -------
    Log expression (n_spots, n_genes) and latent representation (n_spots, d), both float32.
    """
    kept = kept or Parts(None)
    predicted: list[np.ndarray] = []

    def put(spots: np.ndarray, values: Sequence[np.ndarray]) -> None:
        if not predicted:
            predicted.extend(np.empty((len(xy), value.shape[1]), dtype=np.float32) for value in values)
        for whole, value in zip(predicted, values, strict=True):
            whole[spots] = value

    decoder = _Decoder(network, xy, positions, max_spots, name)
    todo = []
    for chunk in _chunks(xy, max_spots, pitch):
        if chunk.predicted in kept:
            known = kept.read(chunk.predicted)
            put(chunk.predicted, [known[what].numpy() for what in ("expression", "latent")])
        else:
            todo.append(chunk)

    def decode(chunk: Chunk) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        seen = torch.from_numpy(features[chunk.spots])
        let_go(features)
        return list(decoder.core(chunk, upload(seen, positions.device)))

    with closing(_in_turn(decode, todo, max_spots, positions.device, config)) as arriving:
        for chunk, decoded in zip(todo, arriving, strict=True):
            for spots, values in decoded:
                put(spots, values)
            expression, latent = (torch.from_numpy(whole[chunk.predicted]) for whole in predicted)
            kept.write(chunk.predicted, expression=expression, latent=latent)
    expression_of_all, latent_of_all = predicted  # a section has spots
    return expression_of_all, latent_of_all


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
    """

    def __init__(
        self,
        network: "Network",
        xy: np.ndarray,
        positions: Tensor,
        limit: int,
        name: str,
    ) -> None:
        self.network, self.xy, self.positions, self.limit, self.name = network, xy, positions, limit, name

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
                    out = average_views(self.network, seen[part.spots], self.positions[spots])
            except torch.OutOfMemoryError:
                if len(spots) == 1:
                    raise
                self.limit = len(spots) // 2
                todo.append(part)
                warn(
                    f"section {self.name!r}: the GPU ran out of memory with {len(spots)} spots at once; going on with "
                    f"chunks of {self.limit} (chunk_spots={self.limit} in tl.predict starts with these)",
                    MemoryWarning,
                )
                continue
            yield spots[part.core], [value.float().cpu().numpy()[part.core] for value in out]


def _in_turn(
    decode: Callable[[Chunk], Result],
    chunks: Sequence[Chunk],
    max_spots: int,
    device: torch.device,
    config: ChunkSettings,
) -> Generator[Result, None, None]:
    """Decode chunks in order; each of a CPU's threads takes one by itself, which is faster than all of them at one.

    There are as many at once as free memory holds, see `spots_at_once`.
    """
    n_threads = 1
    if device.type == "cpu" and len(chunks) > 1:
        room = _free_memory(device) // (SCORES * config.vit_heads * max_spots**2)
        n_threads = min(torch.get_num_threads(), room)
    if n_threads > 1:
        return ahead(torch.inference_mode()(decode), chunks, n_threads, compute_alone)
    return (decode(chunk) for chunk in chunks)


def _free_memory(device: torch.device) -> int:
    """Bytes that are free: of a GPU, else of the machine."""
    import psutil

    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own
    return int(torch.cuda.mem_get_info(device)[0] + unused)
