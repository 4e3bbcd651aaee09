"""Spots described by their patches: read ahead, and given to functions a batch at a time."""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..runtime.device import compute_alone, mixed_precision
from .patches import read_patches

if TYPE_CHECKING:
    from ..image import SectionImage

logger = logging.getLogger(__name__)

CPU_PATCHES = 16  # looked at once by each thread: the maps of 64 do not fit the cache, and take a fifth more time
GPU_READERS = 8  # threads that read for a GPU

View = tuple[int, bool]  # quarter turns, and whether mirrored first
PLAIN: tuple[View, ...] = ((0, False),)
DIHEDRAL: tuple[View, ...] = tuple((turns, flip) for flip in (False, True) for turns in range(4))

Item = TypeVar("Item")
Result = TypeVar("Result")


class _BatchSize:
    """How many spots are described at once: half as many from where the GPU runs out of memory."""

    def __init__(self, spots: int) -> None:
        self.spots = spots

    def apply(self, describe: Callable[[Tensor], list[Tensor]], patches: Tensor) -> Iterator[list[Tensor]]:
        """Yield what a function makes of the patches, of some spots at a time, in order."""
        start = 0
        while start < len(patches):
            part = patches[start : start + self.spots]
            try:
                found = describe(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.spots = -(-len(part) // 2)
                logger.warning(
                    "the GPU ran out of memory with the patches of %d spots at once; going on with %d (batch_size=%d "
                    "in tl.predict starts with these)",
                    len(part),
                    self.spots,
                    self.spots,
                )
                continue
            yield found
            start += len(part)


def describe_parts(
    image: "SectionImage",
    parts: Sequence[np.ndarray],
    fields: Sequence[float],
    patch_size: int,
    describe: Sequence[Callable[[Tensor], Tensor]],
    *,
    batch_size: int,
    device: torch.device,
    concurrently: bool = True,
) -> Generator[list[Tensor], None, None]:
    """Read the patches around spots once, and apply each function to them, without gradients, a batch at a time.

    A CPU's threads share a batch: each reads some of the spots and describes them by itself, which is faster than all
    of them at work on every convolution. For a GPU several threads read ahead; where it runs out of memory, the spots
    at once are halved from there on, with a warning. Reading goes on with the next part, a batch for each thread, while
    the caller is at work on the last; closed, the threads have ended.

    Parameters
    ----------
    image
        An open image.
    parts
        (n, 2) centres of the spots of each part, px of the image's finest level.
    fields
        Sides of the fields of view, px of the image's finest level.
    patch_size
        Side of the patches, px.
    describe
        Take (n, fields, 3, S, S) uint8.
    batch_size
        Spots whose patches are given to the functions at once.
    device
        Where the functions find the patches.
    concurrently
        Whether several threads may be in a function at once. If not, a CPU's are at work on one batch, while the next
        is read.

    Yields
    ------
    For each part what each function makes of its spots, (n, ...).
    """

    def read(xy: np.ndarray) -> Tensor:
        patches = torch.from_numpy(read_patches(image, xy, fields, patch_size))
        return patches.pin_memory() if device.type == "cuda" else patches

    @torch.no_grad()
    def described(patches: Tensor) -> list[Tensor]:
        there = patches.to(device, non_blocking=True)
        return [function(there) for function in describe]

    results: Generator[Any, None, None]
    if shared := device.type == "cpu" and concurrently:
        n_threads = torch.get_num_threads()
        batches = _batches(parts, -(-batch_size // n_threads))
        results = _ahead(lambda xy: described(read(xy)), chain.from_iterable(batches), n_threads, compute_alone)
    else:
        n_readers = 1 if device.type == "cpu" else min(GPU_READERS, os.cpu_count() or 1)
        batches, at_once = _batches(parts, batch_size), _BatchSize(batch_size)
        results = _ahead(read, chain.from_iterable(batches), n_readers)
    with closing(results):
        for part in batches:
            found: Iterable[Any] = islice(results, len(part))
            if not shared:
                found = (of_spots for patches in found for of_spots in at_once.apply(described, patches))
            yield [torch.cat(pieces) for pieces in zip(*found, strict=True)]


def _batches(parts: Sequence[np.ndarray], size: int) -> list[list[np.ndarray]]:
    return [[part[start : start + size] for start in range(0, len(part), size)] for part in parts]


def _ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    n_threads: int,
    initializer: Callable[[], object] | None = None,
) -> Generator[Result, None, None]:
    """Yield what threads make of each item, in order, while they are at work on the next; closed, they have ended."""
    with ThreadPoolExecutor(n_threads, "patches", initializer) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > n_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def encode_parts(
    image: "SectionImage",
    parts: Sequence[np.ndarray],
    fields: Sequence[float],
    patch_size: int,
    encode: Callable[[Tensor], Tensor],
    *,
    views: tuple[View, ...],
    batch_size: int,
    device: torch.device,
) -> Generator[Tensor, None, None]:
    """Read and encode the patches around spots, in all `views`: (n, views, ...) of each part. See `describe_parts`."""
    in_views = [of_views(encode, views)]
    found = describe_parts(image, parts, fields, patch_size, in_views, batch_size=batch_size, device=device)
    with closing(found):
        for (features,) in found:
            yield features


def of_views(encode: Callable[[Tensor], Tensor], views: tuple[View, ...]) -> Callable[[Tensor], Tensor]:
    """Return a function that encodes all patches in one view after the other, (n, ...) to (n, views, ...)."""

    def apply(patches: Tensor) -> Tensor:
        with mixed_precision(patches.device):
            return torch.stack([encode(view) for view in turned(patches, views)], dim=1)

    return apply


def of_patches(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function of (n, fields, 3, S, S) that applies one of (N, 3, S, S) to every patch, (n, fields, ...)."""

    def apply(patches: Tensor) -> Tensor:
        flat = patches.flatten(0, 1)
        parts = flat.split(CPU_PATCHES * torch.get_num_threads()) if flat.device.type == "cpu" else [flat]
        return torch.cat([function(part) for part in parts]).unflatten(0, patches.shape[:2])

    return apply


def turned(patches: Tensor, views: tuple[View, ...]) -> Iterator[Tensor]:
    """Yield all patches in one view after the other."""
    for turns, flip in views:
        yield torch.rot90(patches.flip(-1) if flip else patches, turns, (-2, -1)).contiguous()
