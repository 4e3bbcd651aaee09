"""A slide from its image to the predicted layer: time and peak memory, and how they grow with the number of spots.

    python benchmarks/scale.py                                    # 2,500, 10,000 and 40,000 spots, 100 um apart
    python benchmarks/scale.py --spots 10000 --image zarr         # a SpatialData on disk in place of a TIFF
    python benchmarks/scale.py --spots 40000 160000 660000 --spacing 16 --genes 200  # as on Visium HD, 8 um apart
    python benchmarks/scale.py --spots 10000 --precision bfloat16 # what the encoder computes in
    python benchmarks/scale.py --spots 100000 --spacing 64 --device cuda
    python benchmarks/scale.py --arrays                           # fits to arrays like those of Visium and Visium HD

Each size runs in a process of its own: a tiled, pyramidal JPEG TIFF is written, or a SpatialData with a multi-scale
image (not timed); `pp.tile`, with all of the image as tissue, and `tl.predict` are. Spots lie `--spacing` px of
0.5 um apart, so that the slide grows with their number. The model is a `default`, fitted for two epochs:
what it predicts is meaningless, its cost is that of any other. `--arrays` fits `default` to two sections, each of
all spots of an array, and predicts one of them, 200 genes. Decodes of a tile are those of a TIFF in `tl.predict`.

Rows are added to results/scale.csv or results/scale_arrays.csv beside this file; those of the same case and device are
replaced. results/scale.md shows both.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import spatialdata
import torch
from accuracy import RESULTS, made, made_by, table
from anndata import AnnData
from scipy import sparse
from slides import count_decodes, write_slide

import hggep_sc as hggep

MPP = 0.5
KEYS = ["device", "threads", "image", "encoder_precision", "genes", "spacing_px", "spots"]
ARRAYS = {"Visium": (78, 64, 100.0, True), "Visium HD 8 um": (317, 317, 8.0, False)}  # rows, columns, um, hexagonal
ARRAY_KEYS = ["device", "threads", "array", "encoder_precision"]
ARRAY_GENES = 200
GIB = 2**30


def model(n_genes: int = 1000) -> "hggep.HGGEP":
    """Fit a default, briefly."""
    training = hggep.datasets.synthetic(n_sections=2, n_spots=60, n_genes=n_genes)
    how = {"genes": n_genes, "config": {"epochs": 2}, "progress": False}
    return hggep.tl.fit(training, **how)


def write_spatialdata(path: Path, side: int) -> None:
    """Write a SpatialData of one multi-scale image of noise."""
    from dask import array
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    pixels = array.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8, chunks=(3, 1024, 1024))
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=[4, 4], chunks=(3, 512, 512))
    SpatialData(images={"slide": image}).write(path)


def one(n_spots: int, spacing: int, genes: int, image: str, device: str) -> dict[str, object]:
    """Predict a slide of so many spots in this process."""
    fitted = model(genes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"slide.{image}"
        side = round(n_spots**0.5 * spacing)
        with ProcessPoolExecutor(1, get_context("spawn")) as writer:  # whose memory is not the prediction's
            writer.submit({"tif": write_slide, "zarr": write_spatialdata}[image], path, side).result()
        data = path if image == "tif" else spatialdata.read_zarr(path)
        everywhere = hggep.pp.TissueMask(np.ones((1, 1), dtype=bool), np.array([side, side]), MPP)
        started = time.perf_counter()
        slide = hggep.pp.tile(data, spacing_um=spacing * MPP, mpp=MPP, model=fitted, tissue=everywhere)
        slide = data if slide is None else slide
        tiled, decodes = time.perf_counter(), count_decodes()
        hggep.tl.predict(slide, fitted, device=device, progress=False)
        done = time.perf_counter()
    return {
        **on(device),
        "image": image,
        "encoder_precision": hggep.settings.encoder_precision,
        "genes": genes,
        "spacing_px": spacing,
        "spots": slide.n_obs,
        "tile_s": tiled - started,
        "predict_s": done - tiled,
        "ms_a_spot": 1e3 * (done - started) / slide.n_obs,
        "image_gib": 3 * side**2 / GIB,
        "decodes_a_tile": decodes.total() / len(decodes) if decodes else float("nan"),
        **memory(device),
    }


def section_of(array: str, path: Path) -> AnnData:
    """Write a slide, and lay an array's spots over it, with counts."""
    n_rows, n_columns, pitch_um, hexagonal = ARRAYS[array]
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    pitch = pitch_um / MPP
    x = (column + 0.5 + hexagonal * (row % 2) / 2) * pitch
    y = (row + 0.5) * pitch * (3**0.5 / 2 if hexagonal else 1)
    write_slide(path, round(max(x.max(), y.max()) + pitch))
    counts = np.random.default_rng(0).poisson(2, (len(row), ARRAY_GENES)).astype(np.float32)
    section = AnnData(sparse.csr_matrix(counts))
    section.obsm["spatial"] = np.column_stack([x, y])
    factors = {"microns_per_pixel": MPP, "spot_diameter_fullres": 0.55 * pitch if hexagonal else pitch}
    section.uns["spatial"] = {
        array: {"images": {}, "scalefactors": factors, "metadata": {"source_image_path": str(path)}}
    }
    return section


def one_array(array: str, device: str) -> dict[str, object]:
    """Fit to two arrays in this process, and predict one."""
    with tempfile.TemporaryDirectory() as folder:
        sections = {name: section_of(array, Path(folder) / f"{name}.tif") for name in ("one", "other")}
        section = sections["one"]
        started = time.perf_counter()
        fitted = hggep.tl.fit(sections, genes=ARRAY_GENES, device=device, progress=False)
        trained = time.perf_counter()
        hggep.tl.predict(section, fitted, device=device, progress=False)
        done = time.perf_counter()
    return {
        **on(device),
        "array": array,
        "encoder_precision": hggep.settings.encoder_precision,
        "spots_each": section.n_obs,
        "fit_s": trained - started,
        "predict_s": done - trained,
        **memory(device),
    }


def on(device: str) -> dict[str, object]:
    """Name the device, and the threads of the CPU."""
    name = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else "cpu"
    return {"device": name, "threads": torch.get_num_threads()}


def memory(device: str) -> dict[str, float]:
    """Peaks of this process so far."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return {
        "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "gpu_gib": torch.cuda.max_memory_allocated() / GIB if on_gpu else 0.0,
    }


def growth(rows: pd.DataFrame) -> pd.DataFrame:
    """Time and host memory of each size over those of the size before."""
    parts = []
    for _, same in rows.groupby(KEYS[:-1]):
        same = same.sort_values("spots")
        part = same[["device", "image", "encoder_precision", "genes", "spacing_px"]].copy()
        part["from"], part["to"] = same["spots"].shift(), same["spots"]
        part["spots x"] = same["spots"] / same["spots"].shift()
        part["time x"] = (same["tile_s"] + same["predict_s"]) / (same["tile_s"] + same["predict_s"]).shift()
        part["host memory x"] = same["host_gib"] / same["host_gib"].shift()
        parts.append(part.dropna())
    return pd.concat(parts)


def main() -> None:
    """Run the sizes named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", nargs="+", type=int, default=[2_500, 10_000, 40_000])
    parser.add_argument("--spacing", type=int, default=200, help="px between spots")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--image", choices=["tif", "zarr"], default="tif", help="the file that it is read from")
    parser.add_argument("--arrays", nargs="*", choices=ARRAYS, help="arrays instead of slides; all where none is named")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="of the encoder")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    hggep.settings.encoder_precision = options.precision
    if options.one:
        (array,) = options.arrays or (None,)
        slide = (options.spots[0], options.spacing, options.genes, options.image)
        print(json.dumps(one(*slide, options.device) if array is None else one_array(array, options.device)))
        return
    if options.arrays is None:
        layout = ["--spacing", str(options.spacing), "--image", options.image]
        layout += ["--genes", str(options.genes)]
        cases, file, keys = [["--spots", str(n), *layout] for n in options.spots], "scale.csv", KEYS
    else:
        cases, file, keys = [["--arrays", name] for name in options.arrays or ARRAYS], "scale_arrays.csv", ARRAY_KEYS
    rows, precision = [], ["--precision", options.precision]
    for case in cases:
        command = [sys.executable, __file__, "--one", "--device", options.device, *precision, *case]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(rows[-1], flush=True)
    found = pd.DataFrame(rows).assign(**made_by())
    if (RESULTS / file).exists():
        found = pd.concat([pd.read_csv(RESULTS / file), found]).drop_duplicates(keys, keep="last").sort_values(keys)
    found.to_csv(RESULTS / file, index=False, float_format="%.4f")
    (RESULTS / "scale.md").write_text(report())
    print(report())


def report() -> str:
    """Return what has been measured so far, on this and other machines, as Markdown."""
    text = ["# A slide from its image to the predicted layer", ""]
    if (RESULTS / "scale.csv").exists():
        slides = pd.read_csv(RESULTS / "scale.csv")
        shown = slides.drop(columns=[*made_by()]).set_index("device")
        text += [table(shown), "", "Growth:", "", table(growth(slides).set_index("device")), ""]
        text += [f'`preset="default"`. {made(slides)}.', ""]
    if (RESULTS / "scale_arrays.csv").exists():
        arrays = pd.read_csv(RESULTS / "scale_arrays.csv")
        shown = arrays.drop(columns=[*made_by()]).set_index("device")
        text += ["Fit to two sections of all spots of an array, and prediction of one:", "", table(shown), ""]
        text += [f'`preset="default"`, {ARRAY_GENES} genes. {made(arrays)}.', ""]
    text += ["Host memory: peak of the whole process, Python and libraries with it.", ""]
    return "\n".join(text)


if __name__ == "__main__":
    main()
