"""Ways of running the frozen encoder of `default`: time of a patch, and how far its features are from those as trained.

    python benchmarks/encoder.py                 # a GPU if there is one, else one thread of the CPU
    python benchmarks/encoder.py --device cpu

`folded` does in its convolutions what the batch normalisation after them did (`Encoder.for_inference`); then with
channels last, in bfloat16 by autocast, and compiled (`torch.compile`), whose compiling is timed apart. The ways take
turns, the least of some rounds counts. Writes results/encoder.csv and .md beside this file; rows of another device
stay.
"""

import argparse
import platform
import time
from collections.abc import Callable

import pandas as pd
import torch
from accuracy import RESULTS, table

import hggep_sc as hggep
from hggep_sc.config import Config
from hggep_sc.nn import shufflenet_encoder

ROUNDS = 5
PATCHES = {"cpu": 16, "cuda": 1024}  # at once, as the package gives them: 16 a thread; 64 to 256 spots of four fields
MEMORY = {"": torch.contiguous_format, ", channels last": torch.channels_last}


def ways(device: torch.device) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return encoders by name, all with the same weights."""
    torch.manual_seed(0)
    trained = shufflenet_encoder(Config()).to(device).eval()
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"as trained": trained}
    for name, memory in MEMORY.items():
        folded = trained.for_inference()
        folded.memory_format = memory
        folded.backbone.to(memory_format=memory)
        found[f"folded{name}"] = folded
        found[f"folded{name}, bfloat16"] = torch.autocast(device.type, torch.bfloat16)(folded)
        found[f"folded{name}, compiled"] = torch.compile(folded)
        found[f"folded{name}, bfloat16, compiled"] = torch.compile(torch.autocast(device.type, torch.bfloat16)(folded))
    return found


@torch.inference_mode()
def rows_of(device: torch.device) -> pd.DataFrame:
    """Time every way."""

    def seconds(work: Callable[[torch.Tensor], torch.Tensor]) -> float:
        started = time.perf_counter()
        work(patches)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(256, (PATCHES[device.type], 3, 112, 112), dtype=torch.uint8, generator=generator).to(device)
    found = ways(device)
    first = {name: seconds(work) for name, work in found.items()}
    least = {name: min(seconds(work) for _ in range(ROUNDS)) for name, work in found.items()}
    expected = found["as trained"](patches)
    rows = {
        name: {
            "ms_a_patch": 1e3 * least[name] / len(patches),
            "times_faster": least["as trained"] / least[name],
            "first_call_s": first[name],
            "relative_error": float((work(patches).float() - expected).norm() / expected.norm()),
        }
        for name, work in found.items()
    }
    called = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, one thread"
    return pd.DataFrame(rows).T.rename_axis("encoder").reset_index().assign(device=called)


def main() -> None:
    """Time the encoder on one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=PATCHES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows_of(torch.device(options.device))
    file = RESULTS / "encoder.csv"
    if file.exists():
        found = pd.concat([pd.read_csv(file), found]).drop_duplicates(["device", "encoder"], keep="last")
    found.to_csv(file, index=False, float_format="%.5f")
    text = ["# Ways of running the frozen encoder", "", table(found.set_index("device")), ""]
    text += [f"{platform.machine()}; hggep_sc {hggep.__version__}, torch {torch.__version__}."]
    (RESULTS / "encoder.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
