"""Features of spots: of patches by a frozen encoder, kept for another use, or embeddings that the table holds."""

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count
from os import SEEK_END
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from threading import Lock
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np
import torch
from torch import Tensor, nn

from .._settings import settings
from ..config import Config
from ..nn import Encoder, ModuleEncoder, shufflenet_encoder
from ..storage.checkpoint import Parts
from .colours import N_STATISTICS, colour_and_texture
from .describe import DIHEDRAL, PLAIN, View, describe_parts, of_patches, of_views
from .patches import BATCH_SPOTS, say_if_coarse
from .weights import load_pretrained, locate_weights

if TYPE_CHECKING:
    from ..section import Section

SHUFFLENET = "shufflenet"  # HGGEP's own encoder
SPOOLED = 2**25  # bytes of features above which they wait on disk

Features = Callable[[Sequence[np.ndarray]], Generator[Tensor, None, None]]  # parts of the spots -> (n, views, ...) each


class _Memory:
    """Features of sections that are still in use, the latest, up to `settings.feature_memory` bytes."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Section, dict[Hashable, tuple[int, Tensor]]] = WeakKeyDictionary()
        self._uses = count()  # when each was last used
        self._lock = Lock()  # folds may be run by threads

    def recall(self, section: "Section", key: Hashable) -> Tensor | None:
        """Return what is kept under a key; None for nothing."""
        with self._lock:
            of_section = self._kept.get(section, {})
            if key not in of_section:
                return None
            of_section[key] = next(self._uses), of_section[key][1]
            return of_section[key][1]

    def keep(self, section: "Section", key: Hashable, features: Tensor) -> None:
        """Keep features of a section, unless no other call will see it."""
        if is_used_once(section):
            return
        with self._lock:
            self._kept.setdefault(section, {})[key] = next(self._uses), features
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
    """Whether no other call will see a section, so that nothing of it is kept."""
    return section in _used_once


def kept_colours(section: "Section", fields: tuple[float, ...], patch_size: int) -> np.ndarray:
    """Return the statistics of colour and texture of a section's spots, (n, fields, 90); NaN where not yet known.

    What is found out later goes into it.
    """
    key = "colour", fields, patch_size
    if (kept := _memory.recall(section, key)) is None:
        kept = torch.full((len(section.xy), len(fields), N_STATISTICS), torch.nan)
        _memory.keep(section, key, kept)
    return kept.numpy()


class Spool:
    """Features of a section's spots, float32, that wait to be read back in parts: where they are many, on disk."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(SPOOLED)  # noqa: SIM115  # closed by __exit__
        self._parts: list[tuple[np.ndarray, tuple[int, ...], int]] = []  # with the place in the file

    def add(self, spots: np.ndarray, features: np.ndarray) -> None:
        """Put away the features of some spots.

        Raises
        ------
        OSError
            If there is no room for them on disk.
        """
        self._parts.append((spots, features.shape, self._file.seek(0, SEEK_END)))
        try:
            self._file.write(features.tobytes())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: the features of a large section wait in {gettempdir()}, "
                f"{features[0].nbytes / 1e3:.0f} kB a spot; set TMPDIR to a folder with room",
            ) from error

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the spots and features of each part, in the order of the spots, whatever that of adding."""
        for spots, shape, place in sorted(self._parts, key=lambda part: int(part[0][0])):
            self._file.seek(place)
            yield spots, np.frombuffer(self._file.read(4 * math.prod(shape)), dtype=np.float32).reshape(shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


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


def require_length(section: "Section", slot: str, wanted: int) -> None:
    """Refuse a section whose embeddings are of another length than those that a model learnt from.

    Raises
    ------
    ValueError
        If they are.
    """
    if (found := section.embeddings(slot).shape[1]) != wanted:
        raise ValueError(
            f"section {section.name!r}: obsm[{slot!r}] has {found} columns; the model learnt from {wanted}"
        )


def features_of(
    section: "Section",
    encoder: Encoder | str,
    fields: tuple[float, ...],
    config: Config,
    *,
    device: torch.device,
    views: tuple[View, ...] | None = None,
    batch_size: int = BATCH_SPOTS,
    colours: np.ndarray | None = None,
) -> Features:
    """Return what gives the features of a section's spots by a frozen encoder, (n, views, fields, D).

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
        As in `describe_parts`.
    colours
        (n_spots, fields, 90), where statistics of colour and texture go; None where nothing will ask for them.
    """
    if isinstance(encoder, str):
        embeddings = torch.from_numpy(section.embeddings(encoder))
        return lambda parts: (embeddings[spots][:, None, None].to(device) for spots in parts)
    say_if_coarse(section, fields, config.patch_size)
    encoder.to(device).eval()
    views = views or views_of(encoder, config)
    # a user's module has more to it than its hash tells: its features are its own
    name = encoder.id, ref(encoder.module) if isinstance(encoder, ModuleEncoder) else None

    describe = [of_views(of_patches(encoder.for_inference()), views)]
    if colours is not None:
        describe.append(of_patches(colour_and_texture))
    size = 4 * len(section.xy) * len(views) * len(fields) * sum(encoder.groups)

    def described(parts: Sequence[np.ndarray]) -> Generator[Tensor, None, None]:
        with section.open_image() as image:
            stream = describe_parts(
                image,
                [section.xy[spots] for spots in parts],
                fields,
                config.patch_size,
                describe,
                batch_size=batch_size,
                device=device,
                concurrently=not isinstance(encoder, ModuleEncoder),  # it may note things as it goes
            )
            with closing(stream):
                for spots, (found, *seen) in zip(parts, stream, strict=True):
                    if not found.isfinite().all():
                        raise ValueError(
                            f"section {section.name!r}: the encoder gives features that are NaN or infinite"
                        )
                    if colours is not None:
                        colours[spots] = seen[0].cpu().numpy()
                    yield found

    def features(parts: Sequence[np.ndarray]) -> Generator[Tensor, None, None]:
        keys = [(name, fields, config.patch_size, views, spots.tobytes()) for spots in parts]
        kept = [_memory.recall(section, key) for key in keys]
        with closing(described([spots for spots, there in zip(parts, kept, strict=True) if there is None])) as computed:
            for key, there in zip(keys, kept, strict=True):
                found = next(computed) if there is None else there
                if there is None and size <= settings.feature_memory:
                    _memory.keep(section, key, found.cpu())
                yield found.to(device)

    return features


def stored_features(features: Features, store: Parts, device: torch.device, colours: np.ndarray | None) -> Features:
    """Return features that are read from a store where it has them, and go into it where they are computed.

    Parameters
    ----------
    features
        Of parts of the spots, (n, views, ...) each.
    store
        Where they are kept.
    device
        Where they are to be.
    colours
        (n_spots, fields, 90), which `features` fills in, and which are kept with them; None where nothing asks for it.
    """

    def through(parts: Sequence[np.ndarray]) -> Generator[Tensor, None, None]:
        known = [spots in store for spots in parts]
        with closing(features([spots for spots, there in zip(parts, known, strict=True) if not there])) as computed:
            for spots, there in zip(parts, known, strict=True):
                if not there:
                    found = next(computed)
                    beside = {} if colours is None else {"colours": torch.from_numpy(colours[spots])}
                    store.write(spots, features=found, **beside)
                    yield found
                    continue
                part = store.read(spots)
                if colours is not None:
                    colours[spots] = part["colours"]
                yield part["features"].to(device)

    return through
