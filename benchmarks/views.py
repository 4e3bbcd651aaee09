"""What the views of a spot are worth: the turns and mirrorings in which a frozen encoder sees it.

    python benchmarks/views.py                      # five her2st folds and three of mob, three seeds
    python benchmarks/views.py mob --seeds 0 --ways "as they lie" "mean of four"

The default's networks, without the linear path and what is learnt from sections that are left out, are trained on
features of all spots as they lie, as the package does it, or on the mean of the features of two, four or eight views;
they predict the section that was left out from features of the same kind.

Needs HGGEP_SHARED. A row for each fold, seed and way is added to results/views.csv beside this file, one of the same
is replaced; results/views.md shows means.
"""

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from accuracy import DATA, RESULTS, load, parse, table

import hggep_sc as hggep
from hggep_sc.encoders.named import NamedEncoder
from hggep_sc.evaluation.section_scores import section_scores
from hggep_sc.features import store
from hggep_sc.features.describe import DIHEDRAL, View, turned
from hggep_sc.methods import hggep as model_of
from hggep_sc.section import Section, open_sections
from hggep_sc.training import read

KEYS = ["data", "fold", "seed", "way"]
WAYS = {
    "as they lie": DIHEDRAL[:1],
    "mean of two": (DIHEDRAL[0], DIHEDRAL[2]),
    "mean of four": DIHEDRAL[:4],
    "mean of eight": DIHEDRAL,
}
ALONE = {"linear": False, "cross_fit": False}


class Features:
    """Features of sections as the mean over views, computed once for all fits; in place of `describe_section`."""

    def __init__(self, views: tuple[View, ...]) -> None:
        self.views = views
        self._of: dict[tuple[str, tuple[float, ...]], store.Described] = {}

    def __call__(self, section: Section, *given: Any, **how: Any) -> store.Described:
        """Return those of a section."""
        _, fields, _ = given
        if (section.name, fields) not in self._of:
            plain = NamedEncoder.for_inference
            with patch.object(
                NamedEncoder,
                "for_inference",
                lambda encoder: SimpleNamespace(maps=mean_over(plain(encoder).maps, self.views)),
            ):
                self._of[section.name, fields] = store.describe_section(section, *given, **how)
        return self._of[section.name, fields]


def mean_over(
    maps: Callable[[torch.Tensor], list[torch.Tensor]], views: tuple[View, ...]
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Return what gives the mean of the maps of turned and mirrored pixels, turned back."""

    def apply(pixels: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for (turns, flip), seen in zip(views, turned(pixels, views), strict=True):
            back = [torch.rot90(one, -turns, (-2, -1)) for one in maps(seen)]
            found.append([one.flip(-1) if flip else one for one in back])
        return [torch.stack(of_resolution).mean(0) for of_resolution in zip(*found, strict=True)]

    return apply


def score(fold: str, sections: dict, how: dict, features: Features, seed: int) -> float:
    """Train without one section, predict it, and return the mean PCC."""
    training = {name: section for name, section in sections.items() if name != fold}
    (held_out,) = open_sections({fold: sections[fold]})
    with patch.object(read, "describe_section", features), patch.object(model_of, "describe_section", features):
        model = hggep.tl.fit(training, config=ALONE, seed=seed, progress=False, **how)
        found, _ = model.predict(held_out)
    return float(section_scores(held_out.table, held_out.obs_rows, found, model.genes, model.scale)["pcc"].mean())


def report(rows: pd.DataFrame) -> str:
    """Lay out the means over seeds."""
    lines = ["# Views of a spot", "", "Mean PCC of the default's networks alone; see views.py for the ways.", ""]
    for data, of_data in rows.groupby("data", sort=False):
        means = of_data.pivot_table(index="way", columns="fold", values="pcc", sort=False)
        means = means.assign(mean=means.mean(axis=1)).map(lambda value: f"{value:.4f}")
        seeds = ", ".join(map(str, sorted(of_data["seed"].unique())))
        lines += [f"## {data}", "", table(means), "", f"Seeds {seeds}.", ""]
    return "\n".join(lines[:-1]) + "\n"


def main() -> None:
    """Train and predict in every way, fold by fold, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"{', '.join(DATA)}; all where none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    options, shared = parse(parser)
    csv = RESULTS / "views.csv"
    for data in options.data or DATA:
        sections, how = load(data, shared)
        for way in options.ways:
            features = Features(WAYS[way])
            for seed in options.seeds:
                for fold in DATA[data]:
                    pcc = score(fold, sections, how, features, seed)
                    found = {"data": data, "fold": fold, "seed": seed, "way": way, "pcc": pcc}
                    print(found, flush=True)
                    earlier = pd.read_csv(csv) if csv.exists() else pd.DataFrame()
                    rows = pd.concat([earlier, pd.DataFrame([found])], ignore_index=True)
                    rows = rows.drop_duplicates(KEYS, keep="last")
                    rows.to_csv(csv, index=False, float_format="%.5f")
                    (RESULTS / "views.md").write_text(report(rows))


if __name__ == "__main__":
    main()
