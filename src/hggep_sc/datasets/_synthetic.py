"""Synthetic H&E-like sections whose counts follow what is drawn under each spot."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _keys
from .._settings import settings
from ..runtime.validators import seed_of, whole
from ._legacy import library

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

FORMAT = 1  # raise when drawing changes: images of another format are not reused
SPACING = 100.0  # um, centre to centre, hexagonal
DIAMETER = 55.0  # um
WINDOW = 25.0  # um, standard deviation of the Gaussian window in which a spot sees the tissue
PROGRAMMES = ("TUM", "STR", "GLA", "FAT", "IMM", "CYC", "INV", "LUM")
NOISE = "NOI"
NOISE_SHARE = 0.15  # of the genes


def synthetic(n_sections: int = 3, n_spots: int = 200, seed: int = 0, *, n_genes: int = 200) -> "dict[str, AnnData]":
    """H&E-like sections made by code, with counts that depend on what is drawn under each spot.

    Stroma, glands, tumour, fat and immune infiltrates meet at smooth borders; nuclei, fibres, ducts and
    vacuoles are drawn in stain densities. The cover by each kind of nuclei, by ducts, lumina, vacuoles and
    collagen in a Gaussian window (25 um) around a spot drives eight gene programmes; counts are zero-inflated
    negative binomial, with log-normal library sizes. Stain and light differ between sections.

    Parameters
    ----------
    n_sections
        Number of sections, named "S1", "S2", ...; a section does not depend on how many there are.
    n_spots
        Spots per section, hexagonal, 100 um centre to centre; the tissue's size follows.
    seed
        Determines everything; gene programmes are shared by the sections of one seed.
    n_genes
        Number of genes, named after their programme: "TUM01" (tumour nuclei), "STR01" (collagen), "GLA01"
        (ducts), "FAT01" (vacuoles), "IMM01" (lymphocytes), "CYC01" (nuclei of any kind), "INV01" (tumour
        within collagen), "LUM01" (lumina), "NOI01" (noise alone).

    Returns
    -------
    Sections by name, as `her2st` gives them; `obs["region"]` is the tissue under the spot. Images have
    1 um per px; the full-resolution PNG is written once under `settings.cache_dir / "synthetic"`.

    Raises
    ------
    ValueError
        A number of sections, spots or genes that is too small.
    """
    n_sections, n_spots, seed = whole("n_sections", n_sections), whole("n_spots", n_spots), seed_of("seed", seed)
    n_genes = whole("n_genes", n_genes, least=9)
    return {f"S{number}": _section(number, n_spots, seed, n_genes) for number in range(1, n_sections + 1)}


def _section(number: int, n_spots: int, seed: int, n_genes: int) -> "AnnData":
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from ._histology import REGIONS

    name = f"S{number}"
    stream = np.random.SeedSequence(seed, spawn_key=(number,))
    drawing_seed, counts_seed = stream.spawn(2)
    image, spots = _drawn(name, n_spots, seed, drawing_seed)
    counts = _counts(np.random.default_rng(counts_seed), _activity(spots), _genes(seed, n_genes))
    array = spots["array"].astype(np.int64)
    obs = pd.DataFrame(
        {
            _keys.IN_TISSUE: 1,
            _keys.ARRAY_ROW: array[:, 1],
            _keys.ARRAY_COL: array[:, 0],
            "region": pd.Categorical([REGIONS[code] for code in spots["region"]], categories=list(REGIONS)),
        },
        index=[f"{column}x{row}" for column, row in array],
    )
    var = pd.DataFrame(index=_gene_names(n_genes))
    adata = AnnData(csr_matrix(counts), obs=obs, var=var)
    adata.obsm[_keys.SPATIAL] = spots["xy"].astype(np.float64)
    adata.uns[_keys.SPATIAL] = {name: library(image, microns_per_pixel=1.0, diameter=DIAMETER, technology="synthetic")}
    return adata


def _drawn(name: str, n_spots: int, seed: int, stream: np.random.SeedSequence) -> tuple[Path, dict[str, np.ndarray]]:
    """Draw the section and what its spots see of it, once; both are kept in the cache directory."""
    parameters = json.dumps({"format": FORMAT, "n_spots": n_spots, "seed": seed}, sort_keys=True)
    folder = settings.cache_dir / "synthetic" / hashlib.sha256(parameters.encode()).hexdigest()[:16]
    image, table = folder / f"{name}.png", folder / f"{name}.npz"
    if not (image.is_file() and table.is_file()):
        from PIL import Image

        logger.info("Drawing synthetic section %s in %s.", name, folder)
        pixels, spots = _draw_spots(np.random.default_rng(stream), n_spots)
        folder.mkdir(parents=True, exist_ok=True)
        with _Replacing(image) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
        with _Replacing(table) as temporary, temporary.open("wb") as stream_out:
            np.savez(stream_out, **spots)  # type: ignore[arg-type]
    with np.load(table) as stored:
        return image, dict(stored)


class _Replacing:
    """A temporary path beside `path` that takes its place when all went well."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}-")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _draw_spots(rng: np.random.Generator, n_spots: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pixels of a section, and its spots: array and pixel positions, region and what their windows hold."""
    from scipy import ndimage

    from ._histology import REGIONS, draw

    area = n_spots * SPACING**2 * np.sqrt(3) / 2
    drawing = draw(rng, max(float(np.sqrt(1.06 * area / np.pi)), 160.0))
    height, width = drawing.depth.shape
    rows = np.arange(int(height / (SPACING * np.sqrt(3) / 2)))
    columns = np.arange(2 * int(width / SPACING))
    row, column = (part.ravel() for part in np.meshgrid(rows, columns, indexing="ij"))
    row, column = (part[(row + column) % 2 == 0] for part in (row, column))
    x = column * SPACING / 2 + rng.uniform(0, SPACING / 2)
    y = row * SPACING * np.sqrt(3) / 2 + rng.uniform(0, SPACING / 2)
    inside = (x < width) & (y < height)
    row, column, x, y = (part[inside] for part in (row, column, x, y))
    deepest = np.argsort(-drawing.depth[y.astype(int), x.astype(int)], kind="stable")[:n_spots]
    chosen = np.sort(deepest)
    row, column, x, y = (part[chosen] for part in (row, column, x, y))

    def seen(drawn: np.ndarray) -> np.ndarray:
        trimmed = drawn[: height // 4 * 4, : width // 4 * 4].astype(np.float32)
        blocks = trimmed.reshape(height // 4, 4, width // 4, 4).mean((1, 3))
        window = ndimage.gaussian_filter(blocks, WINDOW / 4, truncate=3.0)
        return ndimage.map_coordinates(window, [y / 4 - 0.5, x / 4 - 0.5], order=1, mode="nearest")

    share = np.stack([seen(drawing.region == number) for number in range(len(REGIONS))])
    spots = {
        "array": np.column_stack([column, row]),
        "xy": np.column_stack([x, y]),
        "region": share.argmax(0),
        **{f"seen_{kind}": seen(drawn) for kind, drawn in drawing.maps.items()},
    }
    return drawing.image, spots


def _activity(spots: dict[str, np.ndarray]) -> np.ndarray:
    """(n_spots, 8) activity of each programme, about 0..1.3: what the spot's window holds, saturating."""
    seen = {kind.removeprefix("seen_"): values for kind, values in spots.items() if kind.startswith("seen_")}
    nuclei = seen["tumour"] + seen["immune"] + seen["epithelium"] + seen["fibroblast"]
    # scales: about the upper range of each cover in these drawings
    driver = {
        "TUM": seen["tumour"] / 0.35,
        "STR": seen["collagen"] / 0.30,
        "GLA": (seen["duct"] - seen["lumen"]) / 0.40,
        "FAT": seen["vacuole"] / 0.80,
        "IMM": seen["immune"] / 0.25,
        "CYC": nuclei / 0.40,
        "INV": 4 * (seen["tumour"] / 0.35) * (seen["collagen"] / 0.30),
        "LUM": seen["lumen"] / 0.30,
    }
    return np.column_stack([1.6 * np.tanh(np.clip(driver[programme], 0, None) / 1.3) for programme in PROGRAMMES])


def _gene_names(n_genes: int) -> list[str]:
    n_noise = max(round(NOISE_SHARE * n_genes), 1)
    names = []
    for number in range(n_genes - n_noise):
        cycle, programme = divmod(number, len(PROGRAMMES))
        names.append(f"{PROGRAMMES[programme]}{cycle + 1:02d}")
    return sorted(names) + [f"{NOISE}{number + 1:02d}" for number in range(n_noise)]


def _genes(seed: int, n_genes: int) -> dict[str, np.ndarray]:
    """Parameters of each gene: base level, loadings on the programmes, dispersion, dropout."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    names = _gene_names(n_genes)
    loadings = np.zeros((len(PROGRAMMES), n_genes))
    for gene, name in enumerate(names):
        own, side = rng.uniform(1.2, 2.8), rng.integers(len(PROGRAMMES))
        extra = rng.normal(0, 0.35) * (rng.random() < 0.4)
        if name[:3] != NOISE:
            loadings[side, gene] += extra
            loadings[PROGRAMMES.index(name[:3]), gene] += own
    return {
        "base": rng.normal(np.log(3.0), 0.9, n_genes),
        "loadings": loadings,
        "dispersion": rng.lognormal(np.log(8.0), 0.4, n_genes),
        "dropout": rng.beta(1.0, 29.0, n_genes),
    }


def _counts(rng: np.random.Generator, activity: np.ndarray, genes: dict[str, np.ndarray]) -> np.ndarray:
    """Zero-inflated negative binomial counts, float32 (n_spots, n_genes)."""
    size = rng.lognormal(0, 0.35, (len(activity), 1))
    mean = size * np.exp(genes["base"] + activity @ genes["loadings"])
    rate = rng.gamma(np.broadcast_to(genes["dispersion"], mean.shape)) * mean / genes["dispersion"]
    counts = rng.poisson(rate)
    counts[rng.random(mean.shape) < genes["dropout"]] = 0
    return counts.astype(np.float32)
