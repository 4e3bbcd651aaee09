"""Folders as Space Ranger 1 to 4 and the Xenium analyser leave them, made of a section with one px per um."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile
import zarr
from anndata import AnnData
from PIL import Image
from scipy import sparse

HIRES, LOWRES = 0.5, 0.125  # px per full-resolution px
XENIUM_PX = 0.2125  # um


def barcodes(n):
    """Sixteen letters each, as of Visium."""
    digits = np.arange(n)[:, None] // 4 ** np.arange(16) % 4
    return ["".join("ACGT"[d] for d in row) + "-1" for row in digits]


def pixels_of(section):
    """(y, x, 3) pixels of the only library's full-resolution image."""
    (entry,) = section.uns["spatial"].values()
    return np.asarray(Image.open(entry["metadata"]["source_image_path"]).convert("RGB"))


def visium(folder, section, version=3, *, prefix=""):
    """Write `outs` of Visium by Space Ranger 1 to 4, and the microscope's image beside; return its path.

    Version 1 lists the spots without a header, and px as whole numbers; the first section's barcodes come last.
    """
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    names = barcodes(section.n_obs)[::-1]
    chemistry = {1: "Spatial 3' v1", 2: "Visium V4 Slide - FFPE v2", 3: "Visium V5 Slide - FFPE v2"}.get(version, "")
    counts = folder / f"{prefix}filtered_feature_bc_matrix.h5"
    matrix_h5(counts, section.X, section.var_names, names, chemistry, version)
    spots = positions(section, names)
    if version == 1:
        whole = spots.astype({"pxl_row_in_fullres": int, "pxl_col_in_fullres": int})
        whole.to_csv(spatial / "tissue_positions_list.csv", header=False, index=False)
    else:
        spots.to_csv(spatial / "tissue_positions.csv", index=False)
    factors = {"spot_diameter_fullres": 89.4, "fiducial_diameter_fullres": 144.5}  # neither is 55 um
    pixels = pixels_of(section)
    write_copies(spatial, pixels, factors)
    return write_image(folder / "microscope.tif", pixels)


def positions(section, names):
    """The table of spots in the order of its file: sorted by barcode, which is not that of the counts."""
    x, y = section.obsm["spatial"].T
    columns = {
        "barcode": names,
        "in_tissue": 1,
        "array_row": section.obs["array_row"].to_numpy(),
        "array_col": section.obs["array_col"].to_numpy(),
        "pxl_row_in_fullres": y,
        "pxl_col_in_fullres": x,
    }
    return pd.DataFrame(columns).sort_values("barcode")


def write_image(path, pixels):
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256))
    return path


def write_copies(spatial, pixels, factors):
    """Write the reduced copies of an image, and the scale factors."""
    image = Image.fromarray(pixels)
    for name, scale in {"hires": HIRES, "lowres": LOWRES}.items():
        size = [round(scale * side) for side in image.size]
        image.resize(size, Image.Resampling.BOX).save(spatial / f"tissue_{name}_image.png")
    factors = {"tissue_hires_scalef": HIRES, "tissue_lowres_scalef": LOWRES, **factors}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))


def matrix_h5(path, counts, genes, names, chemistry, version):
    """Write counts in the layout of Cell Ranger 3 and later."""
    counts = sparse.csr_matrix(counts).astype(np.int32)
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([b"A1"])
        file.attrs["chemistry_description"] = chemistry
        file.attrs["software_version"] = f"spaceranger-{version}.0.0"
        file.attrs["filetype"], file.attrs["version"] = "matrix", 2
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(names, dtype="S")
        matrix["data"], matrix["indices"], matrix["indptr"] = counts.data, counts.indices, counts.indptr
        matrix["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(genes))], dtype="S")
        features["name"] = np.array(list(genes), dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(genes), dtype="S")
        features["_all_tag_keys"] = np.array(["genome"], dtype="S")


def visium_hd(folder, section, bins, *, bin_um=16, side_px=16.0, version=3):
    """Write `outs` of Visium HD, and return the path of the microscope's image.

    Parameters
    ----------
    bins
        Counts, places and centres of the bins: an AnnData with `obs["array_row"]`, `["array_col"]`, `obsm["spatial"]`.
    side_px
        Of a bin, full-resolution px.
    """
    size = f"{bin_um:03}um"
    outs = folder / "binned_outputs" / f"square_{size}"
    (outs / "spatial").mkdir(parents=True)
    names = list(bins.obs_names)
    matrix_h5(outs / "filtered_feature_bc_matrix.h5", bins.X, bins.var_names, names, "Visium HD", version)
    positions(bins, names).to_parquet(outs / "spatial" / "tissue_positions.parquet", index=False)
    factors = {
        "spot_diameter_fullres": side_px,
        "bin_size_um": float(bin_um),
        "microns_per_pixel": bin_um / side_px,
        "fiducial_diameter_fullres": 1000.0,
    }
    pixels = pixels_of(section)
    for spatial in (outs / "spatial", folder / "spatial"):
        spatial.mkdir(exist_ok=True)
        write_copies(spatial, pixels, factors)
    layout = {"file_format": "1.0", "transform": np.eye(3).ravel().tolist()}
    with h5py.File(folder / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": json.dumps(layout)})
    return write_image(folder / "microscope.tif", pixels)


def bins_at(origin, genes, *, degrees=2.0, n_rows=12, n_columns=14):
    """Bins of 16 px on a grid that is a little turned, as those of Visium HD are."""
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    turn = np.deg2rad(degrees)
    axes = 16.0 * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    counts = np.random.default_rng(0).poisson(1.0, (len(row), len(genes))).astype(np.float32)
    bins = AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=genes))
    bins.obs_names = [bin_name(r, c) for r, c in zip(row + 3, column + 5, strict=True)]
    bins.obs["array_row"], bins.obs["array_col"] = row + 3, column + 5
    bins.obsm["spatial"] = np.column_stack([column, row]) @ axes + origin
    return bins


def bin_name(row, column, bin_um=16):
    return f"s_{bin_um:03}um_{row:05}_{column:05}-1"


def xenium(folder, section, alignment, *, version="2.0.0.6"):
    """Write a Xenium folder whose cells lie where a section's spots do, and its H&E; one px of a mask is 0.2125 um.

    Parameters
    ----------
    alignment
        (3, 3) from px of the H&E to those of the Xenium's own images, by which cells are placed: a px of the section's
        image is a um of the H&E's.
    """
    folder.mkdir(parents=True)
    n = section.n_obs
    xy = np.column_stack([section.obsm["spatial"], np.ones(n)]) @ alignment.T  # px of the Xenium
    x, y = xy[:, :2].T
    letters = [chr(ord("a") + i // 16 % 16) + chr(ord("a") + i % 16) for i in range(n)]
    names = [f"aaaaaa{pair}-1" for pair in letters]
    matrix_h5(folder / "cell_feature_matrix.h5", section.X, section.var_names, names, "Xenium", 2)
    cells = {"cell_id": names, "x_centroid": x * XENIUM_PX, "y_centroid": y * XENIUM_PX, "cell_area": np.pi * 5**2}
    pd.DataFrame(cells).to_parquet(folder / "cells.parquet", index=False)
    specs = {"analysis_sw_version": f"xenium-{version}", "pixel_size": XENIUM_PX, "run_name": "run"}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    size = np.ceil([y.max() + 40, x.max() + 40]).astype(int)
    mask = np.zeros(size, dtype=np.uint32)
    rows, columns = np.mgrid[-23:24, -23:24]
    disc = rows**2 + columns**2 <= 23**2
    for label, (at_x, at_y) in enumerate(np.floor(np.column_stack([x, y])).astype(int), 1):
        inside = at_y + rows[disc], at_x + columns[disc]
        mask[inside] = label
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        group.create_array("cell_id", data=np.column_stack([np.arange(n), np.ones(n)]).astype(np.uint32))
        summary = group.create_array("cell_summary", data=np.zeros((n, 8)))
        summary.attrs["column_names"] = [*(f"c{i}" for i in range(6)), "z_level", "nucleus_count"]
        for which in ("0", "1"):
            group.create_array(f"masks/{which}", data=mask)
            group.create_array(f"polygon_sets/{which}/cell_index", data=np.arange(n, dtype=np.uint32))
    pixels = pixels_of(section)
    tifffile.imwrite(folder / "tissue_he_image.ome.tif", pixels, photometric="rgb")
    np.savetxt(folder / "tissue_he_imagealignment.csv", alignment, delimiter=",")
    return Path(folder)
