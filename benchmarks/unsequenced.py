"""From five sections to the map of a slide that was never sequenced: time of the fit, what is warned of, the picture.

    python benchmarks/unsequenced.py
    python benchmarks/unsequenced.py --device cuda

`preset="default"` is fitted to B4, C2, C3, C4 and C5 of her2st, from images to the model. It predicts
CMU-1-Small-Region.svs in tiles of 50 um: another tissue, so that the maps mean nothing, and a warning has to say so.

Needs HGGEP_SHARED. Adds a row to results/unsequenced.csv beside this file, in place of that of the same device, and
draws docs/images/tiling.png anew.
"""

import argparse
import logging
import time
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from accuracy import RESULTS, load, made_by, parse

import hggep_sc as hggep

GENES = ["FASN", "GNAS"]
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "tiling.png"


def main() -> None:
    """Fit, tile, predict and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    options, shared = parse(parser)
    matplotlib.use("Agg")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # the warnings are part of what is shown
    sections, how = load("her2st", shared)
    weights = shared / "weights" / "shufflenetv2_x0_5_trunk.pth"
    started = time.perf_counter()
    model = hggep.tl.fit(sections, weights=weights, device=options.device, **how)
    fitted = time.perf_counter()
    slide = hggep.pp.tile(shared / "data" / "wsi" / "CMU-1-Small-Region.svs", model=model, spacing_um=50)
    hggep.tl.predict(slide, model, device=options.device)
    done = time.perf_counter()
    axes = hggep.pl.gene_map(slide, GENES)
    axes[0].figure.savefig(IMAGE, dpi=100, bbox_inches="tight")
    row = {
        "device": next(model.network.parameters()).device.type,
        "threads": torch.get_num_threads(),
        "sections": len(sections),
        "spots": sum(section.n_obs for section in sections.values()),
        "fit_s": fitted - started,
        "tiles": slide.n_obs,
        "tile_and_predict_s": done - fitted,
        **made_by(),
    }
    file = RESULTS / "unsequenced.csv"
    rows = pd.concat([pd.read_csv(file) if file.exists() else pd.DataFrame(), pd.DataFrame([row])])
    rows.drop_duplicates(["device", "threads"], keep="last").to_csv(file, index=False, float_format="%.2f")
    print(row)


if __name__ == "__main__":
    main()
