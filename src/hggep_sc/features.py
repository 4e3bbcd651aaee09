"""Features of spots: patches read and encoded a batch at a time, or embeddings that the table holds."""

import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

from ._settings import settings
from .colours import N_STATISTICS, colour_and_texture
from .config import Config
from .nn import Encoder, ModuleEncoder, shufflenet_encoder
from .patches import BATCH_SPOTS, read_patches, say_if_coarse
from .weights import load_pretrained, locate_weights

if TYPE_CHECKING:
    from .image import SectionImage
    from .section import Section

SHUFFLENET = "shufflenet"  # HGGEP's own encoder
CPU_PATCHES = 16  # looked at once by each thread: the maps of more do not fit a core's cache, and take twice the time
GPU_READERS = 8  # threads that read for a GPU; a CPU has one, for encoding takes longer than reading

View = tuple[int, bool]  # quarter turns, and whether mirrored first
PLAIN: tuple[View, ...] = ((0, False),)
DIHEDRAL: tuple[View, ...] = tuple((turns, flip) for flip in (False, True) for turns in range(4))

Features = Callable[[np.ndarray], Tensor]  # indices of spots -> (n, views, ...)


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


def kept_features(section: "Section", key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
    """Return features of a section that are kept under a key, or compute and keep them."""
    return _memory.get(section, key, compute)


def kept_colours(section: "Section", fields: tuple[float, ...], patch_size: int) -> np.ndarray:
    """Return the statistics of colour and texture of a section's spots, (n, fields, 90); NaN where not yet known.

    What is found out later goes into it.
    """
    shape = len(section.xy), len(fields), N_STATISTICS
    return kept_features(section, ("colour", fields, patch_size), lambda: torch.full(shape, torch.nan)).numpy()


def read_ahead(
    image: "SectionImage",
    xy: np.ndarray,
    fields: Sequence[float],
    patch_size: int,
    *,
    batch_size: int,
    device: torch.device,
) -> Generator[Tensor, None, None]:
    """Yield the patches around spots, uint8 (batch_size, fields, 3, S, S) on the device, while the next are read.

    Close it before the image: it reads from that until then. For the parameters see `describe_spots`.
    """
    readers = 1 if device.type == "cpu" else min(GPU_READERS, os.cpu_count() or 1)

    def read(start: int) -> Tensor:
        patches = torch.from_numpy(read_patches(image, xy[start : start + batch_size], fields, patch_size))
        return patches.pin_memory() if device.type == "cuda" else patches

    with ThreadPoolExecutor(readers, "patches") as pool:
        ahead: deque[Future[Tensor]] = deque()
        for start in range(0, len(xy), batch_size):
            ahead.append(pool.submit(read, start))
            if len(ahead) > readers:
                yield ahead.popleft().result().to(device, non_blocking=True)
        while ahead:
            yield ahead.popleft().result().to(device, non_blocking=True)


def describe_spots(
    image: "SectionImage",
    xy: np.ndarray,
    fields: Sequence[float],
    patch_size: int,
    describe: Sequence[Callable[[Tensor], Tensor]],
    *,
    batch_size: int,
    device: torch.device,
) -> list[Tensor]:
    """Read the patches around spots once, and apply each function to them, a batch of spots at a time.

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
        Spots whose patches are given to the functions at once.
    device
        Where the functions find the patches.

    Returns
    -------
    What each function makes of all spots, (n, ...).
    """
    described: list[list[Tensor]] = [[] for _ in describe]
    with closing(read_ahead(image, xy, fields, patch_size, batch_size=batch_size, device=device)) as batches:
        for patches in batches:
            for parts, function in zip(described, describe, strict=True):
                parts.append(function(patches))
    return [torch.cat(parts) for parts in described]


def encode_spots(
    image: "SectionImage",
    xy: np.ndarray,
    fields: tuple[float, ...],
    patch_size: int,
    encode: Callable[[Tensor], Tensor],
    *,
    views: tuple[View, ...],
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Read and encode the patches around spots, in all `views`: (n, views, ...). See `describe_spots`."""
    in_views = [of_views(encode, views)]
    return describe_spots(image, xy, fields, patch_size, in_views, batch_size=batch_size, device=device)[0]


def of_views(encode: Callable[[Tensor], Tensor], views: tuple[View, ...]) -> Callable[[Tensor], Tensor]:
    """Return a function that applies one to all patches in one view after the other, (n, ...) to (n, views, ...)."""
    return lambda patches: torch.stack([encode(view) for view in turned(patches, views)], dim=1)


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
) -> Iterator[Features]:
    """Give the features of a section's spots by a frozen encoder, (n, views, fields, D).

    Features are kept as long as the section is in use, for another fit to it or a prediction of it.

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
    colours = config.linear and config.cross_fit  # the linear path will ask for them
    if colours:
        describe.append(of_patches(colour_and_texture))

    with ExitStack() as stack:
        image = cache(lambda: stack.enter_context(section.open_image()))  # not opened for what is kept

        def features(spots: np.ndarray) -> Tensor:
            def compute() -> Tensor:
                with torch.no_grad():
                    found, *seen = describe_spots(
                        image(),
                        section.xy[spots],
                        fields,
                        config.patch_size,
                        describe,
                        batch_size=batch_size,
                        device=device,
                    )
                if not found.isfinite().all():
                    raise ValueError(f"section {section.name!r}: the encoder gives features that are NaN or infinite")
                for of_spots in seen:
                    kept_colours(section, fields, config.patch_size)[spots] = of_spots.cpu().numpy()
                return found.cpu()

            return kept_features(section, (name, fields, config.patch_size, views, spots.tobytes()), compute).to(device)

        yield features
