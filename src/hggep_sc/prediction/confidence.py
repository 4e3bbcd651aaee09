"""How far a prediction may be trusted, by what `training.confidence` learnt."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import UnlikeTrainingWarning
from ..features.patches import read_patches
from ..nn import OUTLIER
from ..runtime.messages import warn
from ..section.expression import ExpressionScale

if TYPE_CHECKING:
    from ..section import Section

UNLIKE = 1.2  # times the largest distance among training sections: a section further off is warned of
NEAR = 0.5  # standard deviations that a section may always be off
OTHER_STAIN = 1.5  # times as dense as the densest training section, or as thin as the thinnest
STAIN_SPOTS = 200  # that a section's stain is measured at


@dataclass(frozen=True, eq=False)
class Confidence:
    """What held-out training sections tell of a model.

    Attributes
    ----------
    reliability
        (n_genes,) mean PCC of each gene over the training sections, each predicted by a network that never saw it.
    components, spread, coefficients
        (k, n_genes), (k,) and (2 k + 1,): the variance of a spot's error beyond counting noise is linear in the
        prediction's scores z on these components, scaled to unit spread, and their squares: (1, z, z^2) coefficients.
    floor
        Least variance that is told: a twentieth of the left-out spots had a smaller one by this.
    feature_mean, feature_std
        (fields, D) of the training spots' features.
    distance
        Largest distance of a training section's mean feature from those of the others (of other groups), in standard
        deviations; NaN for one section.
    stain
        (n_sections, 3) mean optical density of red, green and blue in the patches; empty for embeddings.
    """

    reliability: np.ndarray
    components: np.ndarray
    spread: np.ndarray
    coefficients: np.ndarray
    floor: np.ndarray
    feature_mean: np.ndarray
    feature_std: np.ndarray
    distance: np.ndarray
    stain: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):  # in the order that a model's folder holds them in: BLAS rounds another otherwise
            object.__setattr__(self, field.name, np.asarray(getattr(self, field.name), order="C"))

    def uncertainty(self, expression: np.ndarray, scale: ExpressionScale) -> np.ndarray:
        """Return the error expected of each spot beyond counting noise, (n_spots,) float32.

        It is a root mean square over genes, in natural log units, of a section's centred expression.

        Parameters
        ----------
        expression
            (n_spots, n_genes) prediction of one section.
        scale
            Its scale.
        """
        scores, mean = expression @ self.components.T, expression.mean(0) @ self.components.T
        z = (scores - mean) * scale.log_unit / self.spread  # of the centred expression, which is not held besides
        design = np.hstack([np.ones((len(z), 1)), z, z**2])
        return np.sqrt(np.maximum(design @ self.coefficients, self.floor)).astype(np.float32)

    def say_if_unlike(self, name: str, features: np.ndarray | None, stain: np.ndarray | None) -> None:
        """Warn where a section looks unlike the training sections.

        Parameters
        ----------
        name
            The section's.
        features
            (fields, D) mean of its features.
        stain
            (3,) its mean optical density; None where there is no image to look at.
        """
        if features is not None:
            off, limit = self.distance_of(features), max(UNLIKE * np.nan_to_num(self.distance), NEAR)
            if off > limit:
                warn(
                    f"section {name!r} looks unlike the training sections: its features are {off:.2f} standard "
                    f"deviations off on average, where up to {limit:.2f} is usual among them; it may be predicted far "
                    "worse than the reliability in var tells",
                    UnlikeTrainingWarning,
                )
        if stain is not None and len(self.stain):
            ratio = np.maximum(stain / self.stain.max(0).clip(1e-3), self.stain.min(0).clip(1e-3) / stain.clip(1e-3))
            if ratio.max() > OTHER_STAIN:
                warn(
                    f"section {name!r} is stained or scanned unlike the training sections: mean optical density of "
                    f"red, green, blue {_listed(stain)}; theirs from {_listed(self.stain.min(0))} to "
                    f"{_listed(self.stain.max(0))}",
                    UnlikeTrainingWarning,
                )

    def distance_of(self, features: np.ndarray) -> float:
        """Return how far a section's mean features (fields, D) are from the training spots', in standard deviations."""
        return distance(features, self.feature_mean, self.feature_std)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything, for a model's folder."""
        return {f.name: torch.from_numpy(np.asarray(getattr(self, f.name), order="C")) for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild from `tensors`."""
        return cls(**{f.name: tensors[f.name].numpy() for f in fields(cls)})


def optical_density(section: "Section", field: float, patch_size: int) -> np.ndarray:
    """Return the mean optical density of red, green and blue around up to 200 spots of a section, (3,).

    Parameters
    ----------
    section
        Where the spots and the image are.
    field
        Side of the field of view, px of the image's finest level.
    patch_size
        Side of the patches that it is read as, px.
    """
    spots = np.unique(np.linspace(0, len(section.xy) - 1, STAIN_SPOTS).round().astype(int))
    with section.open_image() as image:
        patches = read_patches(image, section.xy[spots], (field,), patch_size)
    return -np.log((patches.astype(np.float32) + 1) / 256).mean((0, 1, 3, 4))


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def distance(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """Return how far features are off on average, in standard deviations."""
    return float(np.sqrt((((features - mean) / std).clip(-OUTLIER, OUTLIER) ** 2).mean()))
