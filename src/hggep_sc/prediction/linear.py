"""The linear path beside the network: a low-rank ridge on features that are standardised within each section."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from ..features.colours import colour_and_texture
from ..features.describe import describe_parts, of_patches
from ..features.frozen import Spool, kept_colours
from ..features.moments import Moments, standardise
from ..features.patches import BATCH_SPOTS

if TYPE_CHECKING:
    from ..config import Config
    from ..section import Section


@dataclass(frozen=True, eq=False)
class LinearPath:
    """Expression around the mean of the training sections' means, linear in features.

    Attributes
    ----------
    coefficients
        (n_features, k).
    components
        (k, n_genes) principal components of the targets.
    alpha
        The penalty.
    """

    coefficients: np.ndarray
    components: np.ndarray
    alpha: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n_spots, n_features) of all spots of a section to (n_spots, n_genes), around the mean."""
        return features @ self.coefficients @ self.components

    def scaled(self, factor: float) -> "LinearPath":
        """Return the path whose prediction is so many times this one's."""
        return LinearPath((factor * self.coefficients).astype(np.float32), self.components, self.alpha)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything, for a model's folder."""
        return {
            "coefficients": torch.from_numpy(self.coefficients),
            "components": torch.from_numpy(self.components),
            "alpha": torch.tensor(self.alpha, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from `tensors`."""
        return cls(tensors["coefficients"].numpy(), tensors["components"].numpy(), float(tensors["alpha"]))


def linear_features(
    section: "Section", encoded: np.ndarray, fields: tuple[float, ...], config: "Config", *, looks: bool
) -> np.ndarray:
    """Return what the linear path sees of a section's spots, (n_spots, n_features).

    Parameters
    ----------
    section
        Where the spots and the image are.
    encoded
        (n_spots, fields, D) the encoder's features, the mean over views.
    fields
        Sides of the fields of view, px of the image's finest level.
    config
        Size of the patches.
    looks
        Whether statistics of colour and texture go beside them: not with embeddings, for which no image is read.

    Returns
    -------
    Every column has mean 0 over the section; the columns of either kind have together variance 1.
    """
    blocks = [encoded.reshape(len(encoded), -1)]
    if looks:
        colours = kept_colours(section, fields, config.patch_size)
        fill_in_colours(colours, section, fields, config.patch_size)
        blocks.insert(0, colours.reshape(len(colours), -1))
    return np.hstack([standardise(block) for block in blocks])


def add_linear(
    expression: np.ndarray, path: LinearPath, encoded: Spool, moments: Moments, colours: np.ndarray | None
) -> None:
    """Add what a linear path predicts from `linear_features`, which are never held for all spots of a section.

    Parameters
    ----------
    expression
        (n_spots, n_genes), written to.
    path
        The linear path.
    encoded
        The encoder's features of all spots, the mean over views, (n, fields * D) of each part.
    moments
        Theirs over all spots.
    colours
        (n_spots, fields, 90) statistics of colour and texture; None with embeddings.
    """
    beside = [] if colours is None else [colours.reshape(len(colours), -1)]
    known = [(block, Moments.of(block)) for block in beside]
    for spots, part in encoded:
        blocks = [of_block.standardised(block[spots]) for block, of_block in known]
        expression[spots] += path.predict(np.hstack([*blocks, moments.standardised(part)]))


def fill_in_colours(colours: np.ndarray, section: "Section", fields: tuple[float, ...], patch_size: int) -> None:
    """Fill in the statistics of colour and texture (n_spots, fields, 90) that are not yet known."""
    missing = np.flatnonzero(np.isnan(colours[:, 0, 0]))
    if len(missing):
        with section.open_image() as image:
            ((found,),) = describe_parts(
                image,
                [section.xy[missing]],
                fields,
                patch_size,
                [of_patches(colour_and_texture)],
                batch_size=BATCH_SPOTS,
                device=torch.device("cpu"),
            )
        colours[missing] = found.numpy()
