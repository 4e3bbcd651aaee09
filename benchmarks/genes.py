"""Which genes a number stands for: what each rule of choosing them leads to in a section that took no part.

    python benchmarks/genes.py

Leave one of B4, C2, C3, C4 and C5 out. 785 genes are chosen on the others by each rule, learnt there by a low-rank
ridge on library scale, and predicted in the section that is left out. Beside the rules of `tl.fit(genes_by=)`: the
noise ceiling, mean over the training sections, and the paper's panel, which is a list. And for the floor on detection,
training sections alone: whether genes whose Moran's I is among the highest in some of them have any in another.

Needs HGGEP_SHARED. Writes results/genes.csv and results/genes.md beside this file.
"""

import argparse
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from accuracy import DATA, RESULTS, TRUNK, load, made, made_by, parse, table

import hggep_sc as hggep
from hggep_sc.evaluation.section_scores import section_scores
from hggep_sc.methods.baselines import BaselineConfig, LowRankRidge
from hggep_sc.methods.genes import COUNTED, _morans_i, _shared, training_genes
from hggep_sc.metrics import noise_ceiling
from hggep_sc.section import Section, open_sections

NUMBER = 785
RULES = ["dispersion", "noise ceiling", "mean", "moran", "panel of the paper"]
TOLD = ["FASN", "GNAS", "ERBB2"]  # the genes that the paper's figures show
SHARES = [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1]


def chosen_by(rule: str, training: Sequence[Section]) -> list[str]:
    """Return the genes that a rule takes."""
    if rule == "panel of the paper":
        return hggep.datasets.her2st_panel()
    if rule != "noise ceiling":
        return training_genes(training, NUMBER, rule)[0]
    shared = _shared(training)
    ceilings = [noise_ceiling(s.counts(shared.tolist()), library=s.library()) for s in training]
    return shared[np.argsort(-np.mean(np.nan_to_num(ceilings), axis=0), kind="stable")[:NUMBER]].tolist()


def features_once() -> None:
    """Have the ridge look at a section once for each scale, whatever the genes."""
    look, seen = LowRankRidge._features.__func__, {}

    def features(cls, section, config, mpp, *rest, **how):
        key = section.name, mpp
        if key not in seen:
            seen[key] = look(cls, section, config, mpp, *rest, **how)
        return seen[key]

    LowRankRidge._features = classmethod(features)


def measured(rule: str, training: Sequence[Section], test: Section, weights: object) -> dict[str, object]:
    """Choose, learn, predict and score."""
    genes = chosen_by(rule, training)
    model = LowRankRidge.fit(training, BaselineConfig(), genes=genes, weights=weights, progress=False)
    there = np.flatnonzero(np.isin(genes, test.var_names))
    predicted = model.predict(test)[0][:, there]
    scores = section_scores(test.table, test.obs_rows, predicted, [genes[j] for j in there], model.scale)
    return {
        "pcc": scores["pcc"].mean(),
        "ceiling": scores["ceiling"].mean(),
        "median_count": np.median(np.mean([s.counts(genes).mean(axis=0) for s in training], axis=0)),
        "in_panel": len(set(genes) & set(hggep.datasets.her2st_panel())),
        **{gene: gene in genes for gene in TOLD},
    }


def repeated(training: Sequence[Section], left_out: str) -> pd.DataFrame:
    """Tell, by the share of spots that genes are counted in, how much of a pattern repeats in another section."""
    shared = _shared(training)
    found = {section.name: _morans_i(section, shared) for section in training}
    share = pd.cut(np.mean([share for _, share in found.values()], axis=0), SHARES)
    rows = []
    for name, (here, _) in found.items():
        others = np.mean([values for other, (values, _) in found.items() if other != name], axis=0)
        for kind in share.categories:
            genes = np.flatnonzero(share == kind)
            best = genes[np.argsort(-others[genes])[: max(1, len(genes) // 20)]]
            rows.append((str(kind), len(genes), others[best].mean(), here[best].mean(), here[genes].mean()))
    columns = ["counted in a share of spots", "genes", "I of the top twentieth", "elsewhere", "I of all, elsewhere"]
    return pd.DataFrame(rows, columns=columns).assign(fold=left_out)


def markdown(rows: pd.DataFrame, repeats: pd.DataFrame) -> str:
    """Tables of mean PCC by section left out, of the genes, and of the floor."""
    pcc = rows.pivot_table(index="rule", columns="fold", values="pcc", sort=False)
    pcc["mean"] = pcc.mean(axis=1)
    genes = rows[rows["fold"] == "C5"].set_index("rule").drop(columns=["fold", "pcc"])
    genes[TOLD] = genes[TOLD].replace({True: "yes", False: "no"})
    floor = repeats.drop(columns="fold").groupby("counted in a share of spots", sort=False).mean()
    return "\n".join(
        [
            f"# {NUMBER} genes by several rules",
            "",
            "Mean PCC over the genes, of a low-rank ridge on library scale, in each section that was left out:",
            "",
            table(pcc),
            "",
            "The genes that are chosen for C5, on B4, C2, C3 and C4: mean noise ceiling in C5; median over genes of "
            f"the mean count of a training spot; how many are in the paper's panel of {NUMBER}:",
            "",
            table(genes),
            "",
            "Each rule has its own genes: the figures tell what a user gets, not how well the same genes are predicted."
            " That Moran's I does best in C5 was known before it became the default; the other sections had no part in "
            f"that, but are of the same study. Its floor, {COUNTED:.0%} of the spots, was set by the next table, which "
            "is of training sections alone.",
            "",
            "Does a pattern repeat? Of the training sections of each fold one is left out in turn. Of the genes that "
            "are counted in so many of the spots, the twentieth with the highest mean Moran's I in the others: their I "
            "there, and in the section left out; beside it, that of all genes of the row. Means over folds and "
            "sections.",
            "",
            table(floor),
            "",
            f"{made(rows.assign(**made_by()))}.",
        ]
    )


def main() -> None:
    """Measure every rule in every fold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, shared = parse(parser)
    logging.basicConfig(level=logging.WARNING)
    weights = shared / TRUNK
    sections = {section.name: section for section in open_sections(load("her2st", shared)[0])}
    features_once()
    rows, repeats = [], []
    for fold in reversed(DATA["her2st"]):  # C5 first
        training = [section for name, section in sections.items() if name != fold]
        for rule in RULES:
            rows.append({"rule": rule, "fold": fold, **measured(rule, training, sections[fold], weights)})
            print(rows[-1], flush=True)
        repeats.append(repeated(training, fold))
    found = pd.DataFrame(rows)
    found.to_csv(RESULTS / "genes.csv", index=False)
    (RESULTS / "genes.md").write_text(markdown(found, pd.concat(repeats)))


if __name__ == "__main__":
    main()
