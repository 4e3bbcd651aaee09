"""The tissue mask on every real image at hand: which spots it holds, in focus, out of focus and pale.

    HGGEP_SHARED=../shared python benchmarks/tissue.py

Spots that were sequenced lie under tissue; of mob the array's other features are known too. Blurred images are
smoothed by a Gaussian of 24 um, pale ones hold a quarter of the dye. Last, the time of laying 110,000 spots on a mask
that is given. Writes results/tissue.csv and results/tissue.md beside this file.
"""

import argparse
import time

import numpy as np
import pandas as pd
from accuracy import RESULTS, made, made_by, parse, table
from anndata import AnnData
from scipy.ndimage import gaussian_filter
from skimage.io import imread
from skimage.transform import downscale_local_mean

import hggep_sc as hggep
from hggep_sc.section import open_sections

BLUR_UM, PALE, FINE_UM = 24.0, 0.25, 4.0
LARGE = 3_320, 10.0, 100.0  # a slide of 33 mm: side in px, um per px, spacing of spots in um


def variants(image: np.ndarray, mpp: float) -> dict[str, np.ndarray]:
    """Return the image as it is, out of focus, and with less dye."""
    sigma = BLUR_UM / mpp
    glass = np.percentile(image, 95, axis=(0, 1))
    pale = glass * (np.maximum(image, 1) / glass) ** PALE
    return {
        "as it is": image,
        "blurred": gaussian_filter(image, (sigma, sigma, 0)),
        "pale": pale.clip(0, 255).astype(np.uint8),
    }


def row_of(name: str, section: AnnData, bare: np.ndarray | None) -> dict[str, object]:
    """Share of the sequenced spots, and of the features beside the tissue, that lie in the mask of each variant."""
    (library,) = section.uns["spatial"].values()
    (mpp,) = {opened.mpp for opened in open_sections(section)}
    image = imread(library["metadata"]["source_image_path"])[..., :3]
    factor = max(int(FINE_UM / mpp), 1)  # a mask is looked for at 8 um per px
    image, mpp = downscale_local_mean(image, (factor, factor, 1)).round().astype(np.uint8), factor * mpp
    row: dict[str, object] = {"image": name, "spots": section.n_obs, "others": 0 if bare is None else len(bare)}
    for variant, pixels in variants(image, mpp).items():
        mask = hggep.pp.tissue_mask(pixels, mpp=mpp)
        row[f"spots in it, {variant}"] = mask.contains(section.obsm["spatial"] / factor).mean()
        if variant == "as it is":
            row["others in it"] = float("nan") if bare is None else mask.contains(bare / factor).mean()
            row["of the image"] = mask.mask.mean()
    return row


def seconds_of_many() -> tuple[int, float]:
    """Lay spots on a mask of a large slide; return their number and the time."""
    side, mpp, spacing = LARGE
    image = np.broadcast_to(np.uint8(200), (side, side, 3))
    everywhere = hggep.pp.TissueMask(np.ones((side, side), dtype=bool), np.ones(2), mpp)
    started = time.perf_counter()
    slide = hggep.pp.tile(image, spacing_um=spacing, mpp=mpp, tissue=everywhere)
    return slide.n_obs, time.perf_counter() - started


def main() -> None:
    """Look at all images."""
    _, shared = parse(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    )
    hggep.settings.dataset_dir = shared / "data"
    rows = [row_of(name, section, None) for name, section in hggep.datasets.her2st().items()]
    for name, section in hggep.datasets.mob().items():
        features = pd.read_csv(shared / "data" / "mob" / f"alignment_table_{name}.tsv", sep="\t")
        bare = features.loc[features["selected"] != 1, ["pixel_x", "pixel_y"]].to_numpy()
        rows.append(row_of(name, section, bare))
    slide = hggep.pp.tissue_mask(shared / "data" / "wsi" / "CMU-1-Small-Region.svs")
    rows.append({"image": "CMU-1-Small-Region", "of the image": slide.mask.mean()})
    found = pd.DataFrame(rows).assign(**made_by())
    found.to_csv(RESULTS / "tissue.csv", index=False, float_format="%.4f")
    n_spots, seconds = seconds_of_many()
    lines = [
        "# The tissue mask on real images",
        "",
        table(found.drop(columns=[*made_by()]).set_index("image")),
        "",
        f"Shares. {n_spots:,} spots are laid out on a mask that is given in {seconds:.1f} s. {made(found)}.",
    ]
    (RESULTS / "tissue.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
