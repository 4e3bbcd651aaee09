"""A pathology model of full size, from a snapshot of its hub's on disk: fit, save, load and predict; time and memory.

    python benchmarks/foundation.py                      # H-optimus-0 and UNI2-h
    python benchmarks/foundation.py --encoders virchow2

The weights are random, of the real architecture, written as a snapshot (`model.safetensors`) and read from it, as a
downloaded one is: what is predicted means nothing. A low-rank ridge is fitted to few spots of synthetic sections at the
encoder's own scale; a patch takes a large transformer some seconds on a CPU. Each encoder runs in a process of its own;
results/foundation.md has a row for each.
"""

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from accuracy import RESULTS, made_by, table
from safetensors.torch import save_file

import hggep_sc as hggep

SPOTS, GENES = 6, 10


def one(name: str) -> dict[str, object]:
    """Run one encoder."""
    info = hggep.encoders.info(name)
    sections = hggep.datasets.synthetic(n_sections=3, n_spots=SPOTS, n_genes=GENES)
    test = sections.pop("S3")
    # the first field alone: each takes as long
    config = {"fields_um": info.settings["fields_um"][:1], "fields_px": info.settings["fields_px"][:1]}
    how = {"method": "low_rank_ridge", "genes": GENES, "config": {**config, "alphas": (1.0,)}, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "snapshot"
        snapshot.mkdir()
        network = hggep.encoders.load(name, None).network.transformer
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        save_file(network.state_dict(), snapshot / "model.safetensors")
        del network
        started = time.perf_counter()
        encoder = hggep.encoders.load(name, snapshot)
        loaded = time.perf_counter()
        model = hggep.tl.fit(sections, encoder=encoder, **how)
        fitted = time.perf_counter()
        model.save(Path(folder) / "model")
        again = type(model).load(Path(folder) / "model", encoder=snapshot)
        hggep.tl.predict(test, again, progress=False)
        done = time.perf_counter()
    assert hggep.get.prediction(test).shape == (SPOTS, GENES)
    return {
        "encoder": info.title,
        "parameters (M)": parameters,
        "features": sum(encoder.groups),
        "load_s": loaded - started,
        "fit_s_per_patch": (fitted - loaded) / (2 * SPOTS),
        "save_load_predict_s": done - fitted,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Run the encoders named on the command line, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["h_optimus_0", "uni2_h"])
    options = parser.parse_args()
    rows = []
    for name in options.encoders:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(one, name).result())
        print(rows[-1], flush=True)
    lines = [
        "# Pathology models of full size, with random weights",
        "",
        f"{2 * SPOTS} patches in the fit and {SPOTS} in the prediction, on a CPU ({made_by()['machine']}, beside other "
        "work). The peak is with the weights in memory twice: random ones, and those read from the snapshot.",
        "",
        table(pd.DataFrame(rows).set_index("encoder")),
    ]
    (RESULTS / "foundation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
