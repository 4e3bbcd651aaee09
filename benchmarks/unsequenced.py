"""From five sections to the map of a slide that was never sequenced: time of the fit, what is warned of, the picture.

    python benchmarks/unsequenced.py
    python benchmarks/unsequenced.py --device cuda

`preset="default"` is fitted to B4, C2, C3, C4 and C5 of her2st, from images to the model. It predicts
CMU-1-Small-Region.svs in tiles of 50 um: another tissue, so that the maps mean nothing, and a warning has to say so.

Needs HGGEP_SHARED. Adds a row to results/unsequenced.csv beside this file, in place of that of the same device, writes
results/unsequenced.md, and draws docs/images/tiling.png anew.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from accuracy import RESULTS, load, made, made_by, parse, table
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from parts import heard

import hggep_sc as hggep

GENES = ["FASN", "GNAS"]
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "tiling.png"


def draw_tiles(slide: AnnData, tissue: hggep.pp.TissueMask, ax: Axes) -> None:
    """Draw the image, the outline of the tissue and the tiles that are laid over it."""
    (library,) = slide.uns["spatial"].values()
    image, scale = library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]
    height, width = image.shape[:2]
    ax.imshow(image, extent=(0, width / scale, height / scale, 0))
    x, y = ((np.arange(n) + 0.5) * step for n, step in zip(tissue.mask.shape[::-1], tissue.factor, strict=True))
    ax.contour(x, y, tissue.mask, [0.5], colors="black", linewidths=0.8)
    half = library["scalefactors"]["spot_diameter_fullres"] / 2
    corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    tiles = slide.obsm["spatial"][:, None] + corners
    ax.add_collection(PolyCollection(tiles, facecolors="none", edgecolors="tab:blue", linewidths=0.5))
    ax.set(xticks=[], yticks=[])
    ax.set_title("tissue mask and tiles")
    ax.spines[:].set_visible(False)


def main() -> None:
    """Fit, tile, predict and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    options, shared = parse(parser)
    matplotlib.use("Agg")
    sections, how = load("her2st", shared)
    started = time.perf_counter()
    model = hggep.tl.fit(sections, device=options.device, **how)
    fitted = time.perf_counter()
    path = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    slide = hggep.pp.tile(path, model=model, spacing_um=50)
    with heard() as messages:
        hggep.tl.predict(slide, model, device=options.device)
    done, warned = time.perf_counter(), "; ".join(messages)
    figure, axes = plt.subplots(1, 1 + len(GENES), figsize=(10.5, 4.2), layout="constrained")
    draw_tiles(slide, hggep.pp.tissue_mask(path), axes[0])
    hggep.pl.gene_map(slide, GENES, ax=axes[1:])
    figure.savefig(IMAGE, dpi=100, bbox_inches="tight")
    row = {
        "device": next(model.network.parameters()).device.type,
        "threads": torch.get_num_threads(),
        "sections": len(sections),
        "spots": sum(section.n_obs for section in sections.values()),
        "fit_s": fitted - started,
        "tiles": slide.n_obs,
        "tile_and_predict_s": done - fitted,
        "warned": warned,
        **made_by(),
    }
    file = RESULTS / "unsequenced.csv"
    rows = pd.concat([pd.read_csv(file) if file.exists() else pd.DataFrame(), pd.DataFrame([row])])
    rows = rows.drop_duplicates(["device", "threads"], keep="last")
    rows.to_csv(file, index=False, float_format="%.2f")
    figures = table(rows.drop(columns=[*made_by()]).set_index("device"))
    note = 'Sections of her2st, `preset="default"`; tiles of 50 um of CMU-1-Small-Region.svs.'
    text = f"# A fit of five sections, and a slide of another tissue\n\n{figures}\n\n{note} {made(rows)}.\n"
    (RESULTS / "unsequenced.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
