"""What it takes to describe a spot, by how close spots lie: crops where they are far apart, maps where they are close.

    python benchmarks/features.py                 # 400 to 16 px apart
    python benchmarks/features.py --spacing 16

A tiled JPEG pyramid of 4,096 px at .5 um per px holds as many spots as fit, up to 40,000, so many px apart: 200 px are
the 100 um of Visium, 16 the 8 um of Visium HD. By each way that `settings.feature_route` knows, seconds of
`describe_section` (four fields of view and colours) a spot, and px encoded a spot in bare crops of 112 px. Where
crops would take more than ten times as long as the cheaper way they are not run.

Writes results/features.csv and results/features.md beside this file.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accuracy import RESULTS, made, made_by, table
from slides import write_slide

import hggep_sc as hggep
from hggep_sc.config import Config
from hggep_sc.encoders import load
from hggep_sc.features import slide
from hggep_sc.features.patches import fields_of_view
from hggep_sc.features.store import describe_section
from hggep_sc.section import open_sections

SIDE, MPP, MOST = 4096, 0.5, 40_000
CONFIG = Config()


def main() -> None:
    """Describe spots on grids of several spacings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spacing", nargs="+", type=int, default=[400, 200, 100, 50, 16], help="px between spots")
    options = parser.parse_args()
    hggep.settings.skip_checks = {"images_agree"}  # levels of the pyramid are drawn one by one
    encoder = load("efficientnet_lite0")
    assert encoder.sight is not None  # of a convolutional network
    fields, size, rows = fields_of_view(CONFIG, MPP, MPP), CONFIG.patch_size, []
    everywhere = hggep.pp.TissueMask(np.ones((1, 1), dtype=bool), np.array([SIDE, SIDE]), MPP)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(path, SIDE)
        for spacing in options.spacing:
            spots = hggep.pp.tile(path, spacing_um=spacing * MPP, mpp=MPP, tissue=everywhere)
            (section,) = open_sections(spots[:MOST].copy())
            parts = [section.xy[part] for part in slide.parts_of(section.xy, fields, size, encoder.sight)]
            costs = [slide.costs(xy * (size / field), size, encoder.sight) for xy in parts for field in fields]
            px = {route: sum(cost[route] for cost in costs) for route in ("crops", "maps")}
            px["auto"] = sum(min(cost.values()) for cost in costs)
            for route in ("auto", "maps", "crops"):
                if px[route] > 10 * px["auto"]:
                    continue
                hggep.settings.feature_route, hggep.settings.feature_memory = route, 0
                started = time.perf_counter()
                how = {"colours": True, "device": torch.device("cpu")}
                describe_section(section, encoder, fields, size, **how)
                taken = time.perf_counter() - started
                row = {"spacing_px": spacing, "spots": len(section.xy), "route": route, "seconds": taken}
                row |= {"ms_a_spot": 1e3 * taken / len(section.xy)}
                row |= {"crops_per_spot": px[route] / size**2 / len(section.xy)}
                print(row, flush=True)
                rows.append(row)
    found = pd.DataFrame(rows).assign(threads=torch.get_num_threads(), **made_by())
    found.to_csv(RESULTS / "features.csv", index=False, float_format="%.4f")
    shown = found.drop(columns=[*made_by()]).set_index("spacing_px")
    (RESULTS / "features.md").write_text(
        "# What it takes to describe a spot\n\nEfficientNet-Lite0, four fields of view and colours, from a "
        f"JPEG pyramid at .5 um per px.\n\n{table(shown)}\n\n{made(found)}.\n"
    )


if __name__ == "__main__":
    main()
