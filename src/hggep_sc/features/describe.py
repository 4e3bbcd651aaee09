"""Spots described by their patches: read ahead, and given to functions a batch at a time."""

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..runtime.device import encoder_precision
from ..runtime.threads import Item, Result, ahead, compute_alone
from .patches import read_patches

if TYPE_CHECKING:
    from ..image import SectionImage

logger = logging.getLogger(__name__)

CPU_PATCHES = 16  # looked at once by each thread: the maps of 64 do not fit the cache, and take a fifth more time
GPU_READERS = 8  # threads that read for a GPU

View = tuple[int, bool]  # quarter turns, and whether mirrored first
PLAIN: tuple[View, ...] = ((0, False),)
DIHEDRAL: tuple[View, ...] = tuple((turns, flip) for flip in (False, True) for turns in range(4))


class AtOnce:
    """How many patches or crops are given to functions at once: half as many from where the GPU runs out of memory.

    Parameters
    ----------
    number
        To begin with.
    what
        They are called, for the warning.
    """

    def __init__(self, number: int, what: str) -> None:
        self.number, self.what = number, what

    def apply(self, functions: Sequence[Callable[[Tensor], Tensor]], pixels: Tensor) -> list[Tensor]:
        """Return what each function makes of the pixels, of some of them at a time, without gradients."""
        start, found = 0, []
        while start < len(pixels):
            part = pixels[start : start + self.number]
            try:
                with torch.no_grad():
                    found.append([function(part) for function in functions])
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.number = -(-len(part) // 2)
                logger.warning(
                    "the GPU ran out of memory with %d %s at once; going on with %d (batch_size=%d in tl.predict "
                    "starts with these)",
                    len(part),
                    self.what,
                    self.number,
                    self.number,
                )
                continue
            start += len(part)
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]


def in_parts(
    parts: Sequence[Sequence[Item]],
    read: Callable[[Item], Tensor],
    compute: Callable[[Item, Tensor], Result],
    *,
    device: torch.device,
    concurrently: bool = True,
) -> Generator[list[Result], None, None]:
    """Read pixels and compute from them, item by item, while the next are read.

    Each thread of a CPU reads and computes by itself, which is faster than all of them at work on every convolution.
    For a GPU several threads read ahead. Work goes on with the next part while the caller is busy with the last;
    closed, the threads have ended.

    Parameters
    ----------
    parts
        Items that are handed over together.
    read
        Gives an item's pixels.
    compute
        Takes an item and its pixels.
    device
        Where it computes.
    concurrently
        Whether several threads may compute at once. If not, a CPU's are at work on one item, while the next is read.

    Yields
    ------
    For each part what was computed of its items.
    """
    items = list(chain.from_iterable(parts))
    if device.type == "cpu" and concurrently:
        results = ahead(lambda item: compute(item, read(item)), items, torch.get_num_threads(), compute_alone)
    else:
        results = _read_ahead(items, read, compute, device)
    with closing(results):
        for part in parts:
            yield list(islice(results, len(part)))


def _read_ahead(
    items: Sequence[Item],
    read: Callable[[Item], Tensor],
    compute: Callable[[Item, Tensor], Result],
    device: torch.device,
) -> Generator[Result, None, None]:
    def pinned(item: Item) -> Tensor:
        return read(item).pin_memory() if device.type == "cuda" else read(item)

    n_readers = 1 if device.type == "cpu" else min(GPU_READERS, os.cpu_count() or 1)
    with closing(ahead(pinned, items, n_readers)) as arriving:
        for item, pixels in zip(items, arriving, strict=True):
            yield compute(item, pixels)


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

    Where a GPU runs out of memory, the spots at once are halved from there on, with a warning. See `in_parts`.

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
        Spots whose patches are given to the functions at once; a CPU's threads share them.
    device, concurrently
        As in `in_parts`.

    Yields
    ------
    For each part what each function makes of its spots, (n, ...).
    """
    shared = device.type == "cpu" and concurrently
    batches = _batches(parts, -(-batch_size // torch.get_num_threads()) if shared else batch_size)
    at_once = AtOnce(batch_size, "spots' patches")

    def read(xy: np.ndarray) -> Tensor:
        return torch.from_numpy(read_patches(image, xy, fields, patch_size))

    def compute(_: np.ndarray, patches: Tensor) -> list[Tensor]:
        return at_once.apply(describe, patches.to(device, non_blocking=True))

    with closing(in_parts(batches, read, compute, device=device, concurrently=concurrently)) as results:
        for part in results:
            yield [torch.cat(pieces) for pieces in zip(*part, strict=True)]


def _batches(parts: Sequence[np.ndarray], size: int) -> list[list[np.ndarray]]:
    return [[part[start : start + size] for start in range(0, len(part), size)] for part in parts]


def of_views(encode: Callable[[Tensor], Tensor], views: tuple[View, ...]) -> Callable[[Tensor], Tensor]:
    """Return a function that encodes all patches in one view after the other, (n, ...) to (n, views, ...)."""

    def apply(patches: Tensor) -> Tensor:
        with encoder_precision(patches.device):
            return torch.stack([encode(view) for view in turned(patches, views)], dim=1)

    return apply


def of_patches(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function of (n, fields, 3, S, S) that applies one of (N, 3, S, S) to every patch, (n, fields, ...)."""

    def apply(patches: Tensor) -> Tensor:
        flat = patches.flatten(0, 1)
        parts = flat.split(CPU_PATCHES * torch.get_num_threads()) if flat.device.type == "cpu" else [flat]
        with encoder_precision(flat.device):
            return torch.cat([function(part) for part in parts]).unflatten(0, patches.shape[:2])

    return apply


def turned(patches: Tensor, views: tuple[View, ...]) -> Iterator[Tensor]:
    """Yield all patches in one view after the other."""
    for turns, flip in views:
        yield torch.rot90(patches.flip(-1) if flip else patches, turns, (-2, -1)).contiguous()
