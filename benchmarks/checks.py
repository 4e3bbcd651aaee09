"""The checks of the input: what they say of sound sections, and what they cost.

    HGGEP_SHARED=../shared python benchmarks/checks.py

Every real section at hand, a synthetic one and a slide of 1 GiB of pixels (tiled, with a pyramid) are predicted by gene
means, which look at no pixel: the time is that of opening and checking. It is measured with all checks and with all of
them switched off, in turns, and the fastest of three of each is noted. A warning is a false alarm, as all these are
sound. Writes results/checks.csv and results/checks.md beside this file.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from accuracy import RESULTS, made, made_by, parse, table
from anndata import AnnData
from parts import heard
from slides import SPACING, write_slide

import hggep_sc as hggep
from hggep_sc._settings import CHECKS
from hggep_sc.image import SectionImage

SIDE, MPP = 18_944, 0.5  # of the slide: 1 GiB of RGB pixels
RUNS = 3


def slide(folder: Path, genes: list[str]) -> AnnData:
    """Lay spots all over a large slide, with a reduced copy of the image beside the file."""
    path = folder / "slide.tif"
    write_slide(path, SIDE)
    with SectionImage.from_file(path) as image:
        reduced = image.thumbnail(2000)
    at = np.arange(SPACING // 2, SIDE, SPACING, dtype=float)
    xy = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    spots = AnnData(np.zeros((len(xy), len(genes)), np.float32), var=pd.DataFrame(index=genes), obsm={"spatial": xy})
    spots.uns["spatial"] = {
        "slide": {
            "images": {"hires": reduced},
            "scalefactors": {"tissue_hires_scalef": reduced.shape[1] / SIDE, "microns_per_pixel": MPP},
            "metadata": {"source_image_path": str(path)},
        }
    }
    return spots


def row_of(name: str, section: AnnData, model: "hggep.baselines.GeneMean") -> dict[str, object]:
    """Seconds with and without checks, and the warnings."""
    taken: dict[str, list[float]] = {"with": [], "without": []}
    warnings: list[str] = []
    for _ in range(RUNS):
        for kind, skipped in (("with", ()), ("without", CHECKS)):
            hggep.settings.skip_checks = skipped
            with heard() as messages:
                started = time.perf_counter()
                hggep.tl.predict(section, model, copy=True)
                taken[kind].append(time.perf_counter() - started)
            warnings += messages if kind == "with" else []
    hggep.settings.skip_checks = ()
    seconds = {f"seconds {kind}": min(times) for kind, times in taken.items()}
    return {"section": name, "spots": section.n_obs, **seconds, "false alarms": len(set(warnings))}


def main() -> None:
    """Check all sections."""
    _, shared = parse(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    )
    hggep.settings.dataset_dir, hggep.settings.progress = shared / "data", False
    rows = []
    for sections in (hggep.datasets.her2st(), hggep.datasets.mob(), hggep.datasets.synthetic()):
        model = hggep.tl.fit(sections, method="gene_mean", genes=100)
        rows += [row_of(name, section, model) for name, section in sections.items()]
    with tempfile.TemporaryDirectory() as folder:
        rows.append(row_of("slide of 1 GiB", slide(Path(folder), model.genes), model))
    found = pd.DataFrame(rows).assign(**made_by())
    found.to_csv(RESULTS / "checks.csv", index=False, float_format="%.3f")
    shown = found.drop(columns=list(made_by())).set_index("section")
    (RESULTS / "checks.md").write_text(f"# Checks of the input\n\n{table(shown)}\n\n{made(found)}.\n")
    print((RESULTS / "checks.md").read_text())


if __name__ == "__main__":
    main()
