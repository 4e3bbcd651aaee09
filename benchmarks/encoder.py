"""Ways of running the frozen encoder of `default`: time of a patch, and how far its features are from those as trained.

    python benchmarks/encoder.py                 # a GPU if there is one, else the CPU
    python benchmarks/encoder.py --device cpu

`folded` does in its convolutions what the batch normalisation after them did (`Encoder.for_inference`); then with
channels last, in bfloat16 by autocast, and compiled (`torch.compile`), whose compiling is timed apart. On a CPU by one
thread alone, and by all of them, each at work on patches of its own, as the package has it. The least of some rounds
counts. Writes results/encoder.csv and .md beside this file; rows of another device
stay.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from accuracy import RESULTS, made, made_by, table

from hggep_sc.config import Config
from hggep_sc.nn import shufflenet_encoder
from hggep_sc.runtime.threads import compute_alone

ROUNDS = 5
BATCHES = 8  # a round
PATCHES = {"cpu": 16, "cuda": 1024}  # at once, as the package gives them: 16 a thread; 64 to 256 spots of four fields
MEMORY = {"": torch.contiguous_format, ", channels last": torch.channels_last}


def ways(device: torch.device) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return encoders by name, all with the same weights."""
    torch.manual_seed(0)
    trained = shufflenet_encoder(Config()).to(device).eval()
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"as trained": trained}
    for name, memory in MEMORY.items():
        folded = deepcopy(trained)
        folded.memory_format = memory
        folded.backbone.fold(memory)
        found[f"folded{name}"] = folded
        found[f"folded{name}, bfloat16"] = torch.autocast(device.type, torch.bfloat16)(folded)
        found[f"folded{name}, compiled"] = torch.compile(folded, dynamic=True)
        found[f"folded{name}, bfloat16, compiled"] = torch.compile(torch.autocast(device.type, torch.bfloat16)(folded))
    return found


def rows_of(device: torch.device) -> pd.DataFrame:
    """Time every way."""
    on_gpu = device.type == "cuda"
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(256, (PATCHES[device.type], 3, 112, 112), dtype=torch.uint8, generator=generator).to(device)

    @torch.inference_mode()
    def seconds(work: Callable[[torch.Tensor], torch.Tensor]) -> float:
        started = time.perf_counter()
        for _ in range(BATCHES):
            work(patches)
        if on_gpu:
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / BATCHES

    n_threads = 1 if on_gpu else torch.get_num_threads()
    found = ways(device)
    with (
        ThreadPoolExecutor(1, initializer=compute_alone) as one,
        ThreadPoolExecutor(n_threads, initializer=compute_alone) as every,
    ):

        def alone(work: Callable[[torch.Tensor], torch.Tensor]) -> float:
            return one.submit(seconds, work).result()

        def together(work: Callable[[torch.Tensor], torch.Tensor]) -> float:
            return float(np.mean(list(every.map(seconds, [work] * n_threads)))) / n_threads

        first = {name: alone(work) for name, work in found.items()}
        least = {name: min(alone(work) for _ in range(ROUNDS)) for name, work in found.items()}
        shared = {name: min(together(work) for _ in range(ROUNDS)) for name, work in found.items()}
    with torch.inference_mode():
        expected = found["as trained"](patches)
        errors = {
            name: float((work(patches).float() - expected).norm() / expected.norm()) for name, work in found.items()
        }
    rows = {
        name: {
            "ms_a_patch": 1e3 * least[name] / len(patches),
            "times_faster": least["as trained"] / least[name],
            "threads": n_threads,
            "ms_a_patch_by_all": 1e3 * shared[name] / len(patches),
            "times_faster_by_all": shared["as trained"] / shared[name],
            "first_call_s": BATCHES * first[name],
            "relative_error": errors[name],
        }
        for name in found
    }
    called = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    return pd.DataFrame(rows).T.rename_axis("encoder").reset_index().assign(device=called)


def main() -> None:
    """Time the encoder on one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=PATCHES)
    options = parser.parse_args()
    found = rows_of(torch.device(options.device)).assign(**made_by())
    file = RESULTS / "encoder.csv"
    if file.exists():
        found = pd.concat([pd.read_csv(file), found]).drop_duplicates(["device", "encoder"], keep="last")
    found.to_csv(file, index=False, float_format="%.5f")
    (RESULTS / "encoder.md").write_text(report(found))
    print(report(found))


def report(found: pd.DataFrame) -> str:
    """Return what has been measured so far, on this and other machines, as Markdown."""
    text = ["# Ways of running the frozen encoder", "", table(found.drop(columns=[*made_by()]).set_index("device")), ""]
    return "\n".join([*text, f"{made(found)}.", ""])


if __name__ == "__main__":
    main()
