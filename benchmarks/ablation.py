"""What each part of the default's networks earns: the paper's Figure 4 on real sections, one part changed at a time.

The networks are alone here, without the linear path and what is learnt from sections that are left out, which parts.py
sets apart.

    python benchmarks/ablation.py              # one seed
    python benchmarks/ablation.py --seeds 0 1 2
    python benchmarks/ablation.py --pixels     # parts that look at pixels, about an hour on one core

Leave one section out of B4, C2, C3, C4, C5 of her2st, as in accuracy.py. Parts that look at pixels (GEM, CBAM, a
backbone that learns) are HGGEP's own encoder's, the ShuffleNet, and cost a hundred times the rest on a CPU: they are
compared at two fields of view and eight epochs, with a frozen ShuffleNet at the same and one network.

Needs HGGEP_SHARED. Finished folds are kept in `--store`; results/ablation.csv, .md and .png are renewed at the end, or
those of ablation_pixels.
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd
from accuracy import RESULTS, TRUNK, load, parse, table

import hggep_sc as hggep

SHORT = {
    "fields_um": (80.0, 240.0),
    "fields_px": (112.0, 336.0),
    "epochs": 8,
    "feature_shift": 0.0,  # of a frozen encoder alone
    "stain_jitter": 0.0,  # of one that learns
}
ONE_FIELD = {"fields_um": (80.0,), "fields_px": (112.0,)}
PARTS = {
    "default": {},
    "no ViT": {"vit": False},
    "no HAM": {"ham": False},
    "no LSTM": {"lstm": False},
    "no ViT, HAM, LSTM": {"vit": False, "ham": False, "lstm": False},
    "plus ZINB": {"count_weight": 0.05},
    "no context": ONE_FIELD,
    "no low rank": {"n_components": None},
    "no centring": {"center_sections": False},
    "no correlation": {"correlation_weight": 0.0},
    "no shift": {"feature_shift": 0.0},
    "not standardised": {"standardize": False},
    "one network": {"ensemble": 1},
    "three networks": {"ensemble": 3},
}
PIXELS = {
    "short": SHORT,
    "short + GEM": {**SHORT, "gem": True},
    "short + CBAM": {**SHORT, "cbam": True},
    "short + trained backbone": {**SHORT, "backbone_learning_rate": 5e-5},
}


def compared(result: "hggep.CrossValidation", names: list[str]) -> pd.DataFrame:
    """Mean PCC of each fold, and the difference to the first of the names, in pairs over folds and seeds."""
    pcc = result.table[(result.table["metric"] == "pcc") & result.table["method"].isin(names)]
    folds = pcc.pivot_table(index=["fold", "seed"], columns="method", values="value", aggfunc="mean")[names]
    shown = folds.groupby("fold").mean().T
    shown["mean"] = folds.mean()
    shown["difference"] = folds.mean() - folds[names[0]].mean()
    shown["sd of difference"] = folds.sub(folds[names[0]], axis=0).std()
    return shown


def main() -> None:
    """Run all parts, or those named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--store", type=Path, default=Path(__file__).parent / "folds", help="folder of finished folds")
    parser.add_argument(
        "--pixels", action="store_true", help="GEM, CBAM and the trained backbone instead of the others"
    )
    options, shared = parse(parser)
    matplotlib.use("Agg")
    sections, how = load("her2st", shared)
    if options.pixels:
        name, parts, alone = "ablation_pixels", PIXELS, {"ensemble": 1, "cross_fit": False}
        how["weights"] = shared / TRUNK
        said = "Mean per-gene PCC of one network on two fields of view, after eight epochs"
    else:
        name, parts, alone = "ablation", PARTS, {"cross_fit": False}
        said = "Mean per-gene PCC of the networks, without the linear path"
    result = hggep.tl.cross_validate(
        sections,
        methods={part: {"config": {**alone, **changed}} for part, changed in parts.items()},
        seeds=options.seeds,
        path=options.store,
        device=options.device,
        **how,
    )
    shown = table(compared(result, list(parts)).rename_axis("part"))
    title = "# What each part of the default's networks earns"
    (RESULTS / f"{name}.md").write_text(f"{title}\n\n{said}; seeds {options.seeds}.\n\n{shown}\n")
    folds = result.folds.drop(columns=["training", "model"])
    folds.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.5f")
    ax = hggep.pl.ablation(result.table, reference=next(iter(parts)))
    ax.figure.savefig(RESULTS / f"{name}.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
