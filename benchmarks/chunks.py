"""What prediction in chunks changes, and how its time and memory grow with the section.

    HGGEP_SHARED=../shared python benchmarks/chunks.py
    HGGEP_SHARED=../shared python benchmarks/chunks.py --growth   # the other figures stay as they are

Real sections that fit one chunk are cut into small ones, with a halo and without, and compared with the whole, and so
is a real image with more spots than were sequenced, 80 um apart; sections of random features are predicted by a network
of the default's size. Writes results/chunks.csv, results/chunks_growth.csv and results/chunks.md beside this file.
"""

import argparse
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from anndata import AnnData
from scipy.spatial import KDTree

import hggep_sc as hggep
from hggep_sc.features.patches import fields_of_view
from hggep_sc.features.store import describe_section
from hggep_sc.metrics import pearson
from hggep_sc.nn import HGGEPNetwork
from hggep_sc.prediction.chunks import chunks_with_halo, predict_in_chunks, spatial_chunks
from hggep_sc.section import open_sections

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ["HGGEP_SHARED"])
SIZES = (64, 128, 256, 512)
DENSE_UM = 80.0  # between spots, whose fields of view overlap more than those of 200 um
SPOTS = (10_000, 40_000)
GENES = 300


def agreement(training: dict, name: str, section: object) -> list[dict[str, object]]:
    """Compare chunks of several sizes with the whole section, as predicted by a network fitted to others."""
    alone = {"cross_fit": False, "linear": False}  # the linear path does not know chunks
    model = hggep.tl.fit(training, genes=GENES, config=alone, device="cpu", progress=False)
    (opened,) = open_sections(section)
    fields, device = fields_of_view(model.config, model.mpp, opened.mpp), torch.device("cpu")
    xy, n = opened.xy, len(opened.xy)
    seen = describe_section(opened, model.encoder, fields, model.config.patch_size, device=device).encoded
    positions = torch.as_tensor(model.network.positions(opened)).float()

    def predict(spots: np.ndarray, size: int) -> np.ndarray:
        expression, _ = predict_in_chunks(
            model.network,
            seen[spots, None],
            xy[spots],
            positions[spots],
            model.config,
            name=name,
            max_spots=size,
        )
        return expression

    every = np.arange(n)
    whole = predict(every, n)
    near = KDTree(xy).query(xy, k=5)[1]
    pairs = np.column_stack([np.repeat(every, 4), near[:, 1:].ravel()])
    steps = np.abs(whole[pairs[:, 0]] - whole[pairs[:, 1]]).mean()
    table: list[dict[str, object]] = []
    for size in (size for size in SIZES if size < n):
        for halo in (False, True):
            expression, core_of = np.empty_like(whole), np.empty(n, dtype=int)
            parts = spatial_chunks(xy, size)
            if halo:
                chunks = chunks_with_halo(xy, np.ones(n, dtype=bool), size)
                expression, parts = predict(every, size), [chunk.spots[chunk.core] for chunk in chunks]
            for i, part in enumerate(parts):
                core_of[part] = i
                if not halo:
                    expression[part] = predict(part, size)
            error, r = expression - whole, pearson(expression, whole)
            across = pairs[core_of[pairs[:, 0]] != core_of[pairs[:, 1]]]
            table.append(
                {
                    "section": name,
                    "spots": n,
                    "chunk_spots": size,
                    "halo": halo,
                    "decoded_per_spot": len(parts) * size / n if halo else 1.0,
                    "median_r": float(np.median(r)),
                    "lowest_5_percent_r": float(np.quantile(r, 0.05)),
                    "seam": float(np.abs(error[across[:, 0]] - error[across[:, 1]]).mean() / steps),
                }
            )
            print(table[-1], flush=True)
    return table


def dense(section: AnnData) -> AnnData:
    """Lay spots over all of a section's tissue, more than were sequenced."""
    (opened,) = open_sections(section)
    return hggep.pp.tile(opened.image_name, spacing_um=DENSE_UM, mpp=opened.mpp)


def peak_memory() -> int:
    """Most bytes that this process held; unlike `ru_maxrss`, without those of the process that started it."""
    status = Path("/proc/self/status").read_text()  # Linux
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def growth(n: int) -> dict[str, object]:
    """CPU seconds and peaks of predicting n spots of a square array from random features."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = hggep.Config()
    network = HGGEPNetwork(config, 785, encoder=None, groups=(48, 96, 192), n_fields=4).eval()
    side = round(n**0.5)
    xy = 100.0 * np.argwhere(np.ones((side, side)))
    positions = torch.from_numpy(xy).float()

    with torch.inference_mode():
        network.decode(torch.rand(512, 4, 336), positions[:512])  # what a first call costs once
    features = torch.rand(len(xy), 1, 4, 336).numpy()
    before, started = psutil.Process().memory_info().rss, time.process_time()
    outputs = predict_in_chunks(network, features, xy, positions, config, name="random", max_spots=512)
    taken, results, peak = time.process_time() - started, sum(output.nbytes for output in outputs), peak_memory()
    return {
        "spots": len(xy),
        "seconds": taken,
        "peak_mib": peak / 2**20,
        "results_mib": results / 2**20,
        "held_mib": (peak - before - results) / 2**20,
        "features_mib": features.nbytes / 2**20,
    }


def markdown(table: pd.DataFrame) -> list[str]:
    rows = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in table.astype(object).to_numpy()]
    return [f"| {' | '.join(row)} |" for row in [[str(name) for name in table], ["---"] * table.shape[1], *rows]]


def report(compared: pd.DataFrame, grown: pd.DataFrame) -> str:
    few, many = grown.to_dict("records")
    return "\n".join(
        [
            "# Prediction in chunks",
            "",
            *markdown(compared),
            "",
            f"Pearson's r of chunks with the whole section, per gene over spots, of {GENES} genes; the networks of the "
            "default alone, fitted to the other sections of the tissue (C2, C3, C4; MOB1, MOB2). Spots of the dense "
            f"section lie {DENSE_UM:.0f} um apart over the image of B4. Without a halo a "
            "chunk is predicted by itself; with one, at most half of its spots are, and `decoded_per_spot` is what "
            "that costs. `seam` is how much chunks alter the difference between neighbours in different cores, over "
            "the mean difference between neighbours in the whole prediction.",
            "",
            "## Growth",
            "",
            *markdown(grown),
            "",
            f"From {min(SPOTS):,} to {max(SPOTS):,} spots, the time is {many['seconds'] / few['seconds']:.2f} times as "
            "much. Random features, one view, chunks of 512; CPU seconds of one thread. `held_mib` is what the "
            "prediction takes beyond features, results, model and libraries.",
            "",
            f"hggep_sc {hggep.__version__}, torch {torch.__version__}, NumPy {np.__version__}, Python "
            f"{platform.python_version()}, {platform.machine()}, {psutil.cpu_count()} cores.",
            "",
        ]
    )


def main() -> None:
    """Compare on both tissues, and measure growth, each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true", help="measure growth alone")
    if parser.parse_args().growth:
        compared = pd.read_csv(RESULTS / "chunks.csv")
    else:
        torch.set_num_threads(1)
        hggep.settings.dataset_dir = SHARED / "data"
        her2st, mob = hggep.datasets.her2st(["C2", "C3", "C4", "B4"]), hggep.datasets.mob()
        b4, mob3 = her2st.pop("B4"), mob.pop("MOB3")
        cases = [(her2st, "B4", b4), (her2st, "B4, dense", dense(b4)), (mob, "MOB3", mob3)]
        compared = pd.DataFrame([row for case in cases for row in agreement(*case)])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        grown = pd.DataFrame(list(pool.map(growth, SPOTS)))
    compared.to_csv(RESULTS / "chunks.csv", index=False, float_format="%.4g")
    grown.to_csv(RESULTS / "chunks_growth.csv", index=False, float_format="%.4g")
    (RESULTS / "chunks.md").write_text(report(compared, grown))
    print((RESULTS / "chunks.md").read_text())


if __name__ == "__main__":
    main()
