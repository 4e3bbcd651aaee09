"""The two protocols that her2st is used by in the literature, on all of its sections, beside published figures.

    python benchmarks/records.py sections      # 32 sections (A2 to G3) left out one at a time, the 785-gene panel
    python benchmarks/records.py patients      # 36 sections, 8 patients left out one at a time, 250 genes
    python benchmarks/records.py sections --sections B4 C2 C3 --methods ridge default --epochs 2

`sections`  as HisToGene, Hist2ST, THItoGene and HGGEP: other sections of the same patient are trained on
`patients`  as TRIPLEX and DKAN: the genes of the highest mean expression, chosen on the training sections of each fold,
            where the papers choose them on all sections

Missing files are downloaded (all sections: some GB). Data are looked for in `hggep_sc.settings.dataset_dir`; where
HGGEP_SHARED names a folder of real sections (`data`), there. Every finished fold is kept in `--store`, and not run
again: an interrupted run goes on where it was, with the same command.

`--sections` takes some of the sections, and `--epochs` shortens the networks; the tables name both. Figures are written
to results/records_sections.md and .csv, or records_patients.md and .csv, beside this file: by usage
(docs/evaluation.md), and by fold.
"""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import pandas as pd
from accuracy import METHODS, RESULTS, made_by, table

import hggep_sc as hggep
from hggep_sc.datasets._her2st import SECTIONS as EVERY

SECTIONS = [name for name in EVERY if name != "A1" and name[0] != "H"]  # with at least 180 spots
PROTOCOLS: dict[str, dict[str, Any]] = {
    "sections": {"sections": SECTIONS, "genes": "her2st_panel"},
    "patients": {"sections": list(EVERY), "genes": 250, "genes_by": "mean", "groups": "patient"},
}
DEFAULT_METHODS = ["ridge", "low_rank_ridge", "hest_ridge", "default"]
USAGES: dict[str, dict[str, Any]] = {
    "all genes": {},
    "HEG50": {"genes": "HEG50"},
    "HVG50": {"genes": "HVG50"},
    "HMHVG200": {"genes": "HMHVG200"},
    "HPG50": {"genes": "HPG50"},
    "all genes, smoothed": {"smooth": True},
    "HEG50, smoothed": {"genes": "HEG50", "smooth": True},
    "HVG50, smoothed": {"genes": "HVG50", "smooth": True},
    "HPG50, smoothed": {"genes": "HPG50", "smooth": True},
    "all genes, a fold's sections at once": {"over": "fold"},
    "all genes, all sections at once": {"over": "all"},
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("--sections", nargs="+", choices=EVERY, metavar="NAME", help="some of the sections")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS)
    parser.add_argument("--epochs", type=int, help="of the networks, instead of the preset's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--store", type=Path, default=Path(__file__).parent / "folds", help="folder of finished folds")
    return parser.parse_args()


def methods_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the methods by label; those with fewer epochs say so."""
    found = {}
    for name in options.methods:
        method, label = dict(METHODS[name]), name
        if options.epochs and "preset" in method:
            method["config"] = {**method.get("config", {}), "epochs": options.epochs}
            label = f"{name}, {options.epochs} epochs"
        found[label] = method
    return found


def by_usage(result: "hggep.CrossValidation") -> pd.DataFrame:
    """Return the mean over folds by method and usage."""
    return pd.DataFrame({usage: result.summary(**how)["mean"] for usage, how in USAGES.items()})


def markdown(protocol: str, sections: list[str], result: "hggep.CrossValidation", means: pd.DataFrame) -> str:
    """Tables by usage, by fold, and of what failed."""
    left_out = f"{result.folds['fold'].nunique()} {protocol} left out in turn"
    of_all = PROTOCOLS[protocol]["sections"]
    kept = f"all {len(of_all)} sections" if sections == of_all else f"{len(sections)} of {len(of_all)} sections only"
    pcc = result.table[result.table["metric"] == "pcc"]
    by_fold = pcc.groupby(["fold", "section", "method"], sort=False)["value"].mean()
    by_fold = by_fold.groupby(["fold", "method"], sort=False).mean().unstack("method")
    ceiling = result.table[result.table["metric"] == "ceiling"].groupby("fold", sort=False)["value"].mean()
    lines = [
        f"# her2st by {protocol}",
        "",
        f"{kept} ({' '.join(sections)}), {left_out}; {result.folds['n_genes'].max():.0f} genes. "
        f"Seeds: {', '.join(str(seed) for seed in sorted(result.folds['seed'].unique()))}. "
        + ", ".join(f"{name} {value}" for name, value in made_by().items())
        + ".",
        "",
        "Mean PCC by usage ([docs/evaluation.md](../../docs/evaluation.md#usages-of-the-field)); the first row is by "
        "section, of observed targets and all genes, as everywhere here:",
        "",
        table(means.T.rename_axis("usage")),
        "",
        "By fold, all genes by section:",
        "",
        table(by_fold.assign(**{"noise ceiling": ceiling}).T.rename_axis("method")),
    ]
    failed = result.folds[result.folds["error"] != ""]
    lines += ["", *(f"Failed: {row.method} on {row.fold}, seed {row.seed}: {row.error}" for row in failed.itertuples())]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Run one protocol."""
    options = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if shared := os.environ.get("HGGEP_SHARED"):
        hggep.settings.dataset_dir = Path(shared) / "data"
    protocol = {name: value for name, value in PROTOCOLS[options.protocol].items() if name != "sections"}
    wanted = PROTOCOLS[options.protocol]["sections"]
    sections = [name for name in wanted if options.sections is None or name in options.sections]
    result = hggep.tl.cross_validate(
        hggep.datasets.her2st(sections),
        methods=methods_of(options),
        normalize="panel",
        seeds=options.seeds,
        path=options.store,
        device=options.device,
        **protocol,
    )
    means = by_usage(result)
    print(means.T.round(4).to_string())
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"records_{options.protocol}"
    means.T.rename_axis("usage").to_csv(target.with_suffix(".csv"), float_format="%.5f")
    target.with_suffix(".md").write_text(markdown(options.protocol, sections, result, means))


if __name__ == "__main__":
    main()
