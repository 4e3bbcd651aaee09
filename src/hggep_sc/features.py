"""Features of spots: patches read and encoded a batch at a time, or embeddings that the table holds."""

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from threading import Lock
from typing import TYPE_CHECKING, Self, TypeVar
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np
import torch
from torch import Tensor, nn

from ._settings import settings
from .colours import N_STATISTICS, colour_and_texture
from .config import Config
from .device import compute_alone, mixed_precision
from .nn import Encoder, ModuleEncoder, shufflenet_encoder
from .patches import BATCH_SPOTS, read_patches, say_if_coarse
from .weights import load_pretrained, locate_weights

if TYPE_CHECKING:
    from .image import SectionImage
    from .section import Section

logger = logging.getLogger(__name__)

SHUFFLENET = "shufflenet"  # HGGEP's own encoder
CPU_PATCHES = 16  # looked at once by each thread: the maps of more do not fit a core's cache, and take twice the time
SPOOLED = 2**25  # bytes of features above which they wait on disk
GPU_READERS = 8  # threads that read for a GPU

View = tuple[int, bool]  # quarter turns, and whether mirrored first
PLAIN: tuple[View, ...] = ((0, False),)
DIHEDRAL: tuple[View, ...] = tuple((turns, flip) for flip in (False, True) for turns in range(4))

Features = Callable[[np.ndarray], Tensor]  # indices of spots -> (n, views, ...)
Result = TypeVar("Result")


class _Memory:
    """Features of sections that are still in use, the latest, up to `settings.feature_memory` bytes."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Section, dict[Hashable, tuple[int, Tensor]]] = WeakKeyDictionary()
        self._uses = count()  # when each was last used
        self._lock = Lock()  # folds may be run by threads

    def get(self, section: "Section", key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is kept, or compute and keep it."""
        with self._lock:
            of_section = self._kept.setdefault(section, {})
            if key in of_section:
                of_section[key] = next(self._uses), of_section[key][1]
                return of_section[key][1]
        features = compute()
        with self._lock:
            of_section[key] = next(self._uses), features
            everything = [(use, part, name) for part in self._kept.values() for name, (use, _) in part.items()]
            total = sum(part[name][1].nbytes for _, part, name in everything)
            for _, part, name in sorted(everything, key=lambda entry: entry[0]):
                if total <= settings.feature_memory:
                    break
                total -= part.pop(name)[1].nbytes
        return features


_memory = _Memory()
_used_once: "WeakSet[Section]" = WeakSet()


def use_once(sections: "Iterable[Section]") -> None:
    """Keep no features of sections that no other call will see."""
    for section in sections:
        _used_once.add(section)


def kept_features(section: "Section", key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
    """Return features of a section that are kept under a key, or compute and keep them."""
    return compute() if section in _used_once else _memory.get(section, key, compute)


def kept_colours(section: "Section", fields: tuple[float, ...], patch_size: int) -> np.ndarray:
    """Return the statistics of colour and texture of a section's spots, (n, fields, 90); NaN where not yet known.

    What is found out later goes into it.
    """
    shape = len(section.xy), len(fields), N_STATISTICS
    return kept_features(section, ("colour", fields, patch_size), lambda: torch.full(shape, torch.nan)).numpy()


class Spool:
    """Features of a section's spots, float32, that wait to be read back in parts: where they are many, on disk."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(SPOOLED)  # noqa: SIM115  # closed by __exit__
        self._parts: list[tuple[np.ndarray, tuple[int, ...]]] = []

    def add(self, spots: np.ndarray, features: np.ndarray) -> None:
        """Put away the features of some spots.

        Raises
        ------
        OSError
            If there is no room for them on disk.
        """
        self._parts.append((spots, features.shape))
        try:
            self._file.write(features.tobytes())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: the features of a large section wait in {gettempdir()}, "
                f"{features[0].nbytes / 1e3:.0f} kB a spot; set TMPDIR to a folder with room",
            ) from error

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the spots and features of each part, as they were added."""
        self._file.seek(0)
        for spots, shape in self._parts:
            yield spots, np.frombuffer(self._file.read(4 * math.prod(shape)), dtype=np.float32).reshape(shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class BatchSize:
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


def describe_spots(
    image: "SectionImage",
    xy: np.ndarray,
    fields: Sequence[float],
    patch_size: int,
    describe: Sequence[Callable[[Tensor], Tensor]],
    *,
    batch_size: int | BatchSize,
    device: torch.device,
    concurrently: bool = True,
) -> list[Tensor]:
    """Read the patches around spots once, and apply each function to them, without gradients, a batch at a time.

    A CPU's threads share a batch: each reads some of the spots and describes them by itself, which is faster than all
    of them at work on every convolution. For a GPU several threads read ahead; where it runs out of memory, the spots
    at once are halved from there on, with a warning.

    Parameters
    ----------
    image
        An open image.
    xy
        (n, 2) centres, px of the image's finest level.
    fields
        Sides of the fields of view, px of the image's finest level.
    patch_size
        Side of the patches, px.
    describe
        Take (n, fields, 3, S, S) uint8.
    batch_size
        Spots whose patches are given to the functions at once; a `BatchSize` that several calls share is halved for
        all of them.
    device
        Where the functions find the patches.
    concurrently
        Whether several threads may be in a function at once. If not, a CPU's are at work on one batch, while the next
        is read.

    Returns
    -------
    What each function makes of all spots, (n, ...).
    """

    def read(spots: slice) -> Tensor:
        patches = torch.from_numpy(read_patches(image, xy[spots], fields, patch_size))
        return patches.pin_memory() if device.type == "cuda" else patches

    @torch.no_grad()
    def described(patches: Tensor) -> list[Tensor]:
        there = patches.to(device, non_blocking=True)
        return [function(there) for function in describe]

    at_once = batch_size if isinstance(batch_size, BatchSize) else BatchSize(batch_size)
    if device.type == "cpu" and concurrently:
        n_threads = torch.get_num_threads()
        batches = _batches(len(xy), -(-at_once.spots // n_threads))
        with closing(_ahead(lambda spots: described(read(spots)), batches, n_threads, compute_alone)) as results:
            found = list(results)
    else:
        n_readers = 1 if device.type == "cpu" else min(GPU_READERS, os.cpu_count() or 1)
        with closing(_ahead(read, _batches(len(xy), at_once.spots), n_readers)) as arrived:
            found = [part for patches in arrived for part in at_once.apply(described, patches)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _batches(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def _ahead(
    work: Callable[[slice], Result],
    batches: Sequence[slice],
    n_threads: int,
    initializer: Callable[[], object] | None = None,
) -> Generator[Result, None, None]:
    """Yield what threads make of each batch, in order, while they are at work on the next; closed, they have ended."""
    with ThreadPoolExecutor(n_threads, "patches", initializer) as pool:
        ahead: deque[Future[Result]] = deque()
        for batch in batches:
            ahead.append(pool.submit(work, batch))
            if len(ahead) > n_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def encode_spots(
    image: "SectionImage",
    xy: np.ndarray,
    fields: tuple[float, ...],
    patch_size: int,
    encode: Callable[[Tensor], Tensor],
    *,
    views: tuple[View, ...],
    batch_size: int | BatchSize,
    device: torch.device,
) -> Tensor:
    """Read and encode the patches around spots, in all `views`: (n, views, ...). See `describe_spots`."""
    in_views = [of_views(encode, views)]
    return describe_spots(image, xy, fields, patch_size, in_views, batch_size=batch_size, device=device)[0]


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


def make_encoder(encoder: str | nn.Module, config: Config, weights: str | Path | None) -> Encoder | str | None:
    """Return what is to see the spots; see `hggep_sc.tl.fit` for the parameters.

    Returns
    -------
    An encoder; the `obsm` slot of embeddings; None for the released network, which has its own.

    Raises
    ------
    ValueError
        If the released network is given another, or a module does not give a vector for each patch.
    TypeError
        If `encoder` is neither a name nor a module.
    """
    if not isinstance(encoder, str | nn.Module):
        raise TypeError(
            f'encoder must be "{SHUFFLENET}", the obsm slot of embeddings or a torch.nn.Module, not '
            f"{type(encoder).__name__}"
        )
    if config.preset == "published":
        if encoder != SHUFFLENET:
            raise ValueError(f'encoder={encoder!r}: the published network has its own; use preset="default"')
        locate_weights(weights)  # refuses what is not there before anything is read
        return None
    if encoder != SHUFFLENET and config.learns_from_pixels:
        raise ValueError(
            "GEM, CBAM and a backbone that learns are parts of the shufflenet encoder; yours is not trained: "
            "config={'gem': False, 'cbam': False, 'backbone_learning_rate': 0}"
        )
    if isinstance(encoder, nn.Module):
        return ModuleEncoder(encoder, config.patch_size)
    if encoder != SHUFFLENET:
        return encoder
    own = shufflenet_encoder(config)
    if (path := locate_weights(weights)) is not None:
        load_pretrained(own, path)
    return own


def is_frozen(encoder: Encoder | str | None, config: Config) -> bool:
    """Whether features do not change in training, so that they are computed once."""
    return isinstance(encoder, str | ModuleEncoder) or (encoder is not None and not config.learns_from_pixels)


def views_of(encoder: Encoder | str | None, config: Config) -> tuple[View, ...]:
    """Return the views of every patch that a frozen encoder's features are computed of."""
    return DIHEDRAL if config.flips and not isinstance(encoder, str) else PLAIN


def feature_shape(section: "Section", encoder: Encoder | str, config: Config) -> tuple[int, int, int, int]:
    """Return (n, views, fields, D) of a section's features by a frozen encoder."""
    if isinstance(encoder, str):
        n, d = section.embeddings(encoder).shape
        return n, 1, 1, d
    return len(section.xy), len(views_of(encoder, config)), len(config.fields_px), sum(encoder.groups)


@contextmanager
def open_features(
    section: "Section",
    encoder: Encoder | str,
    fields: tuple[float, ...],
    config: Config,
    *,
    device: torch.device,
    views: tuple[View, ...] | None = None,
    batch_size: int = BATCH_SPOTS,
    colours: np.ndarray | None = None,
) -> Iterator[Features]:
    """Give the features of a section's spots by a frozen encoder, (n, views, fields, D).

    Features are kept as long as the section is in use, for another fit to it or a prediction of it; not where those of
    all its spots are more than `settings.feature_memory` holds.

    Parameters
    ----------
    section
        Where the spots and the image are.
    encoder
        A frozen encoder; or the `obsm` slot of embeddings, which have one view and one field.
    fields
        Sides of the fields of view, px of the image's finest level.
    config
        Size of the patches, and whether to flip and turn them.
    views
        Turns and mirrorings instead of those.
    device, batch_size
        As in `encode_spots`.
    colours
        (n_spots, fields, 90), where statistics of colour and texture go, if the linear path will ask for them; None
        for what `kept_colours` gives.
    """
    if isinstance(encoder, str):
        embeddings = torch.from_numpy(section.embeddings(encoder))
        yield lambda spots: embeddings[spots][:, None, None].to(device)
        return
    say_if_coarse(section, fields, config.patch_size)
    encoder.to(device).eval()
    views = views or views_of(encoder, config)
    # a user's module has more to it than its hash tells: its features are its own
    name = encoder.id, ref(encoder.module) if isinstance(encoder, ModuleEncoder) else None

    describe = [of_views(of_patches(encoder.for_inference()), views)]
    if config.linear and config.cross_fit:
        describe.append(of_patches(colour_and_texture))
    size = 4 * len(section.xy) * len(views) * len(fields) * sum(encoder.groups)
    at_once = BatchSize(batch_size)

    with ExitStack() as stack:
        image = cache(lambda: stack.enter_context(section.open_image()))  # not opened for what is kept

        def features(spots: np.ndarray) -> Tensor:
            def compute() -> Tensor:
                found, *seen = describe_spots(
                    image(),
                    section.xy[spots],
                    fields,
                    config.patch_size,
                    describe,
                    batch_size=at_once,
                    device=device,
                    concurrently=not isinstance(encoder, ModuleEncoder),  # it may note things as it goes
                )
                if not found.isfinite().all():
                    raise ValueError(f"section {section.name!r}: the encoder gives features that are NaN or infinite")
                for of_spots in seen:
                    into = kept_colours(section, fields, config.patch_size) if colours is None else colours
                    into[spots] = of_spots.cpu().numpy()
                return found.cpu()

            if size > settings.feature_memory:
                return compute().to(device)
            return kept_features(section, (name, fields, config.patch_size, views, spots.tobytes()), compute).to(device)

        yield features
