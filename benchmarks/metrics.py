"""Time of the figures of merit on a section of 5,000 spots and 15,000 genes, 10 % of whose counts are not zero.

    python benchmarks/metrics.py

Beside each figure: the time of a loop over genes that calls SciPy, scikit-image or NumPy for one gene at a time, on
some of the genes and scaled up. Writes results/metrics.csv and results/metrics.md beside this file.
"""

import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import scipy.sparse as sp
from scipy.stats import pearsonr, spearmanr
from skimage.metrics import structural_similarity

import hggep_sc as hggep
from hggep_sc import metrics

RESULTS = Path(__file__).parent / "results"
ROWS, COLUMNS, GENES, DENSITY = 50, 100, 15_000, 0.1
SUBSAMPLE = 40  # genes of the loop


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()  # of this process, whatever else the machine does
    work()
    return time.process_time() - started


def split_half(counts: np.ndarray, total: np.ndarray, rng: np.random.Generator) -> float:
    """Plain recipe for one gene: ten binomial splits, Pearson's r by SciPy, Spearman-Brown."""
    r = []
    for _ in range(10):
        part = rng.binomial(counts, 0.5)
        halves = [np.log1p(2e4 * half / total) for half in (part, counts - part)]
        r.append(pearsonr(*halves).statistic)
    return 2 * np.mean(r) / (1 + np.mean(r))


def main() -> None:
    """Time every figure, and the loops."""
    rng = np.random.default_rng(0)
    n_spots = ROWS * COLUMNS
    rows, columns = np.divmod(np.arange(n_spots), COLUMNS)
    places = np.column_stack([columns, rows])
    counts = sp.random_array((n_spots, GENES), density=DENSITY, format="csr", rng=rng, dtype=np.float32)
    counts.data = 1 + rng.poisson(0.7, counts.nnz).astype(np.float32)
    total = counts.sum(axis=1)
    observed = sp.csr_array(sp.diags_array(1e4 / total) @ counts).log1p()
    predicted = rng.normal(size=(n_spots, GENES)).astype(np.float32)
    r = metrics.pearson(predicted, observed)

    some = rng.choice(GENES, SUBSAMPLE, replace=False)
    by_gene, counts_by_gene = observed.tocsc(), counts.tocsc()

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for j in some:
            yield predicted[:, j].astype(float), by_gene[:, [j]].toarray().ravel().astype(float)

    def whole() -> Iterator[np.ndarray]:
        for j in some:
            yield counts_by_gene[:, [j]].toarray().ravel().astype(int)

    def image(values: np.ndarray) -> np.ndarray:
        return values.reshape(ROWS, COLUMNS)

    figures = {
        "pearson": (
            lambda: metrics.pearson(predicted, observed),
            lambda: [pearsonr(p, o).statistic for p, o in pairs()],
        ),
        "pearson_log_pvalues": (
            lambda: metrics.pearson_log_pvalues(r, n_spots),
            lambda: [pearsonr(p, o).pvalue for p, o in pairs()],
        ),
        "spearman": (
            lambda: metrics.spearman(predicted, observed),
            lambda: [spearmanr(p, o).statistic for p, o in pairs()],
        ),
        "rmse": (
            lambda: metrics.rmse(predicted, observed),
            lambda: [np.sqrt(np.mean((p - o) ** 2)) for p, o in pairs()],
        ),
        "ssim": (
            lambda: metrics.ssim(predicted, observed, places),
            lambda: [structural_similarity(image(p), image(o), data_range=np.ptp(o)) for p, o in pairs()],
        ),
        "noise_ceiling": (
            lambda: metrics.noise_ceiling(counts),
            lambda: [split_half(gene, total, rng) for gene in whole()],
        ),
    }
    table = []
    for name, (ours, loop) in figures.items():
        taken, looped = seconds(ours), seconds(loop) * GENES / SUBSAMPLE
        table.append({"figure": name, "seconds": taken, "loop_seconds": looped, "times_faster": looped / taken})
        print(table[-1], flush=True)
    result = pd.DataFrame(table)
    result.to_csv(RESULTS / "metrics.csv", index=False, float_format="%.3f")
    lines = [" | ".join(row) for row in [list(result), ["---"] * 4]]
    lines += [
        f"{row.figure} | {row.seconds:.2f} | {row.loop_seconds:.1f} | {row.times_faster:.1f}"
        for row in result.itertuples()
    ]
    body = "\n".join(f"| {line} |" for line in lines)
    versions = f"SciPy {scipy.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    note = (
        f"{n_spots} spots x {GENES} genes, {DENSITY:.0%} of the counts not zero; loops timed on {SUBSAMPLE} genes and "
        "scaled up. CPU seconds of one thread, measured beside other work on the same two cores. "
        f"hggep_sc {hggep.__version__}, {versions}."
    )
    (RESULTS / "metrics.md").write_text(f"# Time of the figures of merit\n\n{body}\n\n{note}\n")
    print((RESULTS / "metrics.md").read_text())


if __name__ == "__main__":
    main()
