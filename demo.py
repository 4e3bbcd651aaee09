"""Train on some sections, predict a held-out one, compare, draw: `make demo`, `make demo DATA=her2st`."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

import hggep_sc as hggep

if TYPE_CHECKING:
    from anndata import AnnData

WHAT_TO_SEE = {
    "synthetic": "What is to be seen: predictions come near the noise ceiling, since these images show what the genes "
    "do. The ridge is as good as the network, since on these sections a spot's neighbours tell nothing that its own "
    "surroundings do not. On real tissue they do: make demo DATA=her2st",
    "her2st": "What is to be seen: real tissue is far from its noise ceiling, and the network is ahead of the ridge by "
    "about 0.01 in the mean over genes (docs/recipe.md).",
}


def synthetic() -> "tuple[dict[str, AnnData], str, str, dict[str, Any]]":
    """Sections made by code, which to hold out, its column of labels, and settings of `tl.fit`; needs no network."""
    sections = hggep.datasets.synthetic(n_sections=4, n_spots=200)
    return sections, "S4", "region", {"weights": None, "genes": 100}


def her2st() -> "tuple[dict[str, AnnData], str, str, dict[str, Any]]":
    """Real sections of HER2-positive breast tumours; files that are not at hand are downloaded."""
    shared = os.environ.get("HGGEP_SHARED")
    if shared and not os.environ.get("HGGEP_DATASETDIR"):
        hggep.settings.dataset_dir = Path(shared) / "data"
    sections = hggep.datasets.her2st(["B4", "C2", "C3", "C4", "C5"])
    return sections, "C5", "cluster", {"genes": 785, "normalize": "panel"}


def main() -> None:
    """Run the demonstration; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=["synthetic", "her2st"], default="synthetic")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for figures and the model")
    parser.add_argument("--epochs", type=int, help="epochs of training")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    matplotlib.use("Agg")  # figures go to files, with a display or without
    hggep.settings.progress = sys.stderr.isatty()

    sections, held_out, labels, how = {"synthetic": synthetic, "her2st": her2st}[options.data]()
    test = sections.pop(held_out)
    if options.epochs:
        how["config"] = {**how.get("config", {}), "epochs": options.epochs}
    print(f"Training on {', '.join(sections)}; {held_out} is held out.")
    started = time.perf_counter()
    model = hggep.tl.fit(sections, **how)
    trained = time.perf_counter()
    hggep.tl.predict(test, model)
    predicted = time.perf_counter()
    scores = hggep.tl.evaluate(test).sort_values("pcc", ascending=False)

    # what the network has to beat, from the same image and the same genes
    simple = {key: value for key, value in how.items() if key != "config"} | {"genes": model.genes}
    hggep.tl.predict(test, hggep.tl.fit(sections, method="low_rank_ridge", **simple), key_added="ridge")
    ridge = hggep.tl.evaluate(test, key="ridge")
    hggep.tl.domains(test, label_key=labels, n_domains=test.obs[labels].nunique())

    model.save(options.out / "model.hggep", overwrite=True)
    figures = {
        "gene_map.png": hggep.pl.gene_map(test, scores.index[:3].tolist(), key=["ridge", "hggep"]),
        "domains.png": hggep.pl.domains(test, label_key=labels),
        "history.png": hggep.pl.history(model),
    }
    for name, axes in figures.items():
        axes[0].figure.savefig(options.out / name, dpi=150, bbox_inches="tight")

    print(f"\n{model}\n")
    shown = scores[["pcc", "ceiling", "rmse"]].assign(ridge=ridge["pcc"])
    print(shown.head(8).round(3).to_string())
    print(f"\nmean of {len(shown)} genes:", ", ".join(f"{name} {mean:.3f}" for name, mean in shown.mean().items()))
    found = test.uns["hggep_domain"]
    ari = f"ARI {found['ari']:.2f}, p = {found['ari_pval']:.3f}"
    print(f"{found['n_domains']} domains of the prediction against {labels}: {ari}")
    print(WHAT_TO_SEE[options.data])
    print(f"training {trained - started:.0f} s, prediction of {test.n_obs} spots {predicted - trained:.1f} s")
    print(f"written to {options.out}: model.hggep, {', '.join(figures)}")


if __name__ == "__main__":
    main()
