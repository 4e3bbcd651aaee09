"""Features of the slide instead of the spot: what surroundings of a window give a ridge, and what they cost.

    python benchmarks/maps.py

A spot's features at each field of view are the backbone's maps, averaged over the spot's window. Compared are bare
crops, of which the backbone sees nothing beyond the window; crops with real surroundings; maps of the tissue; and for
each field of view whichever of these two has fewer px to encode, as the package takes. One view, four fields, B4 and
C2 to C5 of her2st, each predicted by a low-rank ridge on these features of the other four, without and with colours.

Needs HGGEP_SHARED. Writes results/maps.csv and results/maps.md beside this file.
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from accuracy import RESULTS, TRUNK, load, made, made_by, parse, table

import hggep_sc as hggep
from hggep_sc.config import Config
from hggep_sc.features import slide
from hggep_sc.features.describe import describe_parts, of_patches
from hggep_sc.features.encoders import make_encoder
from hggep_sc.features.patches import fields_of_view, model_mpp
from hggep_sc.features.store import Described, describe_section
from hggep_sc.metrics import pearson
from hggep_sc.nn import Encoder
from hggep_sc.prediction.linear import linear_features
from hggep_sc.section import Section, open_sections
from hggep_sc.training.ridge import ALPHAS, RANK, low_rank_ridge
from hggep_sc.training.selection import Training

CONFIG, CPU = Config(), torch.device("cpu")
WAYS = {"bare crops": None, "crops": "crops", "maps": "maps", "the cheaper of both": "auto"}


def described(section: Section, encoder: Encoder, mpp: float, route: str | None) -> tuple[Described, float]:
    """Return features, and how much is encoded for a spot, in bare crops."""
    fields, size = fields_of_view(CONFIG, mpp, section.mpp), CONFIG.patch_size
    if route is None:
        with section.open_image() as image:
            patches = describe_parts(
                image, [section.xy], fields, size, [of_patches(encoder)], batch_size=64, device=CPU
            )
            ((found,),) = patches
        colours = describe_section(section, None, fields, size, colours=True, device=CPU).colours
        return Described(found.numpy(), colours), float(len(fields))
    hggep.settings.feature_route = route
    costs = [
        slide.costs(section.xy[spots] * (size / field), size)
        for spots in slide.parts_of(section.xy, fields, size)
        for field in fields
    ]
    encoded = sum(cost[route] if route in cost else min(cost.values()) for cost in costs)
    found = describe_section(section, encoder, fields, size, colours=True, device=CPU)
    return found, encoded / size**2 / len(section.xy)


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
    encoder = make_encoder("shufflenet", CONFIG, shared / TRUNK)
    assert isinstance(encoder, Encoder)
    encoder.eval()
    mpp, rows = model_mpp(sections), []
    for way, route in WAYS.items():
        found = [described(section, encoder, mpp, route) for section in sections]
        for colours in (False, True):
            features = [linear_features(seen if colours else Described(seen.encoded, None)) for seen, _ in found]
            row: dict[str, object] = {"way": way, "colours": "yes" if colours else "no"}
            row["crops_per_spot"] = float(np.mean([encoded for _, encoded in found]))
            row |= dict(zip([section.name for section in sections], folds(sections, features, targets), strict=True))
            row["mean"] = np.mean([row[section.name] for section in sections])
            rows.append(row)
            print(row, flush=True)
    measured = pd.DataFrame(rows).assign(**made_by())
    measured.to_csv(RESULTS / "maps.csv", index=False, float_format="%.4f")
    shown = measured.drop(columns=[*made_by()]).set_index("way")
    (RESULTS / "maps.md").write_text(
        "# Features of the slide instead of the spot\n\nMean PCC over 785 genes in each section that is left out, by a "
        "low-rank ridge on the trunk's features, without and with colours, and what is encoded for a spot, "
        f"in bare crops of 112 px.\n\n{table(shown)}\n\n{made(measured)}.\n"
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
