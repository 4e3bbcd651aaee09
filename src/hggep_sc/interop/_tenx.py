import csv
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import _keys
from .._version import __version__
from ..runtime.validators import flag, text_or_none
from ..section import Section, array_places, read_prediction, spot_spacing, table_of
from ..storage.files import new_hdf5
from ..storage.replace import replacing
from ._files import one_section, place_for

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

MATRIX = "filtered_feature_bc_matrix"  # folder and, with .h5, file
COPIES = {"hires": 2000, "lowres": 600}  # longest sides of the reduced images, px, as Space Ranger's
SHARE = 0.55  # width of a spot over the distance to the next, as of Visium, where it is not known
HEADER = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


def to_10x(
    data: "AnnData | SpatialData",
    path: str | Path,
    *,
    key: str = _keys.KEY,
    section: str | None = None,
    table_key: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a prediction in the layout of Space Ranger's output, which Seurat's `Load10X_Spatial` reads.

    The values are log expression, no counts: in Seurat they belong into the layer `data` (`docs/export.md`).

    Parameters
    ----------
    data
        One section or several after `hggep_sc.tl.predict`, with the image.
    path
        Folder to write.
    key
        Name of the prediction.
    section
        Which of several sections.
    table_key
        SpatialData: which of several tables.
    overwrite
        Replace a folder that was written by this function, or by Space Ranger.

    Returns
    -------
    None. Written are, for the predicted spots and genes,

    - `filtered_feature_bc_matrix.h5` and, for readers of text, `filtered_feature_bc_matrix/` with `matrix.mtx.gz`,
      `features.tsv.gz` and `barcodes.tsv.gz`: genes x spots. Ids of genes are `var["gene_ids"]`, else their names
    - `spatial/tissue_positions.csv`: centres in full-resolution px, and array positions, 0 where there are none
    - `spatial/tissue_hires_image.png`, `tissue_lowres_image.png`: at most 2,000 and 600 px wide or high
    - `spatial/scalefactors_json.json`: px of these per full-resolution px, diameters in full-resolution px, and
      `microns_per_pixel` where it is known

    Raises
    ------
    MissingSlotError
        If there is no prediction under `key`.
    InputError
        If there are several sections and none is named, or the image is missing.
    FileExistsError
        If `path` is there, unless `overwrite`.
    OSError
        If it cannot be written; what was there is as it was.
    """
    flag("overwrite", overwrite)
    text_or_none("section", section)
    table = table_of(data, table_key)
    record, columns = read_prediction(table, key)
    library_key = record.get("library_key")
    found = one_section(data, section, library_key=library_key, table_key=table_key, noted=[key])
    target = place_for(path, overwrite, lambda there: (there / f"{MATRIX}.h5").is_file())
    expression = np.asarray(table.layers[key][found.obs_rows][:, columns])
    known = np.isfinite(expression).all(axis=1)
    spots = found.subset(known)
    genes = table.var.iloc[columns]
    ids = genes["gene_ids"].astype(str).tolist() if "gene_ids" in genes else genes.index.tolist()
    features = list(zip(ids, genes.index.tolist(), strict=True))
    with replacing(target) as folder:
        (folder / "spatial").mkdir(parents=True)
        (folder / MATRIX).mkdir()
        barcodes = table.obs_names[spots.obs_rows].tolist()
        _write_hdf5(folder / f"{MATRIX}.h5", expression[known], features, barcodes, found.name)
        _write_text(folder / MATRIX, expression[known], features, barcodes)
        _write_places(folder / "spatial", spots, barcodes)


def _write_hdf5(
    file: Path, expression: np.ndarray, features: list[tuple[str, str]], barcodes: list[str], name: str
) -> None:
    from scipy import sparse

    matrix = sparse.csr_matrix(expression)
    arrays = {
        "barcodes": np.array(barcodes, dtype=bytes),
        "data": matrix.data,
        "indices": matrix.indices.astype(np.int64),
        "indptr": matrix.indptr.astype(np.int64),
        "shape": np.array(matrix.shape[::-1], dtype=np.int32),
        "features/id": np.array([each for each, _ in features], dtype=bytes),
        "features/name": np.array([each for _, each in features], dtype=bytes),
        "features/feature_type": np.array([b"Gene Expression"] * len(features)),
        "features/genome": np.array([b"unknown"] * len(features)),
        "features/_all_tag_keys": np.array([b"genome"]),
    }
    with new_hdf5(file) as opened:
        opened.attrs["library_ids"] = np.array([name.encode()])
        opened.attrs["software_version"] = f"hggep_sc-{__version__}"
        opened.attrs["filetype"], opened.attrs["version"] = "matrix", 2
        for slot, array in arrays.items():
            opened.create_dataset(f"matrix/{slot}", data=array)


def _write_text(folder: Path, expression: np.ndarray, features: list[tuple[str, str]], barcodes: list[str]) -> None:
    from scipy import io, sparse

    tables: dict[str, list[tuple[str, ...]]] = {
        "features": [(*feature, "Gene Expression") for feature in features],
        "barcodes": [(barcode,) for barcode in barcodes],
    }
    for name, rows in tables.items():
        with gzip.open(folder / f"{name}.tsv.gz", "wt", newline="") as lines:
            csv.writer(lines, delimiter="\t", lineterminator="\n").writerows(rows)
    with gzip.open(folder / "matrix.mtx.gz", "wb") as stream:
        io.mmwrite(stream, sparse.coo_matrix(expression.T), field="real", symmetry="general")


def _write_places(folder: Path, spots: Section, barcodes: list[str]) -> None:
    """Write where spots lie, the image's reduced copies, and their scale factors."""
    from PIL import Image

    fullres = spots.xy * spots.reduction
    found = array_places(spots.table, spots.obs_rows)
    places = np.zeros((len(fullres), 2), dtype=np.int64) if found is None else found
    with (folder / "tissue_positions.csv").open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(HEADER)
        for barcode, (x, y), (column, row) in zip(barcodes, fullres.tolist(), places.tolist(), strict=True):
            writer.writerow([barcode, 1, row, column, y, x])
    width = spots.spot_diameter
    if width is None:
        width = SHARE * (spot_spacing(spots.xy) or 1.0)
    diameter = width * spots.reduction
    factors = {"spot_diameter_fullres": diameter, "fiducial_diameter_fullres": diameter}
    if spots.mpp_fullres is not None:
        factors["microns_per_pixel"] = spots.mpp_fullres
    with spots.open_image() as image:
        for name, side in COPIES.items():
            copy = image.thumbnail(side)
            Image.fromarray(copy).save(folder / f"tissue_{name}_image.png")
            factors[f"tissue_{name}_scalef"] = copy.shape[1] / (image.shape[1] * spots.reduction)
    (folder / "scalefactors_json.json").write_text(json.dumps(factors))
