"""What measured spots are worth: a prediction corrected by some spots' counts, scored at the others.

    python benchmarks/measured.py                                # low-rank ridge, her2st and mob
    python benchmarks/measured.py mob --methods default

Leave one section out, as accuracy.py does. Of the section left out 2, 5, 10 or 25 % of the spots are measured, drawn at
random or as one block (the spots nearest to one of them), three draws of each. Compared at the spots that are not
measured, by the mean over genes of Pearson's correlation: the prediction as it is, corrected by the measured spots
(`tl.predict(measured=)`), and two that see no image: kriging, which is the same correction of a constant, and the mean
of the k nearest measured spots, k of 1, 3, 5, 10 and 20 being the one that does best there.

The uncertainty is compared with the error beyond counting noise, as confidence.py does.

Needs HGGEP_SHARED. Folds that accuracy.py has stored in `--store` are read, not run. Writes results/measured.csv and
.md beside this file.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from accuracy import DATA, METHODS, RESULTS, load, parse, table, weights_of
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

import hggep_sc as hggep
from hggep_sc.metrics import pearson
from hggep_sc.prediction.measured import LEAST, Measured, corrected
from hggep_sc.section import observed_counts
from hggep_sc.section.expression import ExpressionScale
from hggep_sc.training.confidence import excess_variance

if TYPE_CHECKING:
    from anndata import AnnData

SHARES = [0.02, 0.05, 0.10, 0.25]
NEIGHBOURS = [1, 3, 5, 10, 20]
RIVALS = ["plain", "kriging", "nearest"]
PCC = ["corrected", *RIVALS]
ERRORS = ["RMSE, corrected", "RMSE, plain", "rho, excess", "told", "found", "found, nearest half", "told, nearest half"]


def draw(xy: np.ndarray, share: float, shape: str, seed: int) -> np.ndarray:
    """Return which spots are measured, (n,) bool."""
    random, n = np.random.default_rng(seed), max(round(share * len(xy)), LEAST)
    chosen = np.zeros(len(xy), dtype=bool)
    if shape == "random":
        chosen[random.choice(len(xy), n, replace=False)] = True
    else:
        distance = np.linalg.norm(xy - xy[random.integers(len(xy))], axis=1)
        chosen[np.argsort(distance, kind="stable")[:n]] = True
    return chosen


def figures(adata: "AnnData", key: str, seeds: range) -> list[dict[str, object]]:
    """Correct one section's prediction by each draw of measured spots, and score it at the others."""
    part = hggep.get.prediction(adata, key=key)
    scale = ExpressionScale.of_record(adata.uns[key])
    rows = adata.obs_names.get_indexer(part.obs_names)
    counts, library = observed_counts(adata, rows, part.var_names.tolist(), None)
    totals = scale.totals(counts, library)
    seen = totals > 0
    counts, totals, xy = counts[seen], totals[seen], part.obsm["spatial"][seen]
    predicted, observed = part.X[seen], scale.transform(counts, totals)
    found = []
    for shape in ("random", "block"):
        for share in SHARES:
            for seed in seeds:
                measured = draw(xy, share, shape, seed)
                at, others = np.flatnonzero(measured), ~measured
                given = (xy, Measured(at, counts[at], totals[at]), scale)
                better = corrected(predicted, *given)
                constant = np.broadcast_to(observed[at].mean(0), predicted.shape)
                nearest = np.argsort(cdist(xy[others], xy[at]), axis=1, kind="stable")
                near = [observed[at][nearest[:, :k]].mean(1) for k in NEIGHBOURS if k <= len(at)]

                def pcc(values: np.ndarray, spots: np.ndarray = others) -> float:
                    return float(np.nanmean(pearson(values, observed[spots])))

                excess = excess_variance(
                    better.expression[others], observed[others], counts[others].toarray(), totals[others], scale
                )
                told = better.uncertainty[others].astype(float) ** 2
                distance = cdist(xy[others], xy[at]).min(1)
                close = distance <= np.median(distance)
                found.append(
                    {
                        "spots": shape,
                        "share": share,
                        "draw": seed,
                        "n_measured": len(at),
                        "corrected": pcc(better.expression[others]),
                        "plain": pcc(predicted[others]),
                        "kriging": pcc(corrected(constant, *given).expression[others]),
                        "nearest": max(pcc(values) for values in near if np.ptp(values, axis=0).any()),
                        "RMSE, corrected": np.sqrt(np.square(better.expression - observed)[others].mean()),
                        "RMSE, plain": np.sqrt(np.square(predicted - observed)[others].mean()),
                        "rho, excess": spearmanr(told, excess)[0],
                        "told": told.mean(),
                        "found": excess.mean(),
                        "told, nearest half": told[close].mean(),
                        "found, nearest half": excess[close].mean(),
                    }
                )
    return found


def markdown(rows: pd.DataFrame) -> str:
    """Tables per method and data set: means over folds and draws, and in how many folds each rival is beaten."""
    parts = ["# Measured spots as context", ""]
    parts += [
        "Leave one section out; mean over genes of the PCC across the spots that are not measured, of "
        f"{rows['draw'].nunique()} draws per fold. `beats`: in how many folds the mean of the draws is above."
    ]
    for (method, data), of_data in rows.groupby(["method", "data"], sort=False):
        folds = of_data.groupby(["spots", "share", "fold"], sort=False)[[*PCC, *ERRORS]].mean()
        mean = folds.groupby(["spots", "share"], sort=False).mean()
        above = folds[RIVALS].lt(folds["corrected"], axis=0).groupby(["spots", "share"], sort=False).sum()
        shown = mean[PCC].copy()
        n = of_data["fold"].nunique()
        for name in RIVALS:
            shown[f"beats {name}"] = [f"{count} of {n}" for count in above[name]]
        by_fold = of_data.pivot_table(index=["spots", "share"], columns="fold", values="corrected", sort=False)
        plain = of_data.pivot_table(index=["spots", "share"], columns="fold", values="plain", sort=False)
        parts += ["", f"## {method}, {data}", "", table(shown), "", "Gain over the plain prediction, by fold:", ""]
        parts += [
            table(by_fold - plain),
            "",
            "Errors and what is told of them, at the spots that are not measured:",
            "",
        ]
        parts += [table(mean[ERRORS])]
    parts += [
        "",
        "`rho, excess`: Spearman's correlation of uncertainty with a spot's error beyond counting noise. `told`, "
        "`found`: mean square of the uncertainty and of that error, of all spots and of the half nearest to measured "
        "ones. Natural log units. The design was chosen on B4, C2 and MOB3 with low-rank ridge; its "
        "hyperparameters are found in each section from the measured spots alone.",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Run the data sets and methods named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"{', '.join(DATA)}; all where none is named")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["low_rank_ridge"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--store", type=Path, default=Path(__file__).parent / "folds", help="folder of finished folds")
    options, shared = parse(parser)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    csv = RESULTS / "measured.csv"
    for data in options.data or DATA:
        for method in options.methods:
            sections, how = load(data, shared)
            result = hggep.tl.cross_validate(
                sections,
                methods={method: METHODS[method]},
                weights=weights_of(METHODS[method], shared),
                path=options.store,
                device=options.device,
                key_added="cv",
                **how,
            )
            found = pd.DataFrame(
                {"data": data, "method": method, "fold": fold} | row
                for fold in result.folds.loc[result.folds["error"] == "", "fold"]
                for row in figures(sections[fold], f"cv_{method}", range(options.draws))
            )
            rows = pd.concat([pd.read_csv(csv) if csv.exists() else pd.DataFrame(), found], ignore_index=True)
            rows = rows.drop_duplicates(["data", "method", "fold", "spots", "share", "draw"], keep="last")
            rows.to_csv(csv, index=False, float_format="%.5f")
            (RESULTS / "measured.md").write_text(markdown(pd.read_csv(csv)))
    print(markdown(pd.read_csv(csv)))


if __name__ == "__main__":
    main()
