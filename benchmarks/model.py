"""Fit the default to the five HER2+ sections at hand and save it with its card: `make model`.

    python benchmarks/model.py --out her2.hggep

B4, C2, C3, C4 and C5 of her2st, the 785-gene panel. Sections are downloaded, or taken from HGGEP_SHARED (`data`). The
patient of C2 to C5 counts as one, so that the card's reliability tells of a new patient.
"""

import argparse
import os
from pathlib import Path

import hggep_sc as hggep


def main() -> None:
    """Fit and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("her2.hggep"), help="folder of the model")
    parser.add_argument("--epochs", type=int, help="of the networks, instead of the preset's")
    options = parser.parse_args()
    if shared := os.environ.get("HGGEP_SHARED"):
        hggep.settings.dataset_dir = Path(shared) / "data"
    sections = hggep.datasets.her2st(["B4", "C2", "C3", "C4", "C5"])
    config = {} if options.epochs is None else {"epochs": options.epochs}
    how = {"genes": "her2st_panel", "normalize": "panel", "groups": "patient", "config": config}
    model = hggep.tl.fit(sections, **how)
    model.save(options.out, overwrite=True)
    print(f"{model}\n{options.out}")


if __name__ == "__main__":
    main()
