"""Features of the slide instead of the spot, tried: what surroundings of a window give a ridge, and what they cost.

    python benchmarks/maps.py

A spot's features at each field of view are what the backbone makes of the *slide*, averaged over the spot's window, by
two routes to the same figure. *Maps*: the tissue under and around the windows is encoded in tiles, and summed-area
tables give the mean over any window. *Crops*: every window is encoded by itself with real pixels around it, and its
inner part averaged. Beside them what the package does now: crops with nothing around them. One view, four fields,
B4 and C2 to C5 of her2st, each predicted by a low-rank ridge on these features of the other four.

Needs HGGEP_SHARED. Writes results/maps.csv and results/maps.md beside this file.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accuracy import RESULTS, load, made, made_by, parse, table
from torch import Tensor

from hggep_sc.features.moments import standardise
from hggep_sc.features.weights import load_pretrained
from hggep_sc.image import SectionImage
from hggep_sc.metrics import pearson
from hggep_sc.nn import ShuffleNetEncoder
from hggep_sc.section import open_sections
from hggep_sc.training.ridge import ALPHAS, RANK, low_rank_ridge
from hggep_sc.training.selection import Training

FIELDS, SIZE = (80.0, 160.0, 240.0, 480.0), 112  # um, and px of each
TILE = 640  # px of a tile without its halo: larger maps do not fit a CPU's cache, smaller ones are mostly halo
CROPS = 8  # encoded at once
WAYS = {"bare crops": ("crops", 0), "crops": ("crops", 64), "maps": ("maps", 64), "the cheaper of both": (None, 64)}

MapsOf = Callable[[Tensor], Sequence[Tensor]]  # (N, 3, S, S) uint8 to a map (N, C, S / stride, S / stride) per stage


def summed_area(maps: Tensor) -> Tensor:
    """Sum maps (C, H, W) over all that is above and left of each corner, (C, H + 1, W + 1), in double precision."""
    return F.pad(maps.double().cumsum(1).cumsum(2), (1, 0, 1, 0))


def window_sums(table: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sum a map that is constant in each cell over windows from `low` to `high` (n, 2), x and y in cells: (n, C).

    Its `summed_area` is read bilinearly at their corners; what lies outside of the map counts nothing.
    """
    extent = torch.tensor([table.shape[2] - 1, table.shape[1] - 1], dtype=torch.double, device=table.device)
    (left, top), (right, bottom) = (corner.clamp(extent * 0, extent).T for corner in (low, high))
    corners = [torch.stack(corner, dim=1) for corner in ((right, bottom), (left, bottom), (right, top), (left, top))]
    at = torch.stack(corners) / extent * 2 - 1  # (4, n, 2), in -1..1 as grid_sample has them
    sums = F.grid_sample(table[None], at[None], align_corners=True)[0]  # (C, 4, n)
    return (sums[:, 0] - sums[:, 1] - sums[:, 2] + sums[:, 3]).T


def tiles_under(centres: np.ndarray) -> np.ndarray:
    """Return the tiles that windows touch, (n_tiles, 2) column and row, each once, row by row."""
    first = np.floor((centres - SIZE / 2) / TILE).astype(np.int64)
    last = np.ceil((centres + SIZE / 2) / TILE).astype(np.int64) - 1
    touched = [
        np.clip(first + np.array([column, row]), first, last)
        for row in range(int((last - first)[:, 1].max()) + 1)
        for column in range(int((last - first)[:, 0].max()) + 1)
    ]
    found = np.unique(np.concatenate(touched), axis=0)
    return found[np.lexsort(found.T)]


def pixels_encoded(centres: np.ndarray, halo: int) -> dict[str, int]:
    """Tell how many px an encoder is given for windows of a scale by either route; centres in px of the scale."""
    return {
        "maps": len(tiles_under(centres)) * (TILE + 2 * halo) ** 2,
        "crops": len(centres) * (SIZE + 2 * halo) ** 2,
    }


def from_crops(image: SectionImage, centres: np.ndarray, step: float, halo: int, maps_of: MapsOf) -> np.ndarray:
    """Encode every window with its surroundings, and average its inner part: (n, D)."""
    side = SIZE + 2 * halo
    found = []
    for start in range(0, len(centres), CROPS):
        pixels = image.read_patches(centres[start : start + CROPS], field=side * step, size=side)
        found.append(torch.cat([inner(maps, SIZE / side) for maps in maps_of(torch.from_numpy(pixels))], dim=1))
    return torch.cat(found).float().numpy()


def inner(maps: Tensor, share: float) -> Tensor:
    """Average the middle of square maps (N, C, H, W), a share of their side, (N, C)."""
    side = maps.shape[-1]
    low = torch.full((1, 2), (1 - share) / 2 * side, dtype=torch.double)
    return torch.cat([window_sums(summed_area(each), low, side - low) for each in maps]) / (share * side) ** 2


def from_maps(image: SectionImage, centres: np.ndarray, step: float, halo: int, maps_of: MapsOf) -> np.ndarray:
    """Encode the tissue in tiles, and average windows over their maps: (n, D)."""
    at, sums = centres / step, None
    for tile, tables in tiles_of(image, tiles_under(at), step, halo, maps_of):
        near = np.flatnonzero((np.abs(at - (tile + 0.5) * TILE) < (TILE + SIZE) / 2).all(axis=1))
        middle = torch.from_numpy(at[near] - tile * TILE)
        parts = []
        for of_stage in tables:
            cell = TILE / (of_stage.shape[-1] - 1)  # px of the scale in a cell
            found = window_sums(of_stage, (middle - SIZE / 2) / cell, (middle + SIZE / 2) / cell)
            parts.append(found / (SIZE / cell) ** 2)
        part = torch.cat(parts, dim=1)
        sums = part.new_zeros(len(at), part.shape[1]) if sums is None else sums
        sums[torch.from_numpy(near)] += part
    return sums.float().numpy()


def tiles_of(
    image: SectionImage, tiles: np.ndarray, step: float, halo: int, maps_of: MapsOf
) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
    """Yield each tile and the summed-area tables of its stages, without the halo."""
    side = TILE + 2 * halo
    for tile in tiles:
        centre = (tile + 0.5) * TILE * step
        pixels = torch.from_numpy(image.read_patches(centre[None], field=side * step, size=side))
        inside = [(maps[0], halo * maps.shape[-1] // side) for maps in maps_of(pixels)]
        yield tile, [summed_area(maps[:, margin:-margin, margin:-margin]) for maps, margin in inside]


ROUTES = {"crops": from_crops, "maps": from_maps}


def trunk_of(weights: Path) -> MapsOf:
    """Return what gives the maps of the backbone's three stages."""
    encoder = ShuffleNetEncoder()
    load_pretrained(encoder, weights)
    fast = encoder.eval().for_inference()

    @torch.inference_mode()
    def maps_of(pixels: Tensor) -> list[Tensor]:
        return list(itertools.islice(fast.backbone.maps(fast.normalise(pixels)), 3))

    return maps_of


def main() -> None:
    """Describe the sections in each way, and predict each from the others."""
    _, shared = parse(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    )
    data, how = load("her2st", shared)
    sections, targets = open_sections(data), []
    for section in sections:
        counts = section.counts(how["genes"]).toarray()
        seen = counts.sum(axis=1) > 0
        targets.append((seen, np.log1p(1e4 * counts[seen] / counts[seen].sum(axis=1, keepdims=True))))
    maps_of, rows = trunk_of(shared / "weights" / "shufflenetv2_x0_5_trunk.pth"), []
    for way, (route, halo) in WAYS.items():
        features, encoded, started = [], 0, time.perf_counter()
        for section in sections:
            of_fields = []
            with section.open_image() as image:
                for um in FIELDS:
                    step = um / section.mpp / SIZE
                    cost = pixels_encoded(section.xy / step, halo)
                    taken = route or min(cost, key=cost.__getitem__)
                    encoded += cost[taken]
                    of_fields.append(ROUTES[taken](image, section.xy, step, halo, maps_of))
            features.append(standardise(np.hstack(of_fields)))
        row: dict[str, object] = {"way": way, "halo": halo, "seconds": time.perf_counter() - started}
        row["crops_per_spot"] = encoded / SIZE**2 / sum(len(section.xy) for section in sections)
        row |= dict(zip([section.name for section in sections], folds(sections, features, targets), strict=True))
        row["mean"] = np.mean([row[section.name] for section in sections])
        rows.append(row)
        print(row, flush=True)
    found = pd.DataFrame(rows).assign(**made_by())
    found.to_csv(RESULTS / "maps.csv", index=False, float_format="%.4f")
    shown = found.drop(columns=[*made_by(), "seconds"]).set_index("way")
    (RESULTS / "maps.md").write_text(
        "# Features of the slide instead of the spot\n\nMean PCC over 785 genes in each section that is left out, and "
        "what is encoded for a spot, in bare crops of 112 px.\n\n" + table(shown) + f"\n\n{made(found)}.\n"
    )


def folds(sections: Sequence, features: Sequence[np.ndarray], targets: Sequence) -> Iterator[float]:
    """Yield the mean PCC in each section, by a low-rank ridge of the others."""
    for number, (seen, observed) in enumerate(targets):
        others = [(s, f, t) for i, (s, f, t) in enumerate(zip(sections, features, targets, strict=True)) if i != number]
        training = Training.of(
            [f[t[0]] for _, f, t in others],
            [t[1] - t[1].mean(axis=0) for _, _, t in others],
            [s.xy[t[0]] for s, _, t in others],
            [None] * len(others),
            0,
        )
        _, coefficients, components = low_rank_ridge(training, ALPHAS, RANK)
        yield float(np.nanmean(pearson(features[number][seen] @ coefficients @ components, observed)))


if __name__ == "__main__":
    main()
