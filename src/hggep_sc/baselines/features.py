"""What a ridge sees of a patch: statistics of colour and texture, and the maps of a pretrained trunk, pooled."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..nn import ShuffleNetEncoder
from ..patches import fields_of_view, read_patches, say_if_coarse
from ..section import Section
from ..weights import load_pretrained, locate_weights
from .config import BaselineConfig

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
LUMINANCE = np.array([0.2125, 0.7154, 0.0721], dtype=np.float32)  # of red, green and blue, as in skimage's rgb2gray
GRADIENT_SCALES = 4  # 1, 2, 4 and 8 px
PATTERN_SCALES = 2
PATTERN_POINTS = 8
CONSTANT = 1e-6  # relative spread below which a feature says nothing


class Trunk(ShuffleNetEncoder):
    """Stem (without max-pool, as in HGGEP) and stages 2 to 4 of ShuffleNetV2 x0.5, each stage averaged over its map."""

    @classmethod
    def pretrained(cls, weights: str | Path | None, seed: int) -> Self | None:
        """Return a trunk with pretrained weights, see `hggep_sc.tl.fit`; none for None: random ones teach nothing."""
        path = locate_weights(weights)
        if path is None:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # for entries that the file lacks
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

    def pooled(self, patches: np.ndarray) -> np.ndarray:
        """Patches in memory, uint8 (n, 3, S, S), to (n, 336)."""
        return self(torch.from_numpy(patches).to(self.pixel_mean.device)).cpu().numpy()


def patch_features(
    section: Section,
    config: BaselineConfig,
    *,
    mpp: float | None,
    trunk: Trunk | None,
    device: torch.device,
    batch_size: int,
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
        Where the trunk runs.
    batch_size
        Spots whose patches are in memory at once.

    Returns
    -------
    float32 (n_spots, n_features): 90 statistics of colour and texture and 336 of the trunk for each field of view.
    Every column has mean 0; the columns of either kind have together variance 1, so that both count alike.
    """
    fields = fields_of_view(config.shared, mpp, section.mpp)
    say_if_coarse(section, fields, config.patch_size)
    describe = [colour_and_texture] if trunk is None else [colour_and_texture, trunk.to(device).pooled]
    blocks = describe_patches(section, fields, config.patch_size, describe, batch_size)
    return np.hstack([standardise(block) for block in blocks])


def describe_patches(
    section: Section,
    fields: Sequence[float],
    patch_size: int,
    describe: Sequence[Callable[[np.ndarray], np.ndarray]],
    batch_size: int,
) -> list[np.ndarray]:
    """Read the patches of every spot, and apply each function to those of every field of view.

    Returns
    -------
    Per function its features of all fields side by side, (n_spots, fields * n).
    """
    batches: list[list[np.ndarray]] = [[] for _ in describe]
    with section.open_image() as image, torch.inference_mode():
        for start in range(0, len(section.xy), batch_size):
            patches = read_patches(image, section.xy[start : start + batch_size], fields, patch_size)
            views = [np.ascontiguousarray(patches[:, i]) for i in range(len(fields))]
            for block, features in zip(batches, describe, strict=True):
                block.append(np.hstack([features(view) for view in views]))
    return [np.concatenate(block) for block in batches]


def standardise(block: np.ndarray) -> np.ndarray:
    """Bring each column to mean 0 and variance 1 / n_columns; constant ones to 0."""
    block = block.astype(np.float64)
    spread = block.std(axis=0)
    spread[spread <= CONSTANT * np.abs(block).max(axis=0)] = np.inf
    return ((block - block.mean(axis=0)) / spread / np.sqrt(block.shape[1])).astype(np.float32)


def colour_and_texture(patches: np.ndarray) -> np.ndarray:
    """Compute statistics of colour and texture.

    Parameters
    ----------
    patches
        uint8 (n, 3, S, S), RGB.

    Returns
    -------
    float32 (n, 90): mean, standard deviation and seven quantiles of red, green, blue, haematoxylin, eosin and DAB
    (Ruifrok & Johnston 2001); mean and standard deviation of the gradient of luminance and haematoxylin, at four
    scales; shares of the uniform local binary patterns (Ojala et al. 2002) of the luminance, at two.
    """
    from skimage.color import rgb2hed

    rgb = patches.astype(np.float32) / 255
    stains = rgb2hed(rgb, channel_axis=1).astype(np.float32)
    channels = np.concatenate([rgb, stains], axis=1).reshape(len(patches), 6, -1)
    quantiles = np.moveaxis(np.quantile(channels, QUANTILES, axis=2), 0, 2)
    features = [channels.mean(2), channels.std(2), quantiles.reshape(len(patches), -1)]
    luminance = np.einsum("c,nchw->nhw", LUMINANCE, rgb)
    for maps in (luminance, stains[:, 0]):
        features += [_gradients(scaled) for scaled in _scales(maps, GRADIENT_SCALES)]
    features += [_binary_patterns(scaled) for scaled in _scales(luminance, PATTERN_SCALES)]
    return np.concatenate(features, axis=1, dtype=np.float32)


def _scales(maps: np.ndarray, n: int) -> list[np.ndarray]:
    """(n_patches, S, S) maps, and the same averaged over 2 x 2, 4 x 4, ... px."""
    from skimage.transform import downscale_local_mean

    scaled = [maps]
    for _ in range(n - 1):
        even = scaled[-1].shape[1] // 2 * 2
        scaled.append(downscale_local_mean(scaled[-1][:, :even, :even], (1, 2, 2)))
    return scaled


def _gradients(maps: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of the gradient's length, (n_patches, 2)."""
    length = np.hypot(*np.gradient(maps, axis=(1, 2)))
    return np.stack([length.mean((1, 2)), length.std((1, 2))], axis=1)


def _binary_patterns(maps: np.ndarray) -> np.ndarray:
    """Shares of the uniform local binary patterns, (n_patches, 10)."""
    from skimage.feature import local_binary_pattern

    bins = PATTERN_POINTS + 2
    codes = [local_binary_pattern(patch, PATTERN_POINTS, 1, "uniform") for patch in (255 * maps).astype(np.uint8)]
    return np.stack([np.bincount(code.astype(int).ravel(), minlength=bins) / code.size for code in codes])
