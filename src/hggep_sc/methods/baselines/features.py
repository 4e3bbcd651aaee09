"""What a ridge sees of a patch: statistics of colour and texture, and the maps of a pretrained trunk, pooled."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ...features.colours import N_STATISTICS, colour_and_texture
from ...features.describe import PLAIN, describe_parts, of_patches
from ...features.frozen import Features, feature_shape, features_of, stored_features
from ...features.moments import standardise
from ...features.patches import fields_of_view, say_if_coarse
from ...features.weights import load_pretrained, locate_weights
from ...nn import ModuleEncoder, ShuffleNetEncoder
from ...prediction.chunks import described_together
from ...runtime.random_state import own_random_state
from ...section import Section
from ...storage.checkpoint import Parts
from .config import BaselineConfig


class Trunk(ShuffleNetEncoder):
    """Stem (without max-pool, as in HGGEP) and stages 2 to 4 of ShuffleNetV2 x0.5, each stage averaged over its map."""

    @classmethod
    def pretrained(cls, weights: str | Path | None, seed: int) -> Self | None:
        """Return a trunk with pretrained weights, see `hggep_sc.tl.fit`; none for None: random ones teach nothing."""
        path = locate_weights(weights)
        if path is None:
            return None
        with own_random_state(seed):  # for entries that the file lacks
            trunk = cls()
        load_pretrained(trunk, path)
        return trunk.eval()

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> Self:
        """Rebuild a trunk from its state dict, without drawing weights."""
        with torch.device("meta"):
            trunk = cls()
        trunk.load_state_dict(state, assign=True)
        return trunk.eval()


def patch_features(
    section: Section,
    config: BaselineConfig,
    *,
    mpp: float | None,
    reduction: float = 1.0,
    trunk: Trunk | None,
    device: torch.device,
    batch_size: int,
    kept: Parts | None = None,
    advance: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Compute the features of every spot of a section, at all fields of view, standardised within the section.

    Parameters
    ----------
    section
        Where the spots and the image are; the counts are not looked at.
    config
        Size and fields of view of the patches.
    mpp
        Scale that patches are brought to, um per px; None where it is not known.
    trunk
        Pretrained trunk; None for colour and texture alone.
    device
        Where they are computed.
    batch_size
        Spots whose patches are in memory at once.
    kept
        Holds features of spots whose patches are not to be looked at again, and is given those of the others.
    advance
        Told how many more spots are done.

    Returns
    -------
    float32 (n_spots, n_features): 90 statistics of colour and texture and 336 of the trunk for each field of view.
    Every column has mean 0; the columns of either kind have together variance 1, so that both count alike.
    """
    fields = fields_of_view(config.shared, mpp, section.mpp, section.reduction / reduction)
    say_if_coarse(section, fields, config.patch_size)
    describe = [of_patches(colour_and_texture)]
    if trunk is not None:
        describe.append(of_patches(trunk.to(device).for_inference()))

    def described(parts: Sequence[np.ndarray]) -> Generator[Tensor, None, None]:
        centres = [section.xy[spots] for spots in parts]
        with section.open_image() as image:
            stream = describe_parts(
                image, centres, fields, config.patch_size, describe, batch_size=batch_size, device=device
            )
            with closing(stream):
                for blocks in stream:
                    yield torch.cat([block.flatten(1) for block in blocks], dim=1)

    n_colours, n_trunk = N_STATISTICS, 0 if trunk is None else sum(trunk.groups)
    features = _gathered(section, len(fields) * (n_colours + n_trunk), described, device, kept, advance)
    blocks = np.split(features, [len(fields) * n_colours], axis=1)
    return np.hstack([standardise(block) for block in blocks if block.shape[1]])


def encoded_features(
    section: Section,
    encoder: ModuleEncoder | str,
    config: BaselineConfig,
    *,
    mpp: float | None,
    reduction: float = 1.0,
    device: torch.device,
    batch_size: int,
    kept: Parts | None = None,
    advance: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Return the features of every spot by a module of the user's, or its embeddings, standardised within the section.

    Parameters
    ----------
    section, config, mpp, device, batch_size, kept, advance
        As in `patch_features`.
    encoder
        The module, which sees each patch once, as it lies; or the `obsm` slot of embeddings.

    Returns
    -------
    float32 (n_spots, n_features): those of all fields of view, one after another. Every column has mean 0; all have
    together variance 1.
    """
    shared = config.shared
    fields = fields_of_view(shared, mpp, section.mpp, section.reduction / reduction)
    n_fields, n_features = feature_shape(section, encoder, shared)[2:]
    found = features_of(section, encoder, fields, shared, device=device, views=PLAIN, batch_size=batch_size)
    return standardise(_gathered(section, n_fields * n_features, found, device, kept, advance))


def _gathered(
    section: Section,
    width: int,
    features: Features,
    device: torch.device,
    kept: Parts | None,
    advance: Callable[[int], object] | None,
) -> np.ndarray:
    """Return the features of all spots in one array, read back where they are kept."""
    gathered = np.empty((len(section.xy), width), dtype=np.float32)
    parts, through = described_together(section.xy, None), stored_features(features, kept or Parts(None), device, None)
    with torch.inference_mode(), closing(through(parts)) as arriving:
        for spots, found in zip(parts, arriving, strict=True):
            gathered[spots] = found.flatten(1).cpu()
            if advance is not None:
                advance(len(spots))
    return gathered
