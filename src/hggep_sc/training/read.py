"""Sections read for training: their counts, and patches or what a frozen encoder makes of them."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..config import Config
from ..features.frozen import feature_shape, features_of, is_frozen, kept_colours, stored_features
from ..features.patches import read_patches, say_if_coarse
from ..nn import Encoder, HGGEPNetwork, PublishedNetwork
from ..prediction.chunks import described_together
from ..prediction.linear import linear_features
from ..runtime.progress import of_spots, over_sections
from ..section.expression import ExpressionScale
from ..storage.arrays import array_store
from .checkpoint import stores_of_features
from .data import SectionData, section_data

if TYPE_CHECKING:
    from ..section import Section


@contextmanager
def read_sections(
    sections: Sequence["Section"],
    genes: Sequence[str],
    scale: ExpressionScale,
    config: Config,
    *,
    encoder: Encoder | str | None,
    fields: Sequence[tuple[float, ...]],
    held_out: Sequence[np.ndarray] | None,
    device: torch.device,
    checkpoint_dir: Path | None,
    resume: bool,
    progress: bool,
) -> Iterator[list[SectionData]]:
    """Give what training holds of each section; see `train` for the parameters.

    `fields` are the fields of view of each section, px of its image. What HGGEP's own encoder makes of them, frozen, is
    kept in `checkpoint_dir`.
    """
    network_class = PublishedNetwork if encoder is None else HGGEPNetwork
    masks: Sequence[np.ndarray | None] = held_out if held_out is not None else [None for _ in sections]
    unseen = np.empty(0, dtype=np.uint8)  # counts are checked before images are read, which takes longer
    data = [
        section_data(section, genes, scale, unseen, network_class.positions(section), mask)
        for section, mask in zip(sections, masks, strict=True)
    ]
    if is_frozen(encoder, config):
        assert encoder is not None  # the released network is not frozen
        reading = _described(sections, fields, encoder, config, device, checkpoint_dir, resume, progress)
    else:
        reading = _patches(sections, fields, config, network_class, progress)
    with reading as stores:
        data = [replace(part, seen=seen) for part, seen in zip(data, stores, strict=True)]
        if config.linear and config.cross_fit and is_frozen(encoder, config):
            looks = not isinstance(encoder, str)
            data = [
                replace(part, linear=linear_features(section, part.seen.mean(axis=1), views, config, looks=looks))
                for part, section, views in zip(data, sections, fields, strict=True)
            ]
        yield data


@contextmanager
def _patches(
    sections: Sequence["Section"],
    fields: Sequence[tuple[float, ...]],
    config: Config,
    network_class: type[HGGEPNetwork] | type[PublishedNetwork],
    progress: bool,
) -> Iterator[list[np.ndarray]]:
    """Give the patches of each section, (n, fields, 3, S, S)."""
    size = config.patch_size
    shapes = [(len(s.xy), len(f), 3, size, size) for s, f in zip(sections, fields, strict=True)]
    with array_store(shapes, np.uint8) as stores:
        watched = over_sections(sections, "images", progress)
        for section, views, store in zip(watched, fields, stores, strict=True):
            say_if_coarse(section, views, size)
            with section.open_image() as image:
                read_patches(image, network_class.centres(section.xy), views, size, out=store)
        yield stores


@contextmanager
def _described(
    sections: Sequence["Section"],
    fields: Sequence[tuple[float, ...]],
    encoder: Encoder | str,
    config: Config,
    device: torch.device,
    checkpoint_dir: Path | None,
    resume: bool,
    progress: bool,
) -> Iterator[list[np.ndarray]]:
    """Give what a frozen encoder makes of each section, (n, views, fields, D)."""
    held = [feature_shape(section, encoder, config) for section in sections]
    if len({shape[1:] for shape in held}) > 1:
        lengths = ", ".join(f"{s.name!r}: {shape[-1]}" for s, shape in zip(sections, held, strict=True))
        raise ValueError(f"obsm[{encoder!r}] has embeddings of different lengths: {lengths}")
    looks = not isinstance(encoder, str)
    with array_store(held, np.float32) as stores:
        with (
            stores_of_features(checkpoint_dir, resume, sections, fields, encoder, config) as kept,
            of_spots(sections, "images", progress) as bar,
        ):
            for section, views, store, known in zip(sections, fields, stores, kept, strict=True):
                asked = looks and config.linear and config.cross_fit
                colours = kept_colours(section, views, config.patch_size) if asked else None
                features = features_of(section, encoder, views, config, device=device, colours=colours)
                parts = described_together(section.xy, config.chunk_spots)
                with closing(stored_features(features, known, device, colours)(parts)) as arriving:
                    for spots, found in zip(parts, arriving, strict=True):
                        store[spots] = found.cpu().numpy()
                        bar.update(len(spots))
        yield stores
