"""The main job on real sections: train, predict a held-out section, score; one case or all.

    python benchmarks/real_sections.py her2st shuffled mob

`her2st`    B4, C2, C3, C4 predict C5: 785-gene panel, panel normalisation
`shuffled`  the same with patches and counts paired at random within each training section: what is left is chance
`mob`       MOB1 and MOB2 predict MOB3, all 1,000 genes

Needs HGGEP_SHARED, the folder of real sections (`data`) and trunk weights (`weights`).
Each case adds a row to results/real_sections.csv and renews results/real_sections.md beside this file.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import hggep_sc as hggep

RESULTS = Path(__file__).parent / "results"
CASES = ("her2st", "shuffled", "mob")


def load(case: str, shared: Path, seed: int):
    """Return training sections, the held-out one, and the settings of `tl.fit` for a case."""
    hggep.settings.dataset_dir = shared / "data"
    if case == "mob":
        sections = hggep.datasets.mob(["MOB1", "MOB2", "MOB3"])
        return sections, sections.pop("MOB3"), {"genes": 1000}
    sections = hggep.datasets.her2st(["B4", "C2", "C3", "C4", "C5"])
    held_out = sections.pop("C5")
    if case == "shuffled":
        rng = np.random.default_rng(seed)
        for section in sections.values():
            section.X = section.X[rng.permutation(section.n_obs)]
    panel = hggep.datasets.her2st_panel()
    return sections, held_out, {"genes": panel, "normalize": "panel"}


def run(case: str, shared: Path, options: argparse.Namespace) -> dict[str, object]:
    """Train, predict and score one case."""
    sections, held_out, settings = load(case, shared, options.seed)
    if options.epochs:
        settings["config"] = {"epochs": options.epochs}
    started = time.perf_counter()
    model = hggep.tl.fit(
        sections,
        preset=options.preset,
        weights=shared / "weights" / "shufflenetv2_x0_5_trunk.pth",
        seed=options.seed,
        device=options.device,
        **settings,
    )
    trained = time.perf_counter()
    hggep.tl.predict(held_out, model, device=options.device)
    predicted = time.perf_counter()
    table = hggep.tl.evaluate(held_out)
    if options.keep:
        held_out.write_h5ad(options.keep / f"{case}.h5ad")
        model.save(options.keep / f"{case}.hggep", overwrite=True)
    return {
        "case": case,
        "preset": options.preset,
        "epochs": len(model.history),
        "seed": options.seed,
        "genes": len(model.genes),
        "mean_pcc": table["pcc"].mean(),
        "median_pcc": table["pcc"].median(),
        "mean_abs_pcc": table["pcc"].abs().mean(),
        "mean_rmse": table["rmse"].mean(),
        "train_s": trained - started,
        "predict_s": predicted - trained,
        "device": str(next(model.network.parameters()).device.type),
        "threads": torch.get_num_threads(),
        "hggep_sc": hggep.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Run the cases named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", type=Path, help="folder for the model and the predicted section")
    options = parser.parse_args()
    if "HGGEP_SHARED" not in os.environ:
        parser.error("HGGEP_SHARED is not set: it names the folder of real sections and weights")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    table = RESULTS / "real_sections.csv"
    for case in options.cases:
        rows = pd.DataFrame([run(case, Path(os.environ["HGGEP_SHARED"]), options)])
        print(rows.T.to_string(header=False), flush=True)
        if table.exists():
            rows = pd.concat([pd.read_csv(table), rows], ignore_index=True)
            rows = rows.drop_duplicates(["case", "preset", "epochs", "seed", "device"], keep="last")
        rows.to_csv(table, index=False, float_format="%.4f")
        shown = rows.drop(columns=["genes", "threads", "hggep_sc", "torch", "python"])
        lines = [" | ".join(map(str, row)) for row in [shown.columns, ["---"] * shown.shape[1]]]
        lines += [" | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row) for row in shown.to_numpy()]
        versions = rows.iloc[-1]
        note = f"hggep_sc {versions['hggep_sc']}, torch {versions['torch']}, Python {versions['python']}, "
        note += f"{versions['threads']} threads; last row last run."
        body = "\n".join(f"| {line} |" for line in lines)
        (RESULTS / "real_sections.md").write_text(f"# The main job on real sections\n\n{body}\n\n{note}\n")


if __name__ == "__main__":
    main()
