"""Readers of slides, side by side: which files each reads rightly, and how fast.

    pip install tiffslide openslide-python openslide-bin
    HGGEP_SHARED=../shared python benchmarks/readers.py

Small files of each kind are written and read back by tifffile, as the package does, by tiffslide and by
openslide-python; those not installed are left out. Times are CPU seconds of windows of 224 px at random places of
CMU-1-Small-Region.svs, the least of three rounds. Writes results/readers.csv and results/readers.md beside this file.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import tifffile
from accuracy import RESULTS, made, made_by, parse, table

import hggep_sc as hggep
from hggep_sc.image import SectionImage

SIDE, TILE, MPP = 512, 64, 0.5
LOSSY = 12  # of 255: what lossy compression may change
WINDOW, WINDOWS, ROUNDS = 224, 500, 3
APERIO = f"Aperio Image Library v10.0.50\r\n{SIDE}x{SIDE} [0,0 {SIDE}x{SIDE}] ({TILE}x{TILE})|AppMag = 20|MPP = {MPP}"
TIFFS = ["jpeg", "lzw", "deflate", "zstd", "webp", "jpegxl", "jpeg2000"]

Read = Callable[[int, int, int, int], np.ndarray]  # left, top, width, height of the finest level -> (h, w, 3)


def picture() -> np.ndarray:
    """Smooth colours, which lossy compression changes little."""
    y, x = np.mgrid[:SIDE, :SIDE] / 90
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2)
    return (150 + 80 * waves).round().astype(np.uint8)


def write_pyramid(path: Path, pixels: np.ndarray, compression: str) -> None:
    """Write a tiled TIFF of two levels, one after the other."""
    options: dict[str, Any] = {"photometric": "rgb", "tile": (TILE, TILE), "compression": compression}
    if compression in ("jpeg", "webp"):
        options["compressionargs"] = {"level": 95}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(pixels, **options)
        writer.write(pixels[::2, ::2], subfiletype=1, **options)


def write_ome(path: Path, pixels: np.ndarray) -> None:
    """Write an OME-TIFF whose second level is in a SubIFD."""
    size = {"PhysicalSizeX": MPP, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": MPP, "PhysicalSizeYUnit": "µm"}
    options: dict[str, Any] = {"photometric": "rgb", "tile": (TILE, TILE), "compression": "deflate"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as writer:
        writer.write(pixels, subifds=1, metadata={"axes": "YXS", **size}, **options)
        writer.write(pixels[::2, ::2], subfiletype=1, **options)


def write_svs(path: Path, pixels: np.ndarray, compression: int) -> None:
    """Write an SVS as Aperio does with JPEG 2000: 33005 holds RGB, 33003 YCbCr."""
    red, green, blue = np.moveaxis(pixels.astype(float), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    ycbcr = np.stack([luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402], axis=2).round()
    stored = ycbcr.astype(np.uint8) if compression == 33003 else pixels
    places = [(y, x) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE)]
    tiles = (np.ascontiguousarray(stored[y : y + TILE, x : x + TILE]) for y, x in places)
    mct = compression != 33003
    encoded = (imagecodecs.jpeg2k_encode(tile, codecformat="j2k", mct=mct, reversible=True) for tile in tiles)
    how = {"tile": (TILE, TILE), "compression": compression, "photometric": "rgb", "description": APERIO}
    tifffile.imwrite(path, encoded, shape=pixels.shape, dtype=np.uint8, metadata=None, **how)


@contextmanager
def by_tifffile(path: Path) -> Iterator[tuple[int, float | None, Read]]:
    """Open a slide as the package does; give number of levels, um per px, and what reads a window."""
    with SectionImage.from_file(path) as image:

        def read(left: int, top: int, width: int, height: int) -> np.ndarray:
            centre = [[left + width / 2, top + height / 2]]
            return image.read_patches(centre, field=width, size=width)[0].transpose(1, 2, 0)[:height]

        yield len(image._levels), image.mpp, read


@contextmanager
def by_library(name: str, path: Path) -> Iterator[tuple[int, float | None, Read]]:
    """Open a slide by a library with openslide's interface."""
    library = importlib.import_module(name)
    opened = {"tiffslide": "TiffSlide", "openslide": "OpenSlide"}[name]
    with getattr(library, opened)(path) as slide:

        def read(left: int, top: int, width: int, height: int) -> np.ndarray:
            return np.asarray(slide.read_region((left, top), 0, (width, height)))[..., :3]

        mpp = slide.properties.get(f"{name}.mpp-x")
        yield slide.level_count, None if mpp is None else float(mpp), read


def verdict(opener: Callable[[Path], Any], path: Path, pixels: np.ndarray, levels: int, tolerance: int) -> str:
    """Tell in a few words what a reader makes of a file."""
    try:
        with opener(path) as (found, mpp, read):
            off = int(np.abs(read(0, 0, SIDE, SIDE).astype(int) - pixels).max())
    except Exception as error:  # noqa: BLE001 - whatever a library raises is what is asked for
        return f"refused ({type(error).__name__})"
    said = "yes" if off <= tolerance else f"wrong colours (by {off})"
    said += "" if found == levels else f", {found} of {levels} levels"
    return said + ("" if mpp is None else ", mpp")


def seconds(opener: Callable[[Path], Any], path: Path) -> tuple[float, bool]:
    """Return CPU seconds of windows at random, and whether four threads read the same as one."""
    rng, least = np.random.default_rng(0), float("inf")
    with opener(path) as (_, _, read):
        places = [(int(x), int(y)) for x, y in rng.integers(0, 1900, (WINDOWS, 2))]

        def window(place: tuple[int, int]) -> np.ndarray:
            return read(*place, WINDOW, WINDOW)

        for _ in range(ROUNDS):
            started = time.process_time()
            alone = [window(place) for place in places]
            least = min(least, time.process_time() - started)
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(window, places))
    return least, all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def main() -> None:
    """Write the files, read them by every library that is installed, and time the windows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, shared = parse(parser)
    packages = {"tifffile": "tifffile", "tiffslide": "tiffslide", "openslide": "openslide-python"}
    openers: dict[str, Callable[[Path], Any]] = {"tifffile": by_tifffile}
    for name in ("tiffslide", "openslide"):
        if importlib.util.find_spec(name):
            openers[name] = lambda path, name=name: by_library(name, path)
    pixels, rows = picture(), []
    with tempfile.TemporaryDirectory() as folder:
        cases: list[tuple[str, str, int, int, Callable[[Path], None]]] = [
            (f"pyramid, {kind}", "tif", 2, LOSSY, lambda path, kind=kind: write_pyramid(path, pixels, kind))
            for kind in TIFFS
        ]
        cases += [("pyramidal OME-TIFF", "ome.tif", 2, 0, lambda path: write_ome(path, pixels))]
        cases += [
            (f"SVS, JPEG 2000, {number}", "svs", 1, 3, lambda path, number=number: write_svs(path, pixels, number))
            for number in (33005, 33003)
        ]
        for number, (kind, suffix, levels, tolerance, write) in enumerate(cases):
            path = Path(folder) / f"{number}.{suffix}"
            write(path)
            found = {name: verdict(opener, path, pixels, levels, tolerance) for name, opener in openers.items()}
            rows.append({"file": kind, **found})
    slide = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    cached = {name: seconds(opener, slide) for name, opener in openers.items() if name != "tiffslide"}  # it has none
    hggep.settings.tile_cache = 0
    bare = {name: seconds(opener, slide) for name, opener in openers.items() if name != "openslide"}  # it always has
    first = bare["tifffile"][0]
    for what, times in {"without a cache of tiles": bare, "with one": cached}.items():
        ratios = {name: f"{taken / first:.2f}" for name, (taken, _) in times.items()}
        rows.append({"file": f"CPU time of windows, {what}", **ratios})
    alike = {name: "yes" if same else "no" for name, (_, same) in {**cached, **bare}.items()}
    rows.append({"file": "four threads read what one reads", **alike})
    found = pd.DataFrame(rows).fillna("").assign(**made_by())
    found.to_csv(RESULTS / "readers.csv", index=False)
    versions = ", ".join(f"{packages[name]} {importlib.metadata.version(packages[name])}" for name in openers)
    lines = [
        "# Readers of slides",
        "",
        table(found.drop(columns=[*made_by()]).set_index("file")),
        "",
        f"mpp: the file's um per px are told. CPU time: {WINDOWS} windows of {WINDOW} px of CMU-1-Small-Region.svs, "
        "over tifffile's without a cache. "
        f"{versions}; {made(found)}.",
    ]
    (RESULTS / "readers.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
