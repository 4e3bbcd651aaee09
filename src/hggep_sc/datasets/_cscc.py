"""Cutaneous squamous cell carcinoma, legacy Spatial Transcriptomics (Ji et al. 2020)."""

import gzip
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from .._settings import settings
from ..errors import WrongFileError
from ..storage.fetch import fetch, registry
from ..storage.replace import replacing
from ._legacy import assemble, choose, read_counts, read_spots

if TYPE_CHECKING:
    from anndata import AnnData

FILES_URL = "https://ftp.ncbi.nlm.nih.gov/geo/samples/"
FIRST = 4284316  # accession of the first sample; the others follow in this order
SECTIONS = tuple(f"{patient}_ST_rep{n}" for patient in ("P2", "P5", "P9", "P10") for n in (1, 2, 3))
SPACING, DIAMETER = 150.0, 110.0  # um


def cscc(sections: str | Sequence[str] | None = None) -> "dict[str, AnnData]":
    """Cutaneous squamous cell carcinomas: 12 sections of 4 patients, spots of 110 um, 150 um centre to centre.

    Files are looked for under `settings.dataset_dir / "cscc"` (environment variable `HGGEP_DATASETDIR`), by the names
    that the Gene Expression Omnibus gave them, packed (`.gz`) or not, and downloaded there where missing; the packed
    image is unpacked beside it. `GSE144240_RAW.tar`, unpacked into that folder, will do.

    Parameters
    ----------
    sections
        Names ("P2_ST_rep1" to "P10_ST_rep3"). None: all twelve.

    Returns
    -------
    Sections by name, as `her2st` gives them, without clusters and regions; `obs["patient"]` is "P2", "P5", "P9" or
    "P10".

    Raises
    ------
    ValueError
        No such section.
    WrongFileError
        A file is not the expected one.
    DownloadError
        A file is neither there nor to be had; the message says what to put where.

    Notes
    -----
    Ji et al., "Multimodal analysis of composition and spatial architecture in human squamous cell carcinoma", Cell
    182, 2020; GEO series GSE144240 (and GSE144239, its spatial part), samples GSM4284316 to GSM4284327. Of a section
    are read `GSM4284316_P2_ST_rep1_stdata.tsv.gz`, `GSM4284316_spot_data-selection-P2_ST_rep1.tsv.gz` and
    `GSM4284316_P2_ST_rep1.jpg.gz`.

    The files themselves were not at hand. Their SHA-256 are not known, so that what is downloaded is taken unchecked.
    Accessions and names are those by which several public programs read the files, the packed image's by one alone. The
    distance between spots, which um per px follow from, is that of the array of 1,934 spots, from memory of the
    paper and not from the files; `mpp=` of `hggep_sc.tl.fit` has precedence.

    The published figures are over 171 genes, a list that comes with Hist2ST (github.com/biomed-AI/Hist2ST,
    `skin_hvg_cut_1000.npy`) and not with this package; give it as `genes=`. Its name, like that of the 785 of
    `her2st_panel`, stands for HisToGene's rule: the 1,000 most variable genes of each section, without those that are
    counted in fewer than 1,000 spots of all sections. The selection is not in the published code, so this was not
    checked either.
    """
    return {name: _section(name) for name in choose(sections, default=SECTIONS, known=SECTIONS)}


def _section(name: str) -> "AnnData":
    accession = f"GSM{FIRST + SECTIONS.index(name)}"
    counts = read_counts(_table(accession, f"{accession}_{name}_stdata.tsv"))
    spots = read_spots(_table(accession, f"{accession}_spot_data-selection-{name}.tsv"), selected_alone=True)
    image = _image(accession, f"{accession}_{name}.jpg")
    adata = assemble(name, counts, spots, image, step=1, spacing=SPACING, diameter=DIAMETER)
    adata.obs["patient"] = pd.Categorical([name.split("_")[0]] * adata.n_obs)
    return adata


def _table(accession: str, name: str) -> Path:
    plain = settings.dataset_dir / "cscc" / name
    return plain if plain.is_file() else _packed(accession, f"{name}.gz")


def _image(accession: str, name: str) -> Path:
    """Return the unpacked image, as readers of images want it."""
    plain = settings.dataset_dir / "cscc" / name
    if plain.is_file():
        return plain
    packed = _packed(accession, f"{name}.gz")
    with replacing(plain) as new, gzip.open(packed) as source, new.open("wb") as target:
        try:  # inside, as BadGzipFile is an OSError, which is taken for one of writing
            shutil.copyfileobj(source, target)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise WrongFileError(
                f"{packed} cannot be unpacked: {error}. Delete it to have it downloaded again."
            ) from None
    return plain


def _packed(accession: str, name: str) -> Path:
    url = f"{FILES_URL}{accession[:-3]}nnn/{accession}/suppl/{name}"
    key = f"cscc/{name}"
    return fetch(url, sha256=registry().get(key), path=settings.dataset_dir / key)
