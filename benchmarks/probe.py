"""What of HEST-Bench's probe costs accuracy: its fixed penalty, or that features are not relative to sections.

    python benchmarks/probe.py

Leave one section out of B4, C2, C3, C4 and C5, 785-gene panel, features as the baselines have them, through
EfficientNet-Lite0. Features are standardised over all training spots (as in the benchmark) or within each section, with
targets to match; 256 principal components; a ridge with the benchmark's penalty, or with one that is chosen by leaving
out each training section in turn. All else is the same.

Needs HGGEP_SHARED. Writes results/probe.csv and .md beside this file.
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from accuracy import RESULTS, load, made, made_by, parse, table
from sklearn.decomposition import PCA
from sklearn.preprocessing import scale

from hggep_sc import encoders
from hggep_sc.features.patches import model_mpp
from hggep_sc.methods.baselines import BaselineConfig, HestRidge
from hggep_sc.methods.baselines.hest import N_COMPONENTS, STRENGTH
from hggep_sc.metrics import pearson
from hggep_sc.section import open_sections
from hggep_sc.section.expression import ExpressionScale
from hggep_sc.training.ridge import RidgePath

PENALTIES = [0.01, 1.0, 10.0, 100.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6]


def scores(
    X: Sequence[np.ndarray], Y: Sequence[np.ndarray], training: list[int], test: int, alphas: list[float], within: bool
) -> Iterator[float]:
    """Yield the mean PCC of a section for each penalty."""
    pooled, new = np.concatenate([X[i] for i in training]), X[test]
    targets = np.concatenate([Y[i] - within * Y[i].mean(axis=0) for i in training])
    if within:
        pooled, new = np.concatenate([scale(X[i]) for i in training]), scale(new)
    else:
        mean, spread = pooled.mean(axis=0), np.where(np.ptp(pooled, axis=0) > 0, pooled.std(axis=0), 1)
        pooled, new = (pooled - mean) / spread, (new - mean) / spread
    pca = PCA(N_COMPONENTS, svd_solver="full").fit(pooled)
    path = RidgePath(pca.transform(pooled), targets)
    for predicted in path.predict(pca.transform(new), alphas):
        yield float(np.nanmean(pearson(predicted, Y[test])))


def rows_of(X: Sequence[np.ndarray], Y: Sequence[np.ndarray], names: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield figures of each fold, either kind of features and either penalty."""
    fixed = STRENGTH / (N_COMPONENTS * Y[0].shape[1])
    for test, name in enumerate(names):
        training = [i for i in range(len(names)) if i != test]
        for within in (False, True):
            inner = [list(scores(X, Y, [j for j in training if j != i], i, PENALTIES, within)) for i in training]
            chosen = PENALTIES[int(np.mean(inner, axis=0).argmax())]
            for penalty, alpha in {"fixed": fixed, "chosen": chosen}.items():
                (pcc,) = scores(X, Y, training, test, [alpha], within)
                relative_to = "section" if within else "all training spots"
                yield {"fold": name, "relative to": relative_to, "penalty": penalty, "alpha": alpha, "pcc": pcc}


def main() -> None:
    """Describe the sections, and fit all folds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, shared = parse(parser)
    data, how = load("her2st", shared)
    sections, config = open_sections(data), BaselineConfig(normalize="panel")
    encoder = encoders.load("efficientnet_lite0")
    expression, X, Y = ExpressionScale("panel"), [], []
    for section in sections:
        counts = section.counts(how["genes"])
        totals = expression.totals(counts, section.library())
        found = HestRidge._features(
            section, config, model_mpp(sections), None, torch.device("cpu"), 64, encoder=encoder
        )
        X.append(found[totals > 0].astype(np.float64))
        Y.append(expression.transform(counts, totals)[totals > 0].astype(np.float64))
    rows = pd.DataFrame(rows_of(X, Y, [section.name for section in sections])).assign(**made_by())
    rows.to_csv(RESULTS / "probe.csv", index=False, float_format="%.5f")
    pcc = rows.pivot_table(index=["relative to", "penalty"], columns="fold", values="pcc", sort=False)
    pcc["mean"] = pcc.mean(axis=1)
    chosen = rows[rows["penalty"] == "chosen"].groupby("relative to", sort=False)["alpha"].agg(["min", "max"])
    spread = "; ".join(f"{name}: {low:,.0f} to {high:,.0f}" for name, low, high in chosen.itertuples())
    fixed = rows.loc[rows["penalty"] == "fixed", "alpha"].iloc[0]
    said = f"The fixed penalty is {fixed:.4f}, those chosen are ({spread})."
    lines = [
        "# The penalty of HEST-Bench's probe",
        "",
        "Mean PCC of 785 genes by section, through EfficientNet-Lite0.",
        "",
        table(pcc),
        "",
        said,
    ]
    (RESULTS / "probe.md").write_text("\n".join([*lines, "", f"Made by {made(rows)}."]) + "\n")


if __name__ == "__main__":
    main()
