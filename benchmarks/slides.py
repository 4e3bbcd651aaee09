"""Reading patches from a tiled, pyramidal JPEG TIFF of 20,000 x 20,000 px: decodes per tile, rate and memory.

    python benchmarks/slides.py

10,000 spots 200 px apart, four fields of view around each. Every row of the table is one pass over all spots in an
order and in batches; a decode is a tile that the file is asked for. The rates are of the middle tenth of the rows of
spots, beside the same patches read without the cache and, where it is installed, through openslide-python with a
cache as large. Two minutes of a core. Writes results/slides.csv and results/slides.md beside this file.
"""

import importlib.metadata
import importlib.util
import platform
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from tifffile.zarr import ZarrTiffStore

import hggep_sc as hggep
from hggep_sc.features.patches import read_patches
from hggep_sc.image import SectionImage

RESULTS = Path(__file__).parent / "results"
SIDE, TILE, FACTORS = 20_000, 256, (1, 4, 16)
SPACING, FIELDS, SIZE = 200, (160.0, 320.0, 480.0, 960.0), 112
RATE_ROWS = slice(45, 55)  # of spots
MIB = 2**20


def tiles(side: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Tissue-coloured texture, a tile at a time; JPEG takes about as long over it as over a stained section."""
    coarse = rng.normal(0, 25, (40, TILE // 8 + 40, 3)).repeat(8, axis=0).repeat(8, axis=1)
    fine = rng.normal(0, 6, coarse.shape)
    texture = (coarse + fine + (200, 130, 170)).clip(0, 255).astype(np.uint8)
    for _ in range((-(-side // TILE)) ** 2):
        top, left = rng.integers(0, 40, 2)
        yield texture[top : top + TILE, left : left + TILE]


def write_slide(path: Path, finest: int = SIDE) -> None:
    rng = np.random.default_rng(0)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for factor in FACTORS:
            side = finest // factor
            writer.write(
                tiles(side, rng),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(factor > 1),
            )


def count_decodes() -> Counter[tuple[int, str]]:
    """Count, from now on, how often each tile of a TIFF is asked for."""
    counts: Counter[tuple[int, str]] = Counter()
    get = ZarrTiffStore.get

    async def counting(self: ZarrTiffStore, key: str, *args: Any, **kwargs: Any) -> Any:
        if ".z" not in key and not key.endswith(".json"):
            counts[id(self), key] += 1
        return await get(self, key, *args, **kwargs)

    ZarrTiffStore.get = counting
    return counts


def read(image: SectionImage, xy: np.ndarray, batch: int) -> None:
    for start in range(0, len(xy), batch):
        read_patches(image, xy[start : start + batch], FIELDS, SIZE)


def rate(work: Callable[[], object], patches: int) -> float:
    """Patches per second of this process's own time, whatever else the machine does."""
    started = time.process_time()
    work()
    return patches / (time.process_time() - started)


def openslide_rate(path: Path, xy: np.ndarray) -> float:
    """Read the same boxes from the same levels, and resample them with the same filter."""
    import openslide

    def read_all() -> None:
        with openslide.OpenSlide(path) as slide:
            slide.set_cache(openslide.OpenSlideCache(hggep.settings.tile_cache))
            for field in FIELDS:
                level = slide.get_best_level_for_downsample(field / SIZE)
                side = round(field / slide.level_downsamples[level])
                for x, y in xy:
                    corner = (int(x - field / 2), int(y - field / 2))
                    region = slide.read_region(corner, level, (side, side)).convert("RGB")
                    np.asarray(region.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=3.0))

    return rate(read_all, len(xy) * len(FIELDS))


def main() -> None:
    """Write the slide, pass over it, and note the figures."""
    at = np.arange(SPACING // 2, SIDE, SPACING)
    x, y = np.meshgrid(at, at)
    rows = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    side = 22 * SPACING  # about 512 spots, as a model predicts them
    square = rows // side
    orders = {"rows": rows, "squares": rows[np.lexsort((*rows.T, *square.T))]}
    counts = count_decodes()
    table = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(path)
        size = path.stat().st_size
        for order, batch in (("rows", 64), ("rows", 1024), ("squares", 64)):
            counts.clear()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with SectionImage.from_file(path) as image:
                read(image, orders[order], batch)
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            table.append(
                {
                    "order": order,
                    "batch": batch,
                    "tiles": len(counts),
                    "decodes_per_tile": counts.total() / len(counts),
                    "most_decodes_of_a_tile": max(counts.values()),
                    "peak_rises_by_mib": peak / MIB,
                }
            )
            print(table[-1], flush=True)

        some = rows.reshape(len(at), len(at), 2)[RATE_ROWS].reshape(-1, 2)
        rates = {}
        kept = hggep.settings.tile_cache
        for name, cache in (("with the cache", kept), ("without a cache", 0)):
            hggep.settings.tile_cache = cache
            with SectionImage.from_file(path) as image:
                rates[name] = rate(lambda image=image: read(image, some, 64), len(some) * len(FIELDS))
        hggep.settings.tile_cache = kept
        if importlib.util.find_spec("openslide"):
            rates[f"openslide {importlib.metadata.version('openslide-python')}"] = openslide_rate(path, some)

    result = pd.DataFrame(table)
    result.to_csv(RESULTS / "slides.csv", index=False, float_format="%.3f")
    lines = [" | ".join(line) for line in [[name.replace("_", " ") for name in result], ["---"] * len(result.columns)]]
    lines += [
        f"{row.order} | {row.batch} | {row.tiles} | {row.decodes_per_tile:.3f} | {row.most_decodes_of_a_tile} | "
        f"{row.peak_rises_by_mib:.0f}"
        for row in result.itertuples()
    ]
    body = "\n".join(f"| {line} |" for line in lines)
    without = rates["without a cache"]
    ratios = "; ".join(f"{name} {patches:.0f}, a ratio of {patches / without:.2f}" for name, patches in rates.items())
    libraries = ("tifffile", "imagecodecs", "zarr", "pillow", "numpy", "cachetools")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    fields = ", ".join(f"{field:.0f}" for field in FIELDS)
    note = (
        f"{SIDE} x {SIDE} px, JPEG tiles of {TILE} px, levels {FACTORS}, {size / MIB:.0f} MiB on disk; {len(rows)} "
        f"spots {SPACING} px apart, fields of {fields} px, patches of {SIZE} px. `settings.tile_cache` "
        f"{kept / MIB:.0f} MiB. Peak: of the process's memory, over that of the passes before. Patches per CPU second: "
        f"{ratios}. {platform.machine()}, measured beside other work on the same two cores. hggep_sc "
        f"{hggep.__version__}, {versions}, Python {platform.python_version()}."
    )
    (RESULTS / "slides.md").write_text(f"# Reading patches from a slide\n\n{body}\n\n{note}\n")
    print((RESULTS / "slides.md").read_text())


if __name__ == "__main__":
    main()
