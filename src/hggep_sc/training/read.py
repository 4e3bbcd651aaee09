"""Sections read for training: their counts, and patches or what a frozen encoder makes of them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..config import Config
from ..errors import InputError
from ..features.encoders import Eye, ObsmEncoder, beside_colours, is_frozen
from ..features.patches import read_patches, say_if_coarse
from ..features.store import Described, describe_section
from ..nn import HGGEPNetwork, PublishedNetwork
from ..prediction.linear import LinearFeatures
from ..runtime.progress import of_spots, over_sections
from ..section.expression import ExpressionScale
from ..storage.arrays import large_array
from .checkpoint import stores_of_features
from .data import SectionData, section_data
from .run import Run

if TYPE_CHECKING:
    from ..section import Section


def read_sections(
    sections: Sequence["Section"],
    genes: Sequence[str],
    scale: ExpressionScale,
    config: Config,
    *,
    encoder: Eye | None,
    fields: Sequence[tuple[float, ...]],
    held_out: Sequence[np.ndarray] | None,
    run: Run,
) -> list[SectionData]:
    """Return what training holds of each section; see `train` for the parameters.

    `fields` are the fields of view of each section, px of its image. What HGGEP's own encoder makes of them, frozen, is
    kept in the folder of checkpoints.
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
        described = _described(sections, fields, encoder, config, run)
        for part, found in zip(data, described, strict=True):
            assert found.encoded is not None  # there is an encoder
            part.seen = found.encoded
            if config.linear and config.cross_fit:
                part.linear = LinearFeatures(found)
        return data
    for part, section, views in zip(data, over_sections(sections, "images", run.progress), fields, strict=True):
        part.seen = held_patches(section, network_class.centres(section.xy), views, config.patch_size)
    return data


def held_patches(section: "Section", centres: np.ndarray, fields: Sequence[float], size: int) -> np.ndarray:
    """Read the patches of a section around (n, 2) centres, uint8 (n, fields, 3, size, size), in memory or on disk."""
    say_if_coarse(section, fields, size)
    patches = large_array((len(centres), len(fields), 3, size, size), np.uint8)
    with section.open_image() as image:
        return read_patches(image, centres, fields, size, out=patches)


def _described(
    sections: Sequence["Section"],
    fields: Sequence[tuple[float, ...]],
    encoder: Eye,
    config: Config,
    run: Run,
) -> Iterator[Described]:
    """Yield what a frozen encoder makes of each section."""
    if isinstance(encoder, ObsmEncoder):
        lengths = {section.name: section.embeddings(encoder.slot).shape[1] for section in sections}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
            slot = sections[0].embeddings_slot(encoder.slot)
            raise InputError(f"{slot} has embeddings of different lengths: {listed}")
    folder = run.checkpoint_dir if run.devices.number == 1 else None  # each process describes all by itself
    with (
        stores_of_features(folder, run.resume, sections, fields, encoder, config) as kept,
        of_spots(sections, "images", run.progress) as bar,
    ):
        for section, views, known in zip(sections, fields, kept, strict=True):
            yield describe_section(
                section,
                encoder,
                views,
                config.patch_size,
                colours=config.linear and config.cross_fit and beside_colours(encoder),
                device=run.devices.own,
                kept=known,
                advance=bar.update,
            )
