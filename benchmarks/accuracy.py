"""Leave-one-section-out accuracy on real sections, of every method beside the noise ceiling.

    python benchmarks/accuracy.py                        # all that this machine can do in its time
    python benchmarks/accuracy.py her2st --methods default low_rank_ridge --seeds 0 1 2
    python benchmarks/accuracy.py her2st --methods published --folds B4 --epochs 50

What sees is EfficientNet-Lite0, as where nothing is said, at 112 px or, `_224`, at twice as many. Methods that end in
`_trunk` see through the ShuffleNetV2 in its place, with the weights of HGGEP_SHARED; those in `_two` through
EfficientNet-Lite0 and -Lite2 side by side, those in `_three` through the ShuffleNetV2 beside both.
`network_alone` are the default's networks without the linear path, whose weights are found without it; parts.py
takes one fit of the default apart.

`her2st`    B4, C2, C3, C4, C5: 785-gene panel, counts scaled by their panel totals
`mob`       MOB1, MOB2, MOB3: all 1,000 genes, counts scaled by the library

Without a GPU the presets `paper` and `published` are left out, and named, unless asked for by `--methods`: a step of
theirs takes 4 and 20 s on a core, and they take hundreds of epochs. `--epochs` shortens them, and is named in the
tables: "published, 50 epochs".

Needs HGGEP_SHARED, the folder of real sections (`data`) and trunk weights (`weights`). Every
finished fold is kept in `--store` and not run again; what the package's code has become since then is not known there:
take another folder after a change to it. After each method results/accuracy.csv and .md beside this file are renewed:
rows of this run replace those of the same fold, method and seed, others stay, so that parts may be run on different
machines. An interrupted run loses at most the fold it was at.
"""

import argparse
import logging
import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

import hggep_sc as hggep

RESULTS = Path(__file__).parent / "results"
DATA = {"her2st": ["B4", "C2", "C3", "C4", "C5"], "mob": ["MOB1", "MOB2", "MOB3"]}
TWO = "efficientnet_lite0+efficientnet_lite2"
THREE = f"{TWO}+shufflenet"
TRUNK = Path("weights", "shufflenetv2_x0_5_trunk.pth")
METHODS = {
    "gene_mean": {"method": "gene_mean"},
    "nearest_patches": {"method": "nearest_patches"},
    "ridge": {"method": "ridge"},
    "low_rank_ridge": {"method": "low_rank_ridge"},
    "hest_ridge": {"method": "hest_ridge"},
    "network_alone": {"preset": "default", "config": {"linear": False}},
    "default": {"preset": "default"},
    "low_rank_ridge_224": {"method": "low_rank_ridge", "config": {"patch_size": 224}},
    "ridge_two": {"method": "ridge", "encoder": TWO},
    "low_rank_ridge_two": {"method": "low_rank_ridge", "encoder": TWO},
    "default_two": {"preset": "default", "encoder": TWO},
    "ridge_three": {"method": "ridge", "encoder": THREE},
    "low_rank_ridge_three": {"method": "low_rank_ridge", "encoder": THREE},
    "default_three": {"preset": "default", "encoder": THREE},
    "nearest_patches_trunk": {"method": "nearest_patches", "encoder": "shufflenet"},
    "ridge_trunk": {"method": "ridge", "encoder": "shufflenet"},
    "low_rank_ridge_trunk": {"method": "low_rank_ridge", "encoder": "shufflenet"},
    "network_alone_trunk": {"preset": "default", "encoder": "shufflenet", "config": {"linear": False}},
    "default_trunk": {"preset": "default", "encoder": "shufflenet"},
    "paper": {"preset": "paper", "encoder": "shufflenet"},
    "published": {"preset": "published", "encoder": "shufflenet"},
}
NEED_GPU = ["paper", "published"]
KEYS = ["data", "fold", "method", "seed"]
FIGURES = ["pcc", "spearman", "rmse", "ssim", "ceiling", "pcc_beyond_depth", "ceiling_beyond_depth"]


def load(data: str, shared: Path):
    """Return the sections and the arguments of `tl.cross_validate` that belong to a data set."""
    hggep.settings.dataset_dir = shared / "data"
    if data == "mob":
        return hggep.datasets.mob(DATA[data]), {"genes": 1000, "normalize": "library"}
    panel = hggep.datasets.her2st_panel()
    return hggep.datasets.her2st(DATA[data]), {"genes": panel, "normalize": "panel"}


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Path]:
    """Read the command line; return it and the folder of real sections and weights, without which there is nothing."""
    options = parser.parse_args()
    if "HGGEP_SHARED" not in os.environ:
        parser.error("HGGEP_SHARED is not set: it names the folder of real sections and weights")
    if unknown := set(getattr(options, "data", [])) - set(DATA):
        parser.error(f"unknown data {', '.join(unknown)}; there are {', '.join(DATA)}")
    return options, Path(os.environ["HGGEP_SHARED"])


def weights_of(method: dict, shared: Path) -> str | Path:
    """Return the weights of what a method sees through."""
    return shared / TRUNK if method.get("encoder") == "shufflenet" else "pretrained"


def trunk_by_name(shared: Path) -> TemporaryDirectory:
    """Return a folder that holds the trunk, called as its encoder is, for encoders side by side."""
    folder = TemporaryDirectory()
    (Path(folder.name) / "shufflenet.pth").symlink_to((shared / TRUNK).resolve())
    return folder


def rows_of(data: str, result: "hggep.CrossValidation") -> pd.DataFrame:
    """One row per fold, method and seed: means over genes, times, device, versions, and the error where it failed."""
    means = result.table.pivot_table(index=KEYS[1:], columns="metric", values="value", aggfunc="mean", dropna=False)
    median = result.table[result.table["metric"] == "pcc"].groupby(KEYS[1:])["value"].median().rename("median_pcc")
    facts = result.folds.set_index(KEYS[1:]).drop(columns=["test", "training", "model"])
    return facts.join(means[FIGURES]).join(median).reset_index().assign(data=data)


def markdown(rows: pd.DataFrame) -> str:
    """Tables of mean PCC per fold, of the other figures, of the methods in pairs, and of what is missing."""
    parts = ["# Accuracy, leave one section out", "", "Mean over genes of the PCC across spots; seeds averaged."]
    for data, everything in rows.groupby("data", sort=False):
        of_data = everything[everything["error"] == ""]
        others = of_data.groupby("method", sort=False)
        other = others[["spearman", "rmse", "ssim", "fit_s", "predict_s"]].mean()
        for position, name in enumerate(["seed", "epochs", "device", "threads", "hggep_sc", "torch", "python"]):
            other.insert(
                position, name, others[name].agg(lambda found: " ".join(map(as_text, found.dropna().unique())))
            )
        parts += [
            "",
            f"## {data}",
            "",
            table(by_fold(of_data, "pcc", "ceiling")),
            "",
        ]
        if len(known := of_data.dropna(subset="ceiling_beyond_depth")):
            parts += [
                "The same beyond depth (docs/predictability.md), of rows that are younger than this figure:",
                "",
                table(by_fold(known, "pcc_beyond_depth", "ceiling_beyond_depth")),
                "",
            ]
        parts += [
            "Means over folds; times in seconds, of one fold:",
            "",
            table(other),
        ]
        of_mean = of_data.rename(columns={"pcc": "value"}).assign(section=of_data["fold"], gene="mean", metric="pcc")
        pairs = hggep.CrossValidation(of_mean, of_data).comparison().drop(columns="sd")
        pairs = pairs[pairs["n_folds"] > 0]
        if len(pairs):
            parts += ["", "Methods in pairs, over folds:", "", table(pairs.set_index("method"))]
        missing = {
            name: [fold for fold in DATA[data] if fold not in set(of_data.loc[of_data["method"] == name, "fold"])]
            for name in METHODS
        }
        if unrun := [f"{name} on {' '.join(folds)}" for name, folds in missing.items() if folds]:
            parts += ["", f"Not run with all epochs: {'; '.join(unrun)}."]
        for _, failed in everything[everything["error"] != ""].iterrows():
            parts += ["", f"Failed: {failed['method']} on {failed['fold']}, seed {failed['seed']}: {failed['error']}"]
    parts += [
        "",
        "A gene mean is constant in a section: its correlation is undefined. RMSE is in natural log units. The "
        "backbone starts from the weights of a detector, which stand in for ImageNet's. Sections C2 to C5 are of one "
        "patient. Times are as measured, also beside other work on the same cores.",
    ]
    return "\n".join(parts) + "\n"


def by_fold(rows: pd.DataFrame, figure: str, ceiling: str) -> pd.DataFrame:
    """Lay a figure out by method and fold, with its mean over folds; below them its noise ceiling."""
    values = rows.pivot_table(index="method", columns="fold", values=figure, sort=False, dropna=False)
    values.loc["noise ceiling"] = rows.groupby("fold")[ceiling].mean().reindex(values.columns)
    return values.assign(mean=values.mean(axis=1, skipna=False))


def place(method: str) -> int:
    """Where a method stands in the tables, with however many epochs."""
    return [*METHODS].index(method.split(",")[0])


def made_by() -> dict[str, str]:
    """Tell what a row is measured with."""
    return {
        "hggep_sc": hggep.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def made(rows: pd.DataFrame) -> str:
    """Say what rows were measured with."""
    kinds = rows[list(made_by())].drop_duplicates().to_numpy()
    return "; ".join(
        f"hggep_sc {own}, torch {torch_}, Python {python}, {machine}" for own, torch_, python, machine in kinds
    )


def as_text(value: object) -> str:
    """Write a value without the decimals that a missing one beside it brings."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(frame: pd.DataFrame) -> str:
    """Markdown of a table with its index."""
    shown = frame.reset_index()
    lines = [" | ".join(map(str, row)) for row in [shown.columns, ["---"] * shown.shape[1]]]
    lines += [
        " | ".join((f"{v:.3f}" if abs(v) < 10 else f"{v:.0f}") if isinstance(v, float) else str(v) for v in row)
        for row in shown.itertuples(index=False)
    ]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Run the data sets and methods named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"{', '.join(DATA)}; all where none is named")
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--folds", nargs="+", help="sections to leave out; all where none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, help="of the networks, instead of the preset's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--store", type=Path, default=Path(__file__).parent / "folds", help="folder of finished folds")
    options, shared = parse(parser)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    gpu = torch.cuda.is_available() and options.device != "cpu"
    left_out = [] if gpu or options.methods else NEED_GPU
    if left_out:
        print(f"no GPU: {', '.join(left_out)} are left out")
    RESULTS.mkdir(exist_ok=True)
    csv, weights = RESULTS / "accuracy.csv", trunk_by_name(shared)
    for data in options.data or DATA:
        sections, how = load(data, shared)
        chosen = [name for name in METHODS if name in (options.methods or METHODS) and name not in left_out]
        for name in chosen:
            method, label = dict(METHODS[name]), name
            if method.get("encoder") == THREE:
                method["weights"] = weights.name
            if options.epochs and "preset" in method:
                method["config"] = {**method.get("config", {}), "epochs": options.epochs}
                label = f"{name}, {options.epochs} epochs"
            # a baseline that learns from several sections draws nothing at random
            seeds = options.seeds if "preset" in method else options.seeds[:1]
            result = hggep.tl.cross_validate(
                sections,
                methods={label: method},
                only=options.folds,
                seeds=seeds,
                weights=weights_of(method, shared),
                path=options.store,
                device=options.device,
                **how,
            )
            of_data = rows_of(data, result)
            print(of_data.to_string(), flush=True)
            # read again: another run may have added to them meanwhile
            rows = pd.read_csv(csv).fillna({"error": ""}) if csv.exists() else pd.DataFrame()
            rows = pd.concat([rows, of_data], ignore_index=True).drop_duplicates(KEYS, keep="last")
            rows = rows.iloc[np.lexsort([rows["method"].map(place), rows["data"].map([*DATA].index)])]
            rows.to_csv(csv, index=False, float_format="%.5f")
            (RESULTS / "accuracy.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
