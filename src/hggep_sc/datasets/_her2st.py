"""HER2-positive breast tumours, legacy Spatial Transcriptomics (Andersson et al. 2021)."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._settings import settings
from ..errors import FailedWarning, UnreachableError
from ..runtime.messages import warn
from ..storage.fetch import fetch, registry
from ._legacy import assemble, choose, read_counts, read_spots

if TYPE_CHECKING:
    from anndata import AnnData

FILES_URL = "https://raw.githubusercontent.com/almaan/her2st/HEAD/"
LISTING_URL = "https://api.github.com/repos/almaan/her2st/contents/"
SECTIONS = tuple(f"{patient}{n + 1}" for patient in "ABCDEFGH" for n in range(6 if patient in "ABCD" else 3))
LABELLED = ("A1", "B1", "C1", "D1", "E1", "F1", "G2", "H1")  # by the study's pathologist


def her2st(sections: str | Sequence[str] | None = None) -> "dict[str, AnnData]":
    """HER2-positive breast tumours: 36 sections of 8 patients, spots of 100 um, 200 um centre to centre.

    Files are looked for under `settings.dataset_dir / "her2st"` (environment variable `HGGEP_DATASETDIR`), in
    the layout of the study's repository, and downloaded there where missing.

    Parameters
    ----------
    sections
        Names ("A1" to "H3"). None: those whose files are known by their SHA-256 (B4, C2, C3, C4, C5).

    Returns
    -------
    Sections by name, each with

    - `X`: raw counts, float32, CSR; `obs_names`: array position ("10x11")
    - `obs["array_col"]`, `["array_row"]`: array x and y; `["in_tissue"]`: 1
    - `obs["patient"]`: the patient's letter, the first of the section's name (categorical)
    - `obs["cluster"]`: the study's expression clusters (categorical, NaN for the few spots without)
    - `obs["region"]`: the pathologist's label (categorical), in the one section of each patient that has them
    - `obsm["spatial"]`: x, y in px of the full-resolution image
    - `uns["spatial"][name]`: a `hires` image, scale factors (`microns_per_pixel` from the array's geometry)
      and the path of the full-resolution image in `metadata.source_image_path`

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
    Andersson et al., "Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell
    type interactions", Nature Communications 12, 2021; files of github.com/almaan/her2st (also Zenodo record
    3957257).
    """
    known = [name for name in SECTIONS if f"her2st/data/ST-cnts/{name}.tsv.gz" in registry()]
    return {name: _section(name) for name in choose(sections, default=known, known=SECTIONS)}


def her2st_panel() -> list[str]:
    """Return the 785 genes of the published figures, in the order of the published checkpoints' outputs.

    Notes
    -----
    Li et al., bbae500, 2024; for `genes=` of `hggep_sc.tl.fit`, and of `HGGEP.from_published`.
    """
    return (Path(__file__).parent / "_her2st_panel.txt").read_text(encoding="utf-8").split()


def _section(name: str) -> "AnnData":
    counts = read_counts(_file(f"data/ST-cnts/{name}.tsv.gz"))
    spots = read_spots(_file(f"data/ST-spotfiles/{name}_selection.tsv"))
    adata = assemble(name, counts, spots, _image(name), step=1)
    array = spots.loc[adata.obs_names, ["x", "y"]]
    adata.obs["patient"] = pd.Categorical([name[0]] * adata.n_obs)
    adata.obs["cluster"] = _labels(_file(f"res/ST-cluster/lbl/{name}-cluster-annotation.tsv.gz"), array)
    if name in LABELLED:
        try:
            regions = _file(f"data/ST-pat/lbl/{name}_labeled_coordinates.tsv")
        except OSError as error:
            warn(f"section {name} comes without obs['region']: {error}", FailedWarning)
        else:
            adata.obs["region"] = _labels(regions, array)
    return adata


def _file(path: str) -> Path:
    key = f"her2st/{path}"
    return fetch(FILES_URL + path, sha256=registry().get(key), path=settings.dataset_dir / key)


def _image(name: str) -> Path:
    """Find or download the H&E image; its name follows no rule: where unknown, upstream is asked."""
    folder = f"data/ST-imgs/{name[0]}/{name}"
    known = [key.removeprefix("her2st/") for key in registry() if key.startswith(f"her2st/{folder}/")]
    if known:
        return _file(known[0])
    local = settings.dataset_dir / "her2st" / folder
    found = sorted(
        path for path in local.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".tif", ".tiff", ".png")
    )
    if len(found) > 1:
        raise ValueError(
            f"{local} holds several images ({', '.join(path.name for path in found)}): keep the H&E alone."
        )
    if found:
        return found[0]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            listing = fetch(LISTING_URL + folder, sha256=None, path=Path(temporary) / "listing.json")
            names = [entry["name"] for entry in json.loads(listing.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError):
        raise UnreachableError(
            f"The H&E image of section {name} is not in {local}, and its file name upstream cannot be looked "
            f"up: put the one .jpg of {folder}/ (github.com/almaan/her2st, or Zenodo record 3957257) into "
            "that folder, or set the environment variable HGGEP_DATASETDIR to a folder that holds her2st/."
        ) from None
    images = [file for file in names if file.lower().endswith((".jpg", ".jpeg"))]
    if len(images) != 1:
        raise ValueError(f"Upstream {folder}/ holds {names}, expected one .jpg: put section {name}'s H&E into {local}.")
    return _file(f"{folder}/{images[0]}")


def _labels(path: Path, array: pd.DataFrame) -> pd.Categorical:
    """Column `label` of a table of spots, joined by rounded array x, y; NaN for spots not in the table."""
    table = pd.read_csv(path, sep="\t").dropna(subset=["x", "y", "label"])
    key = list(zip(table["x"].round().astype(int), table["y"].round().astype(int), strict=True))
    label = pd.Series(table["label"].astype(str).str.strip().to_numpy(), index=pd.MultiIndex.from_tuples(key))
    label = label[~label.index.duplicated()]
    spots = pd.MultiIndex.from_arrays([array["x"], array["y"]])
    return pd.Categorical(label.reindex(spots).to_numpy(), categories=np.unique(label.to_numpy().astype(str)))
