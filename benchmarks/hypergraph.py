"""Time and memory of the hypergraph, beside a loop over spots.

    python benchmarks/hypergraph.py

The loop (plain_hypergraph.py) is timed on some of the spots and scaled up; each number of spots has a process of its
own, so that peak memory is its own too. Writes results/hypergraph.csv and results/hypergraph.md beside this file.
"""

import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import plain_hypergraph
import psutil
import torch

import hggep_sc as hggep
from hggep_sc.nn.hypergraph import nearest_hyperedges

RESULTS = Path(__file__).parent / "results"
SIZES = (180, 1_000, 5_000, 20_000)
WIDTH, NEIGHBORS = 128, 6  # of the default preset
SUBSAMPLE = 40  # spots of the loop


def peak_memory() -> int:
    """Most bytes that this process held; unlike `ru_maxrss`, without those of the process that started it."""
    status = Path("/proc/self/status").read_text()  # Linux
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure(n: int) -> dict[str, float]:
    """Time both on n random spots, in CPU seconds of one thread, and check that they choose the same neighbours."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, WIDTH, generator=generator)
    positions = 100 * n**0.5 * torch.rand(n, 2, generator=generator)
    nearest_hyperedges(features[:64], positions[:64], NEIGHBORS)  # what a first call costs once
    before = psutil.Process().memory_info().rss
    repeats = max(5_000 // n, 1)
    started = time.process_time()
    for _ in range(repeats):
        edges = nearest_hyperedges(features, positions, NEIGHBORS)
    taken = (time.process_time() - started) / repeats
    peak = peak_memory()

    some = np.random.default_rng(0).choice(n, SUBSAMPLE, replace=False)
    plain_features, plain_positions = features.numpy(), positions.numpy()
    started = time.process_time()
    plain = [plain_hypergraph.hyperedge(i, plain_features, plain_positions, NEIGHBORS) for i in some]
    looped = (time.process_time() - started) * n / SUBSAMPLE
    members = edges[0].view(n, NEIGHBORS + 1).numpy()
    same = sum(set(members[i]) == set(expected) for i, expected in zip(some, plain, strict=True))
    return {
        "spots": n,
        "seconds": taken,
        "loop_seconds": looped,
        "times_faster": looped / taken,
        "peak_mib": max(peak - before, 0) / 2**20,
        "n_by_n_mib": 4 * n**2 / 2**20,
        "same_share": same / SUBSAMPLE,
    }


def main() -> None:
    """Measure every size, one after the other."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        table = pd.DataFrame(list(pool.map(measure, SIZES)))
    table.to_csv(RESULTS / "hypergraph.csv", index=False, float_format="%.4g")
    lines = [
        "| spots | seconds | loop, seconds | times faster | peak, MiB | one N x N matrix, MiB | same neighbours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.spots:,} | {row.seconds:.4f} | {row.loop_seconds:.2f} | {row.times_faster:.0f} | {row.peak_mib:.0f} "
        f"| {row.n_by_n_mib:,.1f} | {row.same_share:.0%} |"
        for row in table.itertuples()
    ]
    note = (
        f"Random features of width {WIDTH}, K = {NEIGHBORS}; peak memory beyond what the process held before. The "
        f"loop, timed on {SUBSAMPLE} spots and scaled up, chooses neighbours in double precision; the last column is "
        "the share of these spots whose hyperedge has the same members. CPU seconds of one thread, measured beside "
        f"other work. hggep_sc {hggep.__version__}, torch {torch.__version__}, NumPy {np.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, {psutil.cpu_count()} cores."
    )
    (RESULTS / "hypergraph.md").write_text("\n".join(["# Time of the hypergraph", "", *lines, "", note, ""]))
    print((RESULTS / "hypergraph.md").read_text())


if __name__ == "__main__":
    main()
