"""How far a model's own word may be trusted: reliability and uncertainty against what held-out sections show.

    python benchmarks/confidence.py                 # her2st and mob
    python benchmarks/confidence.py her2st --seeds 0 1 2

Leave one section out, by `preset="default"`. The model of each fold says beforehand which genes it predicts well
(`var["..._reliability"]`) and at which spots it errs more (`obs["..._uncertainty"]`), from its training sections
alone; here both are compared with the section that it never saw.

Needs HGGEP_SHARED. Folds that accuracy.py has stored in `--store` are read, not run. Writes results/confidence.csv and
.md beside this file.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from accuracy import DATA, METHODS, RESULTS, load, parse, table, weights_of
from scipy.stats import spearmanr

import hggep_sc as hggep
from hggep_sc.metrics import pearson
from hggep_sc.section import observed_counts
from hggep_sc.section.expression import ExpressionScale
from hggep_sc.training.confidence import excess_variance

if TYPE_CHECKING:
    from anndata import AnnData

MOST = 100  # genes called most and least reliable
QUARTERS = [f"quarter {i}" for i in (1, 2, 3, 4)]  # of the spots, by uncertainty
GENES = ["rho, genes", f"{MOST} most reliable", "all genes", f"{MOST} least reliable"]
SPOTS = ["rho, excess", "rho, RMSE", "rho, excess at its depth", "rho, RMSE at its depth"]
SIZES = ["predicted", "found", *QUARTERS]


def figures(adata: "AnnData", key: str) -> dict[str, float]:
    """Compare one section's reliability and uncertainty with its counts."""
    part = hggep.get.prediction(adata, key=key)
    scale = ExpressionScale.of_record(adata.uns[key])
    rows = adata.obs_names.get_indexer(part.obs_names)
    counts, library = observed_counts(adata, rows, part.var_names.tolist(), None)
    totals = scale.totals(counts, library)
    seen = totals > 0
    counts, totals = counts[seen], totals[seen]
    predicted, observed = part.X[seen] * scale.log_unit, scale.transform(counts, totals) * scale.log_unit
    return {
        **of_genes(part.var[f"{key}_reliability"].to_numpy(), pearson(predicted, observed)),
        **of_spots(
            part.obs[f"{key}_uncertainty"].to_numpy()[seen],
            excess_variance(predicted, observed, counts.toarray(), totals, scale),
            ((predicted - predicted.mean(0) - observed + observed.mean(0)) ** 2).mean(1) ** 0.5,
            totals,
        ),
    }


def of_genes(reliability: np.ndarray, pcc: np.ndarray) -> dict[str, float]:
    """Rank correlation over genes, and the PCC reached by those called best and worst."""
    known = np.isfinite(reliability) & np.isfinite(pcc)
    reached = pcc[known][np.argsort(-reliability[known], kind="stable")]
    rho = spearmanr(reliability[known], pcc[known])[0]
    return dict(zip(GENES, [rho, reached[:MOST].mean(), reached.mean(), reached[-MOST:].mean()], strict=True))


def of_spots(uncertainty: np.ndarray, excess: np.ndarray, rmse: np.ndarray, totals: np.ndarray) -> dict[str, float]:
    """Rank correlations over spots with their errors, and the size of the errors against what was told."""
    depth = np.log(totals)
    at_depth = [error - np.polynomial.Polynomial.fit(depth, error, 3)(depth) for error in (excess, np.log(rmse))]
    ranks = [spearmanr(uncertainty, error)[0] for error in (excess, rmse, *at_depth)]
    quarters = [part.mean() for part in np.array_split(excess[np.argsort(uncertainty, kind="stable")], 4)]
    sizes = [(uncertainty.astype(float) ** 2).mean(), excess.mean(), *quarters]
    return dict(zip([*SPOTS, *SIZES], [*ranks, *sizes], strict=True))


def markdown(rows: pd.DataFrame) -> str:
    """Tables per data set; folds in rows, seeds averaged, and their mean."""
    seeds = " ".join(map(str, sorted(rows["seed"].unique())))
    parts = ["# Reliability and uncertainty against held-out sections", ""]
    parts += [f'Leave one section out, `preset="default"`, seeds {seeds} averaged.']
    what = {
        "Genes: Spearman's correlation of reliability with the PCC reached on the section; mean PCC of the "
        f"{MOST} genes called most reliable, of all, and of the least:": GENES,
        "Spots: Spearman's correlation of uncertainty with the excess error (beyond counting noise), with the spot's "
        "RMSE over genes, and with both less what a cubic in log depth tells of them:": SPOTS,
        "Size: mean excess variance as told (uncertainty squared) and as found; found in each quarter of the spots, "
        "from the least uncertain to the most:": SIZES,
    }
    for data, of_data in rows.groupby("data", sort=False):
        parts += ["", f"## {data}"]
        mean = of_data.groupby("fold", sort=False)[[*GENES, *SPOTS, *SIZES]].mean()
        mean.loc["mean"] = mean.mean()
        for text, columns in what.items():
            parts += ["", text, "", table(mean[columns])]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Run the data sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"{', '.join(DATA)}; all where none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--store", type=Path, default=Path(__file__).parent / "folds", help="folder of finished folds")
    options, shared = parse(parser)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    rows = []
    for data in options.data or DATA:
        sections, how = load(data, shared)
        result = hggep.tl.cross_validate(
            sections,
            methods={"default": METHODS["default"]},
            seeds=options.seeds,
            weights=weights_of(METHODS["default"], shared),
            path=options.store,
            device=options.device,
            key_added="cv",
            **how,
        )
        for _, run in result.folds[result.folds["error"] == ""].iterrows():
            key = "cv_default" + (f"_{run['seed']}" if len(options.seeds) > 1 else "")
            rows.append({"data": data, "fold": run["fold"], "seed": run["seed"]} | figures(sections[run["fold"]], key))
    found = pd.DataFrame(rows)
    found.to_csv(RESULTS / "confidence.csv", index=False, float_format="%.5f")
    (RESULTS / "confidence.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
