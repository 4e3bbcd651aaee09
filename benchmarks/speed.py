"""A training step and a prediction of one section, of each preset in one run: time, peak memory, arithmetic floor.

    python benchmarks/speed.py                  # two cores: about two minutes
    python benchmarks/speed.py --device cuda

One section of 180 spots, 785 genes, patches in memory, random weights. A step is forward, backward and update, as
Lightning runs it, less the transfer to the device, clipping and augmentation; of `default` it is one of each of its
five networks. `published` sees every patch six times (five augmented views); `default` looks at features that its
frozen encoder, EfficientNet-Lite0, computed once of crops with their surroundings, which is the third row: it is spread
over all epochs of a fit. The floor is the arithmetic of the step (its multiplications and additions, counted) at
the rate of a large matrix product in the same precision on the same device; no schedule of the same arithmetic can be
faster. Writes results/speed.csv and .md beside this file; rows of another device stay.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from accuracy import RESULTS, made, made_by, table
from torch.utils.flop_counter import FlopCounterMode

import hggep_sc as hggep
from hggep_sc.encoders import load
from hggep_sc.features.slide import side_of_crop
from hggep_sc.features.windows import middle
from hggep_sc.nn import Batch, HGGEPNetwork, PublishedNetwork, averaged
from hggep_sc.nn.ensemble import networks_for, seen_by_each
from hggep_sc.runtime.device import encoder_precision, mixed_precision

SPOTS, GENES, PATCH = 180, 785, 112
GIB = 2**30


def section_batch(n_fields: int, generator: torch.Generator) -> Batch:
    """One section's patches and targets; spots on a grid of 200 um at 0.69 um per px."""
    side = int(SPOTS**0.5) + 1
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side))[:SPOTS]
    counts = torch.poisson(torch.rand(SPOTS, GENES, generator=generator) * 4, generator=generator)
    return Batch(
        patches=torch.randint(0, 256, (SPOTS, n_fields, 3, PATCH, PATCH), dtype=torch.uint8, generator=generator),
        features=None,
        positions=grid,
        expression=counts.log1p(),
        counts=counts,
        size_factors=torch.ones(SPOTS),
        observed=torch.arange(SPOTS),
        section="section",
    )


def moved(batch: Batch, device: torch.device) -> Batch:
    """Bring the batch to the device."""
    held = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in vars(batch).items()}
    return Batch(**held)


def measured(work: Callable[[], object], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds after one warm-up, peak GPU memory and counted operations."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else float("nan")
    with FlopCounterMode(display=False) as counter:
        work()
    return {"seconds": float(np.median(times)), "gpu_gib": peak, "tera_operations": counter.get_total_flops() / 1e12}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    found = measured(lambda: a @ a, device, 5)
    return 2 * side**3 / found["seconds"]


def rows_of(device: torch.device) -> pd.DataFrame:
    """Every row, in one process."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    random = torch.Generator(device).manual_seed(0)

    def step(network: HGGEPNetwork | PublishedNetwork, batch: Batch, rate: float) -> Callable[[], None]:
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], rate)

        def once() -> None:
            with mixed_precision(device):
                loss = network.loss(batch, random)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return once

    published = PublishedNetwork(GENES).to(device).train()
    section = section_batch(1, generator)
    seen = moved(section, device)
    seen.positions = section.positions  # on the host, as in training
    rows = {("training step", "published"): measured(step(published, seen, 1e-5), device, 20 if on_gpu else 1)}
    published.eval()

    @torch.inference_mode()
    def predict_published() -> None:
        with mixed_precision(device):
            published(seen.patches, seen.positions)

    rows["prediction", "published"] = measured(predict_published, device, 20 if on_gpu else 3)

    config = hggep.Config()
    encoder = load("efficientnet_lite0").to(device).eval()
    fields = moved(section_batch(len(config.fields_px), generator), device)
    sight = encoder.sight
    assert sight is not None  # of a convolutional network
    n_fields, side = len(config.fields_px), side_of_crop(PATCH, sight)
    crops = torch.randint(0, 256, (SPOTS * n_fields, 3, side, side), dtype=torch.uint8, generator=generator).to(device)
    fast = encoder.for_inference()

    @torch.inference_mode()
    def encode() -> torch.Tensor:
        found = []
        for crop in crops.split(1024 if on_gpu else 8):
            with encoder_precision(device):
                found.append(torch.cat([middle(maps, PATCH / side) for maps in fast.maps(crop)], 1))
        return torch.cat(found).unflatten(0, (SPOTS, n_fields))

    rows["encoding, once for all epochs", "default"] = measured(encode, device, 5 if on_gpu else 1)
    features = encode().clone()
    groups = encoder.groups
    seen = seen_by_each(len(groups), networks_for(len(groups)))
    fields.patches, fields.positions = None, fields.positions.float()
    networks, steps = [], []
    for part in seen:
        own, columns = groups[part.first : part.end], part.columns(groups)
        network = HGGEPNetwork(config, GENES, encoder=encoder, groups=own, n_fields=len(config.fields_px)).to(device)
        network.start_from(fields.expression.mean(0), torch.eye(config.n_components, GENES), fields.counts.mean(0))
        batch = replace(fields, features=features[..., columns].contiguous())
        networks.append(network)
        steps.append(step(network.train(), batch, 1e-3))
    rows["training step", "default"] = measured(lambda: [once() for once in steps], device, 20)
    ensemble = averaged(networks, groups, seen).eval()

    @torch.inference_mode()
    def predict() -> None:
        with mixed_precision(device):
            ensemble.decode(encode(), fields.positions)

    rows["prediction", "default"] = measured(predict, device, 5 if on_gpu else 1)
    found = pd.DataFrame(rows).T.rename_axis(["what", "preset"]).reset_index()
    found["floor_s"] = (
        1e12 * found["tera_operations"] / matrix_rate(device, torch.bfloat16 if on_gpu else torch.float32)
    )
    found.insert(
        0, "device", torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    )
    return found


def main() -> None:
    """Measure on one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    found = rows_of(torch.device(options.device)).assign(**made_by())
    file = RESULTS / "speed.csv"
    if file.exists():
        found = pd.concat([pd.read_csv(file), found]).drop_duplicates(["device", "what", "preset"], keep="last")
    found.to_csv(file, index=False, float_format="%.6f")
    (RESULTS / "speed.md").write_text(report(found))
    print(report(found))


def report(found: pd.DataFrame) -> str:
    """Return what has been measured so far, on this and other machines, as Markdown."""
    text = ["# A section of 180 spots, by preset", "", table(found.drop(columns=[*made_by()]).set_index("device")), ""]
    for device, rows in found.groupby("device"):
        steps = rows[rows["what"] == "training step"].set_index("preset")["seconds"]
        ratio = steps["published"] / steps["default"]
        text += [f"{device}: a training step of `published` takes {ratio:.0f} times as long as one of `default`.", ""]
    return "\n".join([*text, f"{made(found)}.", ""])


if __name__ == "__main__":
    main()
