"""Spots predicted alone, and among the points of finer grids: what other spots of a section do to a prediction.

    python benchmarks/context.py

`default` is fitted to B4, C2, C3 and C4. The spots of C5 that have counts are predicted by themselves, and among points
100, 50 and 16 um apart over the same tissue: dealt into layers of the training spacing, as `tl.predict` does, and all
at once, in chunks. The networks alone. Needs HGGEP_SHARED. Writes results/context.csv and
results/context.md beside this file.
"""

import argparse

import numpy as np
import pandas as pd
from accuracy import RESULTS, load, made, made_by, parse, table
from anndata import AnnData
from scipy.spatial import KDTree

import hggep_sc as hggep
from hggep_sc.methods.hggep import HGGEP
from hggep_sc.metrics import pearson
from hggep_sc.section import open_sections

STEPS = (100.0, 50.0, 16.0)  # um
REACH = 0.71  # spacings: what is nearer to a spot is tissue


def among(section: AnnData, spacing: float, step: float) -> AnnData:
    """Return a section's spots and, after them, the points of a grid around them; distances in px."""
    xy = section.obsm["spatial"]
    sides = [np.arange(low + 0.37 * step, high, step) for low, high in zip(xy.min(0), xy.max(0), strict=True)]
    points = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)
    points = points[KDTree(xy).query(points)[0] < REACH * spacing]
    names = [f"spot{i}" for i in range(len(xy) + len(points))]
    finer = AnnData(
        np.zeros((len(names), section.n_vars), np.float32), obs=pd.DataFrame(index=names), var=section.var[[]]
    )
    finer.obsm["spatial"] = np.concatenate([xy, points])
    finer.uns["spatial"] = section.uns["spatial"]
    return finer


def main() -> None:
    """Predict, compare."""
    _, shared = parse(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    )
    hggep.settings.progress = False
    hggep.settings.skip_checks = {"scales_agree", "spot_pitch"}  # both say that the grids are finer
    sections, how = load("her2st", shared)
    test = sections.pop("C5")
    model = hggep.tl.fit(sections, **how)
    model.linear = model.confidence = None
    (section,) = open_sections(test)
    counts = section.counts(model.genes).toarray()
    test = test[counts.sum(axis=1) > 0].copy()
    counts = counts[counts.sum(axis=1) > 0]
    observed = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    spacing = model.spacing_um[0] / section.mpp

    def predicted(data: AnnData) -> np.ndarray:
        found = model.predict(open_sections(data, mpp=section.mpp)[0])[0]
        return found[: test.n_obs]

    alone, rows = predicted(test), []
    layers = HGGEP._pitch
    for step in STEPS:
        data = among(test, spacing, step / section.mpp)
        for how, pitch in {"in layers": layers, "all at once": lambda *_: None}.items():
            HGGEP._pitch = pitch
            found = predicted(data)
            rows.append(
                {
                    "grid_um": step,
                    "points": data.n_obs - test.n_obs,
                    "predicted": how,
                    "pcc": np.nanmean(pearson(found, observed)),
                    "pcc_alone": np.nanmean(pearson(alone, observed)),
                    "correlation_with_alone": np.nanmean(pearson(found, alone)),
                }
            )
            print(rows[-1], flush=True)
        HGGEP._pitch = layers
    found = pd.DataFrame(rows).assign(**made_by())
    found.to_csv(RESULTS / "context.csv", index=False, float_format="%.4f")
    shown = found.drop(columns=list(made_by())).set_index("grid_um")
    (RESULTS / "context.md").write_text(
        f"# Spots of C5 alone, and among finer grids\n\n{table(shown)}\n\n{made(found)}.\n"
    )


if __name__ == "__main__":
    main()
