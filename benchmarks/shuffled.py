"""What `preset="default"` predicts where there is nothing to be learnt: patches and counts paired at random.

    python benchmarks/shuffled.py

B4, C2, C3 and C4 of her2st predict C5, as in accuracy.py, but within each training section the spots' counts are
shuffled. What the test section's PCC is then is chance, or a leak.

Needs HGGEP_SHARED. Adds a row to results/shuffled.csv beside this file, in place of that of the same seed, and renews
shuffled.md.
"""

import argparse

import numpy as np
import pandas as pd
from accuracy import RESULTS, load, made, made_by, parse, table

import hggep_sc as hggep

TEST = "C5"


def main() -> None:
    """Shuffle, fit, predict and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options, shared = parse(parser)
    sections, how = load("her2st", shared)
    test, rng = sections.pop(TEST), np.random.default_rng(options.seed)
    for section in sections.values():
        section.X = section.X[rng.permutation(section.n_obs)]
    model = hggep.tl.fit(sections, seed=options.seed, device=options.device, **how)
    hggep.tl.predict(test, model, device=options.device)
    pcc = hggep.tl.evaluate(test).loc[model.genes, "pcc"]
    reliability = model.confidence.reliability
    row = {
        "seed": options.seed,
        "mean_pcc": pcc.mean(),
        "mean_abs_pcc": pcc.abs().mean(),
        "mean_reliability": np.nanmean(reliability),
        "sd_of_prediction": float(test[:, model.genes].layers["hggep"].std(0).mean()),
        **made_by(),
    }
    file = RESULTS / "shuffled.csv"
    rows = pd.concat([pd.read_csv(file) if file.exists() else pd.DataFrame(), pd.DataFrame([row])])
    rows = rows.drop_duplicates("seed", keep="last")
    rows.to_csv(file, index=False, float_format="%.4f")
    text = ["# Patches and counts paired at random", "", f"{TEST} of her2st, 785 genes, by four shuffled sections.", ""]
    text += [table(rows.drop(columns=[*made_by()]).set_index("seed")), ""]
    text += ["Genes follow few components, so that a mean over them is about one draw: it is 0 over seeds.", ""]
    text += [f"{made(rows)}."]
    (RESULTS / "shuffled.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
