"""A slide from its image to the predicted layer: time and peak memory, and how they grow with the number of spots.

    python benchmarks/scale.py                                    # 2,500, 10,000 and 40,000 spots, one view a patch
    python benchmarks/scale.py --spots 10000 --views 8            # as `preset="default"` predicts
    python benchmarks/scale.py --spots 100000 --spacing 64 --views 8 --device cuda

Each size runs in a process of its own: a tiled, pyramidal JPEG TIFF is written (which is not timed), then
`pp.tile` and `tl.predict` are. Spots lie `--spacing` px of 0.5 um apart, so that the slide grows with their number. The
model is a `default` with random weights, 1,000 genes and a linear path: what it predicts is meaningless, its cost is
that of any other. Rows are added to results/scale.csv and .md beside this file; those of the same size, views and
device are replaced.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accuracy import RESULTS, table
from slides import write_slide

import hggep_sc as hggep

MPP = 0.5
KEYS = ["device", "threads", "views", "spacing_px", "spots"]
GIB = 2**30


def model() -> "hggep.HGGEP":
    """Fit a default, briefly, without pretrained weights."""
    training = hggep.datasets.synthetic(n_sections=2, n_spots=60, n_genes=1000)
    how = {"genes": 1000, "weights": None, "config": {"epochs": 2}, "progress": False}
    return hggep.tl.fit(training, **how)


def one(n_spots: int, spacing: int, views: int, device: str) -> dict[str, object]:
    """Predict a slide of so many spots in this process."""
    fitted = model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        side = round(n_spots**0.5 * spacing)
        write_slide(path, side)
        everywhere = hggep.pp.TissueMask(np.ones((1, 1), dtype=bool), np.array([side, side]), MPP)
        started = time.perf_counter()
        slide = hggep.pp.tile(path, spacing_um=spacing * MPP, mpp=MPP, model=fitted, tissue=everywhere)
        tiled = time.perf_counter()
        hggep.tl.predict(slide, fitted, device=device, average_flips=views == 8, progress=False)
        done = time.perf_counter()
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "views": views,
        "spacing_px": spacing,
        "spots": slide.n_obs,
        "tile_s": tiled - started,
        "predict_s": done - tiled,
        "ms_a_spot": 1e3 * (done - started) / slide.n_obs,
        "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "gpu_gib": torch.cuda.max_memory_allocated() / GIB if on_gpu else 0.0,
    }


def growth(rows: pd.DataFrame) -> pd.DataFrame:
    """Time and host memory of each size over those of the size before."""
    parts = []
    for _, same in rows.groupby(KEYS[:-1]):
        same = same.sort_values("spots")
        part = same[["device", "views"]].copy()
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
    parser.add_argument("--views", type=int, choices=[1, 8], default=1, help="flips and turns of each patch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.spots[0], options.spacing, options.views, options.device)))
        return
    rows = []
    for n_spots in options.spots:
        command = [sys.executable, __file__, "--one", "--spots", str(n_spots), "--spacing", str(options.spacing)]
        command += ["--views", str(options.views), "--device", options.device]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(rows[-1], flush=True)
    found = pd.DataFrame(rows)
    file = RESULTS / "scale.csv"
    if file.exists():
        found = pd.concat([pd.read_csv(file), found]).drop_duplicates(KEYS, keep="last").sort_values(KEYS)
    found.to_csv(file, index=False, float_format="%.4f")
    text = ["# A slide from its image to the predicted layer", "", table(found.set_index("device"))]
    text += ["", "Growth:", "", table(growth(found).set_index("device")), ""]
    text += [
        f'`preset="default"`, 1,000 genes. Host memory: peak of the whole process, Python and libraries with it. '
        f"{platform.machine()}; hggep_sc {hggep.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}."
    ]
    (RESULTS / "scale.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
