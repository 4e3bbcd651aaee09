"""How far evaluation can be trusted: the noise ceiling and the spatially aware null, where the truth is known.

    python benchmarks/trust.py

Ceiling: counts are simulated (30 genes), so that what a perfect predictor reaches is known; beside it
the plain correction of Spearman and Brown. Null: of 100 pairs of unrelated smooth domain maps, how many are called
significant at 0.05 when one is moved over the section, and when its spots are shuffled. The simulations are those of
the tests. Needs HGGEP_SHARED, the folder of real sections (`data`), for the outline of one. Writes results/trust.md.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from hggep_sc import __version__
from hggep_sc.evaluation.spatial_null import agreement_pvalues, moved_maps
from hggep_sc.metrics import noise_ceiling

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_spatial_null import disc, section_outline, smooth_domains

from test_metrics import simulate, split_half

RESULTS = Path(__file__).parent / "results"


def ceiling(depth: int, n_spots: int) -> dict[str, float]:
    """Errors of the ceiling at one depth, over the genes with a split-half correlation above 0.1, and the others."""
    counts, library, attainable = simulate(depth, n_spots)
    r = np.mean([split_half(counts, library, seed) for seed in range(3)], axis=0)
    clear = r > 0.1
    error = noise_ceiling(counts, library=library, n_splits=5) - attainable
    spearman_brown = np.sqrt(2 * r[clear] / (1 + r[clear])) - attainable[clear]
    return {
        "spots": n_spots,
        "counts per spot": depth,
        "genes with r > 0.1": int(clear.sum()),
        "mean error": error[clear].mean(),
        "mean absolute error": np.abs(error[clear]).mean(),
        "largest": np.abs(error[clear]).max(),
        "of them within 0.03": (np.abs(error[clear]) <= 0.03).mean(),
        "mean error of the others": error[~clear].mean(),
        "Spearman-Brown, mean error": spearman_brown.mean(),
    }


def null(name: str, xy: np.ndarray, n_domains: int, length: float) -> dict[str, object]:
    """How many of 100 unrelated pairs, and of 100 half-redrawn copies, are called significant."""
    rng = np.random.default_rng(5)
    a, b = (smooth_domains(xy, length, n_domains, rng, 100) for _ in range(2))
    copies = np.where(rng.random(a.shape) < 0.5, rng.integers(n_domains, size=a.shape), a)
    moved = moved_maps(xy, 199, seed=0)
    shuffled = rng.permuted(np.tile(np.arange(len(xy)), (199, 1)), axis=1)
    row: dict[str, object] = {"section": name, "spots": len(xy), "domains": n_domains, "length": length}
    for what, others, maps in (("moved", b, moved), ("shuffled", b, shuffled), ("moved, copies", copies, moved)):
        p = np.array([agreement_pvalues(x[None], y, maps) for x, y in zip(a, others, strict=True)])
        row |= {f"{what}: {figure}": int(n) for figure, n in zip(("ARI", "NMI"), (p <= 0.05).sum(axis=0), strict=True)}
    return row


def table(rows: list[dict]) -> str:
    """Markdown."""
    frame = pd.DataFrame(rows)
    lines = [" | ".join(map(str, row)) for row in [frame.columns, ["---"] * frame.shape[1]]]
    lines += [" | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row) for row in frame.to_numpy(object)]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Run both."""
    if "HGGEP_SHARED" not in os.environ:
        sys.exit("HGGEP_SHARED is not set: it names the folder of real sections")
    outlines = {
        "her2st C2": section_outline(Path(os.environ["HGGEP_SHARED"]), "C2"),
        "hexagonal disc": disc([25, 22], 13),
    }
    ceilings = [ceiling(depth, n) for n in (10_000, 100_000) for depth in (300, 1000, 3000)]
    nulls = [null(name, xy, k, length) for name, xy in outlines.items() for k in (2, 5) for length in (0.15, 0.3, 0.6)]
    text = (
        f"# Trust in the figures\n\n## Noise ceiling\n\n{table(ceilings)}\n\n## Null of domains\n\n{table(nulls)}\n\n"
        "Of 100 each, significant at 0.05. Lengths are of the fields that the domains are the largest of, in radii of "
        f"gyration; copies have half of their spots drawn anew. hggep_sc {__version__}, NumPy {np.__version__}.\n"
    )
    (RESULTS / "trust.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
