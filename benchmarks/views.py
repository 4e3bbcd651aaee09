"""What the views of a spot are worth: the turns and mirrorings in which a frozen encoder sees it.

    python benchmarks/views.py                      # five her2st folds, three seeds
    python benchmarks/views.py --folds B4 --seeds 0 --training one "mean of four"

The default's networks, without the linear path and what is learnt from sections that are left out, are trained on
features of all spots as they lie (`one`), in four quarter turns or in all eight views, of which every step draws one
(`four`, `eight`), or on the mean of the features of two, four or eight views (`mean of two`, ...). They predict the
section that was left out from features as they lie (`one`), from eight views, the mean of whose outputs is taken
(`outputs`), or from the same mean of features as they were trained on (`mean`). The package trains on four and predicts
from one; `tl.predict(average_flips=True)` takes the mean of outputs.

Needs HGGEP_SHARED. A row for each fold, seed and way is added to results/views.csv beside this file, one of the same
is replaced; results/views.md shows means.
"""

import argparse
from typing import Any
from unittest.mock import patch

import pandas as pd
from accuracy import DATA, RESULTS, load, parse, table

import hggep_sc as hggep
from hggep_sc.evaluation.section_scores import section_scores
from hggep_sc.features import store
from hggep_sc.features.describe import DIHEDRAL, PLAIN, TURNS, View
from hggep_sc.methods import hggep as model_of
from hggep_sc.section import Section, open_sections
from hggep_sc.training import read

KEYS = ["fold", "seed", "training", "prediction"]
DRAWN = {"one": PLAIN, "four": TURNS, "eight": DIHEDRAL}
AVERAGED = {"mean of two": (TURNS[0], TURNS[2]), "mean of four": TURNS, "mean of eight": DIHEDRAL}
ALONE = {"linear": False, "cross_fit": False}


class Features:
    """Features of sections in all eight views, computed once for all fits; takes the place of `describe_section`."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, tuple[float, ...]], store.Described] = {}
        self.averaged: tuple[View, ...] = ()  # views whose mean is given

    def __call__(self, section: Section, *given: Any, views: tuple[View, ...], **how: Any) -> store.Described:
        """Return those of a section in some views, or the mean of those in `averaged`."""
        encoder, fields, patch_size = given
        if (section.name, fields) not in self._of:
            self._of[section.name, fields] = store.describe_section(
                section, encoder, fields, patch_size, views=DIHEDRAL, **how
            )
        encoded, colours = self._of[section.name, fields].encoded, self._of[section.name, fields].colours
        found = encoded[:, [DIHEDRAL.index(view) for view in self.averaged or views]]
        return store.Described(found.mean(axis=1, keepdims=True) if self.averaged else found, colours)


def scores(fold: str, sections: dict, how: dict, features: Features, ways: list[str], seed: int) -> list[dict]:
    """Train in each way without one section, predict it in each way that belongs to it, and score it."""
    test = sections[fold]
    training = {name: section for name, section in sections.items() if name != fold}
    (held_out,) = open_sections({fold: test})
    rows = []
    for way in ways:
        features.averaged = AVERAGED.get(way, ())
        with (
            patch.object(read, "views_of_training", lambda *_, way=way: DRAWN.get(way, PLAIN)),
            patch.object(read, "describe_section", features),
            patch.object(model_of, "describe_section", features),
        ):
            model = hggep.tl.fit(training, config=ALONE, seed=seed, progress=False, **how)
            for seen in ("mean",) if way in AVERAGED else ("one", "outputs"):
                found, _ = model.predict(held_out, average_flips=seen == "outputs")
                pcc = section_scores(held_out.table, held_out.obs_rows, found, model.genes, model.scale)["pcc"].mean()
                rows.append({"fold": fold, "seed": seed, "training": way, "prediction": seen, "pcc": pcc})
    return rows


def main() -> None:
    """Train and predict in every way, fold by fold, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", nargs="+", default=DATA["her2st"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--training", nargs="+", choices=[*DRAWN, *AVERAGED], default=[*DRAWN, *AVERAGED])
    options, shared = parse(parser)
    sections, how = load("her2st", shared)
    features = Features()
    csv = RESULTS / "views.csv"
    for seed in options.seeds:
        for fold in options.folds:
            found = scores(fold, sections, how, features, options.training, seed)
            print(pd.DataFrame(found).to_string(), flush=True)
            rows = pd.read_csv(csv) if csv.exists() else pd.DataFrame()
            rows = pd.concat([rows, pd.DataFrame(found)], ignore_index=True).drop_duplicates(KEYS, keep="last")
            rows.to_csv(csv, index=False, float_format="%.5f")
            means = rows.pivot_table(index=["training", "prediction"], columns="fold", values="pcc", sort=False)
            means["mean"] = means.mean(axis=1)
            of_seeds = rows.groupby("seed").size().index.astype(str)
            lines = [
                "# Views of a spot",
                "",
                f"Mean PCC of 785 genes, of the default's networks alone; seeds {', '.join(of_seeds)}. "
                "See views.py for the ways.",
                "",
                table(means.map(lambda value: f"{value:.4f}").reset_index(level="prediction")),
            ]
            (RESULTS / "views.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
