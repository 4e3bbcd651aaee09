"""A section described once: features of all of its spots, kept for whoever asks next."""

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np
import torch
from torch import Tensor

from .._settings import settings
from ..errors import InputError
from ..nn import Encoder, ModuleEncoder
from ..storage.arrays import large_array, let_go
from ..storage.checkpoint import Parts
from .colours import colour_maps, colour_statistics
from .describe import View, describe_parts, of_patches, of_views
from .encoders import Eye, ObsmEncoder
from .patches import BATCH_SPOTS, say_if_coarse
from .slide import SIGHT, MapsOf, describe_windows, parts_of

if TYPE_CHECKING:
    from ..image import SectionImage
    from ..section import Section

ENCODED, COLOURS = "encoded", "colours"  # names of a section's features

Streams = Callable[[Sequence[np.ndarray]], Generator[dict[str, Tensor], None, None]]  # parts of the spots to features


@dataclass(frozen=True, eq=False)
class Described:
    """What is seen of the spots of a section.

    Attributes
    ----------
    encoded
        float32 (n, fields, D), an encoder's features; (n, 1, d) embeddings; None without an encoder.
    colours
        float32 (n, fields, 48), statistics of colour and texture; None where nobody asked for them.
    """

    encoded: np.ndarray | None
    colours: np.ndarray | None


class _Memory:
    """Features of sections that are still in use, the latest, up to `settings.feature_memory` bytes."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Section, dict[Hashable, tuple[int, np.ndarray]]] = WeakKeyDictionary()
        self._uses = count()  # when each was last used
        self._lock = Lock()  # folds may be run by threads

    def recall(self, section: "Section", key: Hashable) -> np.ndarray | None:
        """Return what is kept under a key; None for nothing."""
        with self._lock:
            of_section = self._kept.get(section, {})
            if key not in of_section:
                return None
            of_section[key] = next(self._uses), of_section[key][1]
            return of_section[key][1]

    def keep(self, section: "Section", found: Mapping[Hashable, np.ndarray]) -> None:
        """Keep features of a section, unless they are more than may be kept, or no other call will see it."""
        if section in _used_once or sum(array.nbytes for array in found.values()) > settings.feature_memory:
            return
        with self._lock:
            of_section = self._kept.setdefault(section, {})
            for key, array in found.items():
                of_section[key] = next(self._uses), array
            everything = [(use, part, name) for part in self._kept.values() for name, (use, _) in part.items()]
            total = sum(part[name][1].nbytes for _, part, name in everything)
            for _, part, name in sorted(everything, key=lambda entry: entry[0]):
                if total <= settings.feature_memory:
                    break
                total -= part.pop(name)[1].nbytes


_memory = _Memory()
_used_once: "WeakSet[Section]" = WeakSet()


def use_once(sections: "Iterable[Section]") -> None:
    """Keep no features of sections that no other call will see."""
    for section in sections:
        _used_once.add(section)


def is_used_once(section: "Section") -> bool:
    """Whether `use_once` was told of a section."""
    return section in _used_once


def describe_section(
    section: "Section",
    encoder: Eye | None,
    fields: tuple[float, ...],
    patch_size: int,
    *,
    colours: bool = False,
    device: torch.device,
    batch_size: int = BATCH_SPOTS,
    kept: Parts | None = None,
    advance: Callable[[int], object] | None = None,
) -> Described:
    """Return the features of a section's spots by an encoder that does not learn.

    An encoder that gives maps sees the slide (`describe_windows`), a module of the user's each patch by itself. What
    was found of the section before is not computed again, as long as it is in use and `settings.feature_memory` holds
    it.

    Parameters
    ----------
    section
        Where the spots and the image are.
    encoder
        A frozen encoder; embeddings, which have one field; None for colours alone.
    fields
        Sides of the fields of view, px of the image's finest level.
    patch_size
        Their sides as they are read, px.
    colours
        Whether statistics of colour and texture are wanted; not beside embeddings.
    device, batch_size
        As in `describe_windows`.
    kept
        Parts of an earlier call, and where parts are put away, so that a killed call loses one.
    advance
        Told how many more spots are done.

    Raises
    ------
    ValueError
        If the encoder gives features that are NaN or infinite.
    OSError
        If there is no room on disk for features that do not fit into memory.
    """
    if isinstance(encoder, ObsmEncoder):
        if advance is not None:
            advance(len(section.xy))
        return Described(section.embeddings(encoder.slot)[:, None], None)
    say_if_coarse(section, fields, patch_size)
    sight = SIGHT if encoder is None or encoder.sight is None else encoder.sight
    definition = fields, patch_size, sight, *settings.of_features().values()
    # a user's module has more to it than its hash tells: its features are its own
    name = (encoder and encoder.id), ref(encoder.module) if isinstance(encoder, ModuleEncoder) else None
    keys: dict[str, Hashable] = {} if encoder is None else {ENCODED: (name, definition)}
    keys |= {COLOURS: (COLOURS, definition)} if colours else {}
    known: dict[str, np.ndarray] = {}
    if kept is None or not kept.keeps:  # parts in a folder hold all: a later call does not know what this process does
        recalled = ((what, _memory.recall(section, key)) for what, key in keys.items())
        known = {what: array for what, array in recalled if array is not None}
    if len(known) == len(keys):
        if advance is not None:
            advance(len(section.xy))
    else:
        see = partial(
            _seen,
            section,
            encoder=None if ENCODED in known else encoder,
            fields=fields,
            patch_size=patch_size,
            colours=colours and COLOURS not in known,
            device=device,
            batch_size=batch_size,
        )
        found = gathered(parts_of(section.xy, fields, patch_size, sight), see, kept, advance)
        _memory.keep(section, {keys[what]: array for what, array in found.items()})
        known |= found
    return Described(known.get(ENCODED), known.get(COLOURS))


def require_length(section: "Section", slot: str, wanted: int) -> None:
    """Refuse a section whose embeddings are of another length than those that a model learnt from.

    Raises
    ------
    ValueError
        If they are.
    """
    if (found := section.embeddings(slot).shape[1]) != wanted:
        where = f"section {section.name!r}: {section.embeddings_slot(slot)}"
        raise InputError(f"{where} has {found} columns; the model learnt from {wanted}")


def gathered(
    parts: Sequence[np.ndarray], see: Streams, kept: Parts | None, advance: Callable[[int], object] | None = None
) -> dict[str, np.ndarray]:
    """Put features of parts together, by name; they are read where they are kept, else computed and put away.

    Parameters
    ----------
    parts
        A partition of the spots.
    see
        Gives the features of each part that it is asked for.
    kept, advance
        As in `describe_section`.
    """
    kept, n, arrays = kept or Parts(None), sum(map(len, parts)), dict[str, np.ndarray]()
    there = [spots in kept for spots in parts]
    with closing(see([spots for spots, known in zip(parts, there, strict=True) if not known])) as computed:
        for spots, known in zip(parts, there, strict=True):
            found = kept.read(spots) if known else next(computed)
            if not known:
                kept.write(spots, **found)
            for name, values in found.items():
                if name not in arrays:
                    arrays[name] = large_array((n, *values.shape[1:]), np.float32)
                arrays[name][spots] = values.numpy()
                let_go(arrays[name])
            if advance is not None:
                advance(len(spots))
    return arrays


def describe_patches(
    section: "Section",
    encode: Callable[[Tensor], Tensor],
    centres: Callable[[np.ndarray], np.ndarray],
    fields: tuple[float, ...],
    patch_size: int,
    *,
    views: tuple[View, ...],
    device: torch.device,
    batch_size: int,
    kept: Parts | None,
    advance: Callable[[int], object] | None,
) -> np.ndarray:
    """Return what a network that learnt from pixels makes of each spot's patches, float32 (n, views, ...).

    Parameters
    ----------
    encode
        Takes (n, fields, 3, S, S).
    centres
        Takes coordinates of spots, and gives those that patches are centred on.
    views
        Turns and mirrorings in which each patch is seen.
    section, fields, patch_size, device, batch_size, kept, advance
        As in `describe_section`.
    """
    say_if_coarse(section, fields, patch_size)

    def see(parts: Sequence[np.ndarray]) -> Generator[dict[str, Tensor], None, None]:
        around = [centres(section.xy[spots]) for spots in parts]
        how: dict[str, Any] = {"batch_size": batch_size, "device": device}
        with (
            section.open_image() as image,
            closing(describe_parts(image, around, fields, patch_size, [of_views(encode, views)], **how)) as arriving,
        ):
            for (found,) in arriving:
                yield {ENCODED: found.float().cpu()}

    return gathered(parts_of(section.xy, fields, patch_size), see, kept, advance)[ENCODED]


def _seen(
    section: "Section",
    parts: Sequence[np.ndarray],
    *,
    encoder: Encoder | None,
    colours: bool,
    **how: Any,
) -> Generator[dict[str, Tensor], None, None]:
    """Compute the features of parts of the spots by each of the encoders side by side; `how` is that of `_seen_by`."""
    centres = [section.xy[spots] for spots in parts]
    with section.open_image() as image, ExitStack() as open_until_done:
        arriving = []
        for position, one in enumerate((None,) if encoder is None else encoder.members):
            arriving.append(_seen_by(one, section.name, image, centres, colours=colours and position == 0, **how))
            open_until_done.enter_context(closing(arriving[-1]))
        for found in zip(*arriving, strict=True):
            seen = {COLOURS: found[0][COLOURS]} if colours else {}
            if encoder is not None:
                seen[ENCODED] = torch.cat([of_one[ENCODED] for of_one in found], dim=-1)
            yield seen


def _seen_by(
    encoder: Encoder | None,
    name: str,
    image: "SectionImage",
    centres: Sequence[np.ndarray],
    *,
    fields: tuple[float, ...],
    patch_size: int,
    colours: bool,
    device: torch.device,
    batch_size: int,
) -> Generator[dict[str, Tensor], None, None]:
    """Compute the features of parts of the spots of the section `name`."""
    sight = SIGHT if encoder is None or encoder.sight is None else encoder.sight
    if encoder is not None:
        encoder.to(device).eval()
    with ExitStack() as open_until_done:
        maps_of: list[MapsOf] = [colour_maps] if colours else []
        patches: Generator[list[Tensor], None, None] | None = None
        if encoder is not None and encoder.sight is not None:
            maps_of.append(encoder.for_inference().maps)
        elif encoder is not None:
            patches = describe_parts(
                image,
                centres,
                fields,
                patch_size,
                [of_patches(encoder)],
                batch_size=batch_size,
                device=device,
                concurrently=False,  # it may note things as it goes
            )
            open_until_done.enter_context(closing(patches))
        windows = describe_windows(
            image, centres, fields, patch_size, maps_of, batch_size=batch_size, device=device, sight=sight
        )
        open_until_done.enter_context(closing(windows))
        for _ in centres:
            found = next(windows) if maps_of else []
            seen = {COLOURS: colour_statistics(found.pop(0))} if colours else {}
            if patches is not None:
                found = [next(patches)[0].float().cpu()]
            if found:
                (seen[ENCODED],) = found
                if not seen[ENCODED].isfinite().all():
                    raise ValueError(f"section {name!r}: the encoder gives features that are NaN or infinite")
            yield seen
