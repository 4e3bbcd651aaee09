"""The checks of the input: what they say of sound sections, and what they cost.

    HGGEP_SHARED=../shared python benchmarks/checks.py

Every real section at hand, synthetic ones, and a slide of 1 GiB of pixels (the real slide at hand, mirrored and
repeated; tiled JPEG with a pyramid) under spots laid by `pp.tile` are opened, and their image after them, which is
where the input is checked. It is timed with all checks and with all of them switched off, in turns, and the fastest of
three of each is noted. A warning is a false alarm, as all these are sound. Writes results/checks.csv and
results/checks.md beside this file.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from accuracy import RESULTS, made, made_by, parse, table
from anndata import AnnData
from parts import heard

import hggep_sc as hggep
from hggep_sc._settings import CHECKS
from hggep_sc.image import SectionImage
from hggep_sc.section import open_sections

SIDE, MPP = 18_944, 0.5  # of the slide: 1 GiB of RGB pixels
TILE, FACTORS = 256, (1, 4, 16)
RUNS = 3


def slide(path: Path, source: Path) -> AnnData:
    """Write a large slide of tissue, and lay spots over it."""
    with SectionImage.from_file(source) as image:
        pixels = image.thumbnail(max(image.shape))
    mirrored = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    mirrored = np.concatenate([mirrored, mirrored[::-1]])
    repeats = -(-SIDE // np.array(mirrored.shape[:2]))
    whole = np.tile(mirrored, (*repeats, 1))[:SIDE, :SIDE]
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for factor in FACTORS:
            level = whole[::factor, ::factor]
            writer.write(level, tile=(TILE, TILE), photometric="rgb", compression="jpeg", subfiletype=int(factor > 1))
    return hggep.pp.tile(path, spacing_um=100, mpp=MPP)


def row_of(name: str, section: AnnData) -> dict[str, object]:
    """Seconds with and without checks, and the warnings."""
    taken: dict[str, list[float]] = {"with": [], "without": []}
    warnings: list[str] = []
    for _ in range(RUNS):
        for kind, skipped in (("with", ()), ("without", CHECKS)):
            hggep.settings.skip_checks = skipped
            with heard() as messages:
                started = time.perf_counter()
                (opened,) = open_sections(section)
                with opened.open_image() as image:
                    image.read_patches(opened.xy[:1], field=100.0, size=32)
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
        rows += [row_of(name, section) for name, section in sections.items()]
    with tempfile.TemporaryDirectory() as folder:
        large = slide(Path(folder) / "slide.tif", shared / "data" / "wsi" / "CMU-1-Small-Region.svs")
        rows.append(row_of("slide of 1 GiB", large))
    found = pd.DataFrame(rows).assign(**made_by())
    found.to_csv(RESULTS / "checks.csv", index=False, float_format="%.3f")
    shown = found.drop(columns=list(made_by())).set_index("section")
    (RESULTS / "checks.md").write_text(f"# Checks of the input\n\n{table(shown)}\n\n{made(found)}.\n")
    print((RESULTS / "checks.md").read_text())


if __name__ == "__main__":
    main()
