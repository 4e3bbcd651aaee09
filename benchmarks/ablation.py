"""What each part of the default's network earns: the paper's Figure 4 on real sections, one part changed at a time.

One network is alone here, without the two others of its ensemble, cross-fitting and the linear path, which accuracy.py
sets apart.

    python benchmarks/ablation.py              # one seed, one core: fits of 85 minutes in all, 22 with --no-pixels
    python benchmarks/ablation.py --seeds 0 1 2

Leave one section out of B4, C2, C3, C4, C5 of her2st, as in accuracy.py. Parts that look at pixels (GEM, CBAM, a
backbone that learns) cost a hundred times the rest on a CPU: they are compared at two fields of view and eight epochs,
with a frozen encoder at the same.

Needs HGGEP_SHARED. Finished folds are kept in `--store`; results/ablation.csv, .md and two .png are renewed at the end.
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd
from accuracy import RESULTS, load, parse, table

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
    "no views": {"flips": False},
    "no shift": {"feature_shift": 0.0},
    "not standardised": {"standardize": False},
    "plus conv5": {"stages": ("stage2", "stage3", "stage4", "conv5")},
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
    parser.add_argument("--no-pixels", action="store_true", help="leave GEM, CBAM and the trained backbone out")
    options, shared = parse(parser)
    matplotlib.use("Agg")
    sections, how = load("her2st", shared)
    parts = PARTS if options.no_pixels else {**PARTS, **PIXELS}
    result = hggep.tl.cross_validate(
        sections,
        methods={name: {"config": {**part, "ensemble": 1, "cross_fit": False}} for name, part in parts.items()},
        seeds=options.seeds,
        weights=shared / "weights" / "shufflenetv2_x0_5_trunk.pth",
        path=options.store,
        device=options.device,
        **how,
    )
    text = ["# What each part of the default's network earns", ""]
    text += [f"Mean per-gene PCC of one network, without ensemble and linear path; seeds {options.seeds}.", ""]
    text += [table(compared(result, list(PARTS)).rename_axis("part")), ""]
    if not options.no_pixels:
        text += ["Parts that look at pixels, at two fields of view and eight epochs:", ""]
        text += [table(compared(result, list(PIXELS)).rename_axis("part")), ""]
    (RESULTS / "ablation.md").write_text("\n".join(text))
    result.folds.drop(columns=["training", "model"]).to_csv(RESULTS / "ablation.csv", index=False, float_format="%.5f")
    for name, drawn in {"ablation": PARTS, "ablation_pixels": {} if options.no_pixels else PIXELS}.items():
        if drawn:
            ax = hggep.pl.ablation(result.table[result.table["method"].isin(drawn)], reference=next(iter(drawn)))
            ax.figure.savefig(RESULTS / f"{name}.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
