"""What it costs to see through the encoders of docs/encoders.md: parameters, features, time and memory.

    python benchmarks/encoders.py

The five sections of her2st that accuracy.py leaves out in turn are described once, as they lie, at four fields of view,
each encoder in a process of its own: seconds, and the most memory that the process held, Python, libraries and images
with it. What fits and predictions take on these features is in results/accuracy.md.

Needs HGGEP_SHARED. Writes results/encoders.csv and .md beside this file.
"""

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from accuracy import RESULTS, THREE, TRUNK, TWO, load, made, made_by, parse, table, trunk_by_name

from hggep_sc.config import Config
from hggep_sc.features.encoders import make_encoder
from hggep_sc.features.patches import fields_of_view, model_mpp
from hggep_sc.features.store import describe_section
from hggep_sc.section import open_sections

ENCODERS = ["shufflenet", "efficientnet_lite0", "efficientnet_lite2", TWO, THREE]


def one(name: str, shared: Path) -> dict[str, object]:
    """Describe all sections by one encoder."""
    sections, _ = load("her2st", shared)
    opened, config = open_sections(sections), Config()
    mpp = model_mpp(opened)
    with trunk_by_name(shared) as folder:
        encoder = make_encoder(name, config, {"shufflenet": shared / TRUNK, THREE: folder}.get(name, "pretrained"))
    started = time.perf_counter()
    for section in opened:
        fields = fields_of_view(config, mpp, section.mpp)
        describe_section(section, encoder, fields, config.patch_size, device=torch.device("cpu"))
    taken, spots = time.perf_counter() - started, sum(len(section.xy) for section in opened)
    return {
        "encoder": name,
        "parameters (M)": sum(p.numel() for p in encoder.parameters()) / 1e6,
        "features": sum(encoder.groups),
        "groups": len(encoder.groups),
        "spots": spots,
        "seconds": taken,
        "ms_a_spot": 1e3 * taken / spots,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "threads": torch.get_num_threads(),
        **made_by(),
    }


def main() -> None:
    """Run each encoder, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, shared = parse(parser)
    rows = []
    for name in ENCODERS:
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            rows.append(alone.submit(one, name, shared).result())
        print(rows[-1], flush=True)
    found = pd.DataFrame(rows)
    found.to_csv(RESULTS / "encoders.csv", index=False, float_format="%.4f")
    shown = table(found.drop(columns=[*made_by()]).set_index("encoder"))
    (RESULTS / "encoders.md").write_text(
        "# What it costs to see through an encoder\n\nFive sections of her2st, one view, four fields of view.\n\n"
        f"{shown}\n\n{made(found)}.\n"
    )


if __name__ == "__main__":
    main()
