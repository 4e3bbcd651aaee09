"""The published rivals beside HGGEP, leave one section out: same sections, genes and expression scale for all.

    python benchmarks/rivals.py                                  # what two cores can do: equal eyes, five folds and mob
    python benchmarks/rivals.py her2st --methods histogene --folds B4 C2       # as specified, about an hour on one core
    python benchmarks/rivals.py her2st --methods stnet hist2st thitogene bleep deeppt --device cuda   # wants a GPU

Methods that end in `_equal` see through the encoder of HGGEP's default (EfficientNet-Lite0, frozen) in the place of
their own backbone: what an idea is worth on equal eyes. HisToGene, Hist2ST and THItoGene have no backbone to exchange.
All others are as their papers and codes specify them, with all epochs, which are fixed beforehand or chosen inside the
training sections. ST-Net, BLEEP and DeepPT then start from ImageNet weights, which are downloaded once. Counts are
scaled by panel (her2st) or library (mob) for all of them; each keeps the base of its logarithm, which no correlation
sees. ST-Net learns this scale, too; `stnet_equal_shares` learns log shares, as its authors have it, which are brought
to the scale in prediction. HGGEP and the ridges are those of accuracy.py, and are run there; their rows are set beside
these.

Every finished fold is kept in `--store`, and not run again. After each method results/rivals.csv and .md beside this
file are renewed: rows of this run replace those of the same fold, method and seed. `--figure` draws results/rivals.png,
the paper's Figures 2 and 3, of the folds that are in the store, beside the published means.

Needs HGGEP_SHARED, the folder of real sections (`data`) and of the published figures (`reference`).
"""

import argparse
import logging
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from accuracy import DATA, KEYS, RESULTS, load, parse, rows_of, table

import hggep_sc as hggep

LITE0 = {"encoder": "efficientnet_lite0"}
EQUAL = {f"{name}_equal": {"method": name, **LITE0} for name in ("stnet", "bleep", "deeppt")}
EQUAL["stnet_equal_shares"] = {"method": "stnet", **LITE0, "config": {"smoothed": True}}
SPECIFIED = {name: {"method": name} for name in ("stnet", "histogene", "hist2st", "thitogene", "bleep", "deeppt")}
METHODS = {**EQUAL, **SPECIFIED}
BESIDE = ["ridge", "low_rank_ridge", "default", "default_trunk", "paper", "published, 50 epochs"]  # of accuracy.py
PUBLISHED = {"her2": "her2st"}


def published(shared: Path) -> pd.DataFrame:
    """Return the mean PCC that the paper's authors give for each section, as `pl.metrics(reference=)` takes it.

    "STNet" there is in all likelihood another network than ST-Net's own (docs/rivals.md).
    """
    found = pd.read_csv(shared / "reference" / "published_pcc.csv")
    found = found[found["dataset"].isin(PUBLISHED)]
    return found.rename(columns={"mean_pcc": "value"}).assign(method=found["method"] + ", published")


def markdown(rows: pd.DataFrame, of_accuracy: pd.DataFrame) -> str:
    """Mean PCC by fold, times, and what is missing."""
    parts = ["# The rivals, leave one section out", "", "Mean over genes of the PCC across spots; seeds averaged."]
    for data in DATA:
        beside = of_accuracy[of_accuracy["method"].isin(BESIDE)]
        of_data = pd.concat([beside, rows])
        of_data = of_data[(of_data["data"] == data) & (of_data["error"] == "")]
        pcc = of_data.pivot_table(index="method", columns="fold", values="pcc", sort=False, dropna=False)
        pcc = pcc.reindex(columns=DATA[data])
        pcc["mean"] = pcc.mean(axis=1, skipna=False)
        pcc.loc["noise ceiling"] = of_data.groupby("fold")["ceiling"].mean().reindex(pcc.columns)
        times = of_data.groupby("method", sort=False)[["epochs", "fit_s", "predict_s"]].mean()
        missing = {
            name: [fold for fold in DATA[data] if fold not in set(of_data.loc[of_data["method"] == name, "fold"])]
            for name in METHODS
        }
        unrun = [f"{name} on {' '.join(folds)}" for name, folds in missing.items() if folds]
        parts += ["", f"## {data}", "", table(pcc), "", "Times in seconds, of one fold:", "", table(times)]
        parts += ["", f"Not run: {'; '.join(unrun)}."] if unrun else []
    kinds = rows[["hggep_sc", "torch", "python", "device"]].drop_duplicates().to_numpy()
    versions = "; ".join(f"hggep_sc {own}, torch {torch}, Python {python}, {on}" for own, torch, python, on in kinds)
    parts += ["", f"{versions}. Times are as measured, also beside other work on the same cores."]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Run the data sets and methods named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"{', '.join(DATA)}; all where none is named")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*EQUAL])
    parser.add_argument("--folds", nargs="+", help="sections to leave out; all where none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--store", type=Path, default=Path(__file__).parent / "folds", help="folder of finished folds")
    parser.add_argument("--figure", action="store_true", help="draw results/rivals.png of these methods")
    options, shared = parse(parser)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    RESULTS.mkdir(exist_ok=True)
    csv, results = RESULTS / "rivals.csv", []
    for data in options.data or DATA:
        sections, how = load(data, shared)
        for name in options.methods:
            result = hggep.tl.cross_validate(
                sections,
                methods={name: METHODS[name]},
                only=options.folds,
                seeds=options.seeds,
                path=options.store,
                device=options.device,
                **how,
            )
            results.append(result.table.assign(data=data))
            of_data = rows_of(data, result)
            print(of_data[["fold", "method", "pcc", "ceiling", "fit_s", "error"]].to_string(), flush=True)
            # read again: another run may have added to them meanwhile
            rows = pd.read_csv(csv).fillna({"error": ""}) if csv.exists() else pd.DataFrame()
            rows = pd.concat([rows, of_data], ignore_index=True).drop_duplicates(KEYS, keep="last")
            order = [rows["method"].map([*METHODS].index), rows["data"].map([*DATA].index)]
            rows = rows.iloc[np.lexsort(order)]
            rows.to_csv(csv, index=False, float_format="%.5f")
            of_accuracy = pd.read_csv(RESULTS / "accuracy.csv").fillna({"error": ""})
            (RESULTS / "rivals.md").write_text(markdown(rows, of_accuracy))
    if options.figure:
        matplotlib.use("Agg")
        scores = pd.concat(results)
        scores = scores[scores["data"] == "her2st"].drop(columns="data")
        ax = hggep.pl.metrics(scores, reference=published(shared))
        ax.figure.savefig(RESULTS / "rivals.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
