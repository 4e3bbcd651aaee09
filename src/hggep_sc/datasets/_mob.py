"""Mouse olfactory bulb, legacy Spatial Transcriptomics (Stahl et al. 2016)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._settings import settings
from ..storage.fetch import check, fetch, registry
from ._legacy import assemble, choose, read_counts, read_spots

if TYPE_CHECKING:
    from anndata import AnnData

FILES_URL = "https://raw.githubusercontent.com/jbergenstrahle/STUtility/HEAD/inst/extdata/counts/"
SECTIONS = ("MOB1", "MOB2", "MOB3", "MOB4")


def mob(sections: str | Sequence[str] | None = None) -> "dict[str, AnnData]":
    """Mouse olfactory bulb: sections of one animal, spots of 100 um, 1,000 genes.

    Files are looked for under `settings.dataset_dir / "mob"` (environment variable `HGGEP_DATASETDIR`),
    counts as `.tsv.gz` or `.tsv`, and downloaded there where missing.

    Parameters
    ----------
    sections
        Names ("MOB1" to "MOB4"). None: those whose files are known by their SHA-256 (MOB1, MOB2, MOB3).

    Returns
    -------
    Sections by name, as `her2st` gives them, without clusters and regions: spots under tissue alone; genes
    are Ensembl ids with their version; array coordinates run in steps of 2 (two of them are 200 um).

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
    Stahl et al., "Visualization and analysis of gene expression in tissue sections by spatial
    transcriptomics", Science 353, 2016; files of github.com/jbergenstrahle/STUtility (MIT).
    """
    known = [name for name in SECTIONS if f"mob/{name}.tsv" in registry()]
    return {name: _section(name) for name in choose(sections, default=known, known=SECTIONS)}


def _section(name: str) -> "AnnData":
    spots = read_spots(_file(f"alignment_table_{name}.tsv"))
    return assemble(name, read_counts(_counts(name)), spots, _file(f"{name}.jpg"), step=2)


def _counts(name: str) -> Path:
    packed = settings.dataset_dir / "mob" / f"{name}.tsv.gz"
    if packed.is_file():
        check(packed, registry().get(f"mob/{name}.tsv"), unpacked=True)
        return packed
    return _file(f"{name}.tsv")


def _file(name: str) -> Path:
    key = f"mob/{name}"
    return fetch(FILES_URL + name, sha256=registry().get(key), path=settings.dataset_dir / key)
