"""Slides drawn with two dyes on glass, where the tissue is known."""

import numpy as np
import pytest
from scipy import ndimage

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.33])  # optical density of R, G, B
GLASS = np.array([240.0, 238.0, 241.0])
MPP = 4.0


@pytest.fixture(scope="session")
def slide():
    """2.4 x 3.2 mm with a disc of tissue of 0.8 mm: image as float, and where the tissue is."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:600, :800]
    tissue = np.hypot(x - 400, y - 300) < 200
    nuclei = 4 * ndimage.gaussian_filter(rng.random(tissue.shape) < 0.08, 1.0, output=float)
    fibres = 0.3 + 0.7 * ndimage.gaussian_filter(rng.normal(size=tissue.shape), 2.0)
    density = (nuclei[..., None] * HAEMATOXYLIN + fibres[..., None] * EOSIN) * tissue[..., None]
    return GLASS * np.exp(-density) + rng.normal(0, 2, density.shape), tissue


@pytest.fixture(scope="session")
def pixels():
    """From what is drawn to what a scanner stores."""
    return lambda drawn: np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def slide_file(slide, pixels, tmp_path_factory):
    """The slide as a tiled TIFF that says its scale."""
    import tifffile

    path = tmp_path_factory.mktemp("slides") / "disc.tif"
    scale = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels(slide[0]), photometric="rgb", tile=(128, 128), compression="deflate", **scale)
    return path
