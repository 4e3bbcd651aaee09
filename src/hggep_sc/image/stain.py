"""Stain normalisation: the colours of a section brought to those of a reference, fitted to a sample of its pixels."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ImageError

Recolour = Callable[[np.ndarray], np.ndarray]  # (n, 3, h, w) uint8 to the same

LIGHT = 240.0  # what glass lets through of 255
FAINT = 0.15  # optical density in every channel below which a pixel holds too little stain to tell its colour
EXTREME = 1.0  # percentile of the angles that the two stains lie at
MOST = 99.0  # percentile of a stain's concentration that is brought to the reference's
LEAST_PX = 1000  # stained pixels below which nothing can be fitted
# haematoxylin and eosin of the reference (optical density of red, green, blue), and their concentrations
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
CONCENTRATIONS = np.array([1.9705, 1.0308])
# red, green and blue to the cones' answers, and their logarithms to l, alpha, beta (Ruderman et al. 1998)
CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
OPPONENT = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
# mean and standard deviation of stained pixels of the reference, in l, alpha, beta of 0..255
CENTRE, SPREAD = np.array([8.74108, -0.12440, 0.04450]), np.array([0.61354, 0.10990, 0.02860])


def macenko(sample: np.ndarray, name: str) -> Recolour:
    """Fit Macenko et al.'s normalisation ("A method for normalizing histology slides ...", ISBI 2009).

    The section's two stains are the extreme directions of its pixels' optical density, in the plane of most variance.
    Concentrations of these are scaled so that their 99th percentiles are the reference's, and the reference's stains
    put in their place: altogether a linear map of the optical density. The reference is that of the method's published
    code.

    Parameters
    ----------
    sample
        (n, 3) uint8 RGB of the section.
    name
        What messages call it.

    Raises
    ------
    ImageError
        If hardly a pixel is stained.
    """
    density = _stained(sample, name)
    _, axes = np.linalg.eigh(np.cov(density.T))
    plane = axes[:, 2:0:-1] * np.sign(axes[:, 2:0:-1].sum(axis=0))  # towards more stain
    angles = np.arctan2(*(density @ plane).T[::-1])
    ends = np.percentile(angles, [EXTREME, 100 - EXTREME])
    stains = np.column_stack([np.cos(ends), np.sin(ends)]) @ plane.T
    stains = stains[np.argsort(-stains[:, 0])]  # haematoxylin absorbs more of the red
    of_density = np.linalg.pinv(stains)  # density to concentrations
    highest = np.maximum(np.percentile(density @ of_density, MOST, axis=0), 1e-6)
    matrix = of_density @ np.diag(CONCENTRATIONS / highest) @ REFERENCE

    def recolour(pixels: np.ndarray) -> np.ndarray:
        changed = np.einsum("nchw,cd->ndhw", _DENSITY[pixels], matrix.astype(np.float32))
        return _bytes(LIGHT * np.exp(-changed))

    return recolour


def reinhard(sample: np.ndarray, name: str) -> Recolour:
    """Fit Reinhard et al.'s colour transfer ("Color transfer between images", IEEE CG&A 21, 2001).

    In Ruderman's l, alpha, beta, means and standard deviations of the stained pixels are brought to the reference's.
    These are the ones that HistomicsTK gives for sections of The Cancer Genome Atlas.

    Parameters
    ----------
    sample, name
        As in `macenko`.

    Raises
    ------
    ImageError
        If hardly a pixel is stained.
    """
    stained = LIGHT * np.exp(-_stained(sample, name))
    opponent = np.log(np.maximum(stained @ CONES.T, 1e-3)) @ OPPONENT.T
    scale = SPREAD / np.maximum(opponent.std(axis=0), 1e-6)
    into = (OPPONENT.T * scale @ np.linalg.inv(OPPONENT).T).astype(np.float32)
    shift = ((CENTRE - opponent.mean(axis=0) * scale) @ np.linalg.inv(OPPONENT).T).astype(np.float32)
    cones, back = CONES.astype(np.float32), np.linalg.inv(CONES).astype(np.float32)

    def recolour(pixels: np.ndarray) -> np.ndarray:
        answers = np.einsum("nchw,dc->ndhw", pixels.astype(np.float32), cones)
        changed = np.einsum("nchw,cd->ndhw", np.log(np.maximum(answers, 1e-3)), into) + shift[:, None, None]
        return _bytes(np.einsum("nchw,dc->ndhw", np.exp(changed), back))

    return recolour


METHODS: dict[str, Callable[[np.ndarray, str], Recolour]] = {"macenko": macenko, "reinhard": reinhard}

_DENSITY = np.maximum(np.log(LIGHT) - np.log(np.arange(256) + 1.0), 0).astype(np.float32)  # of each value of a pixel


def _stained(sample: ArrayLike, name: str) -> np.ndarray:
    """Optical density of the pixels that hold stain, (n, 3) float64."""
    density = _DENSITY[np.asarray(sample)].astype(np.float64)
    density = density[(density > FAINT).all(axis=1)]
    if len(density) < LEAST_PX:
        raise ImageError(
            f"image {name}: {len(density)} of {len(np.asarray(sample))} pixels around the spots are stained, too few "
            "to normalise the stain: leave config.stain out, or look whether the spots lie on tissue"
        )
    return density


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
