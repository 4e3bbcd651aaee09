"""The parts of `preset="default"` apart, by one fit of each fold: linear path, a network, all networks, and their sum.

    python benchmarks/parts.py                        # her2st and mob, one seed
    python benchmarks/parts.py her2st --seeds 0 1 2

Leave one section out, as in accuracy.py. A fold is fitted once, from images to the model, as a user fits it (nothing
that is kept of another fit serves it), and the section that is left out is predicted by each part alone: by the linear
path, by each of the networks (the mean of whose scores is told), by all networks, and by all with their weights, which
is the default.

A section of the other data set, another tissue, is predicted too: that one should be warned of as unlike the training
sections, the section that is left out should not.

Needs HGGEP_SHARED. Rows are added to results/parts.csv beside this file; those of the same fold and seed are replaced.
results/parts.md shows them.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy

import numpy as np
import pandas as pd
import torch
from accuracy import DATA, RESULTS, load, made, made_by, parse, table

import hggep_sc as hggep
from hggep_sc.evaluation.section_scores import section_scores
from hggep_sc.nn import Ensemble
from hggep_sc.section import Section, open_sections

PARTS = ["linear path", "one network", "all networks", "default"]
KEYS = ["data", "fold", "seed"]
UNLIKE = "unlike the training sections"  # what a warning of another tissue says


def parts_of(model: "hggep.HGGEP") -> dict[str, list["hggep.HGGEP"]]:
    """Return models that predict by some of this one's parts; one for each network alone."""
    assert isinstance(model.network, Ensemble)
    path, networks = copy(model), copy(model)
    path.network = deepcopy(model.network)
    path.network.scale_output(0.0)
    networks.linear = None
    ones = [copy(networks) for _ in model.network.networks]
    for one, network, seen in zip(ones, model.network.networks, model.network.seen, strict=True):
        one.network = Ensemble([deepcopy(network)], model.network.groups, [seen])
        one.network.encoder = model.network.encoder
    return dict(zip(PARTS, [[path], ones, [networks], [model]], strict=True))


@contextmanager
def heard() -> Iterator[list[str]]:
    """Give a list that holds, afterwards, what the package warned of meanwhile."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always", hggep.errors.HggepWarning)
        yield messages
    messages += [str(found.message) for found in recorded if issubclass(found.category, hggep.errors.HggepWarning)]


def row_of(model: "hggep.HGGEP", section: Section, foreign: Section) -> dict[str, object]:
    """Mean PCC of each part on the section that was left out, and whether either section was warned of."""
    found: dict[str, object] = {}
    with heard() as messages:
        for name, parts in parts_of(model).items():
            predicted = [part.predict(section)[0] for part in parts]
            told = [section_scores(section.table, section.obs_rows, x, model.genes, model.scale) for x in predicted]
            found[name] = np.mean([scores["pcc"].mean() for scores in told])
    found["warned"] = any(UNLIKE in message for message in messages)
    with heard() as messages:
        model.predict(foreign)
    return {**found, "foreign": foreign.name, "foreign_warned": any(UNLIKE in message for message in messages)}


def markdown(rows: pd.DataFrame) -> str:
    """Tables of each data set: seeds averaged."""
    lines = ["# The parts of the default apart", "", "Mean over genes of the PCC across spots."]
    for data, of_data in rows.groupby("data", sort=False):
        folds = of_data.groupby("fold", sort=False)
        pcc = folds[PARTS].mean().T
        pcc["mean"] = pcc.mean(axis=1)
        seeds = ", ".join(map(str, sorted(of_data["seed"].unique())))
        seconds = of_data["fit_s"]
        lines += ["", f"## {data}, seeds {seeds}", "", table(pcc.rename_axis("part")), ""]
        lines += [
            f"A fit from images to the model took {seconds.min():.0f} to {seconds.max():.0f} s, {seconds.mean():.0f} s "
            f"on average, on {', '.join(map(str, of_data['threads'].unique()))} thread(s) of "
            f"{', '.join(of_data['device'].unique())}.",
            f"Warned of as unlike the training sections: {of_data['warned'].sum()} of {len(of_data)} sections left "
            f"out, {of_data['foreign_warned'].sum()} of {len(of_data)} of the other tissue.",
        ]
    lines += ["", f"{made(rows)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the data sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"{', '.join(DATA)}; all where none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    options, shared = parse(parser)
    data_sets = {name: load(name, shared) for name in DATA}
    foreign = {"her2st": {"MOB1": data_sets["mob"][0]["MOB1"]}, "mob": {"B4": data_sets["her2st"][0]["B4"]}}
    csv = RESULTS / "parts.csv"
    for data in options.data or DATA:
        sections, how = data_sets[data]
        for seed in options.seeds:
            for fold in sections:
                training = {name: section for name, section in sections.items() if name != fold}
                started = time.perf_counter()
                model = hggep.tl.fit(training, seed=seed, device=options.device, **how)
                row = {
                    "data": data,
                    "fold": fold,
                    "seed": seed,
                    "fit_s": time.perf_counter() - started,
                    **row_of(model, *open_sections({fold: sections[fold], **foreign[data]})),
                    "device": next(model.network.parameters()).device.type,
                    "threads": torch.get_num_threads(),
                    **made_by(),
                }
                print(row, flush=True)
                rows = pd.concat([pd.read_csv(csv) if csv.exists() else pd.DataFrame(), pd.DataFrame([row])])
                rows = rows.drop_duplicates(KEYS, keep="last")
                rows.to_csv(csv, index=False, float_format="%.5f")
    (RESULTS / "parts.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
