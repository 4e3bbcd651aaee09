"""Time of what is done to a spot's patches: reading, statistics of colour and texture, encoding in eight views.

    python benchmarks/encoding.py

Spots of section C5 of her2st, four fields of view of 112 px, one thread. Each step is timed beside its counterpart, the
two in turn: the encoder as it is trained, statistics by scikit-image and NumPy. The whole is timed in wall time on all
cores, whose threads share the spots; the counterpart has all threads at work on each step. So it is with the encoder
compiled (`torch.compile`) and in bfloat16, which the package does not do on a CPU, beside the whole as it is. Needs
HGGEP_SHARED. Writes results/encoding.csv and results/encoding.md beside this file.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import hggep_sc as hggep
from hggep_sc.config import Config
from hggep_sc.features.colours import colour_and_texture
from hggep_sc.features.describe import DIHEDRAL, describe_parts, of_patches, of_views
from hggep_sc.features.patches import fields_of_view, read_patches
from hggep_sc.features.weights import load_pretrained
from hggep_sc.nn import shufflenet_encoder
from hggep_sc.section import open_sections

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from plain_colours import plain_colour_and_texture

RESULTS = Path(__file__).parent / "results"
SPOTS, BATCH, ROUNDS = 48, 16, 5


def least(works: list[Callable[[], object]], clock: Callable[[], float]) -> list[float]:
    """Least seconds of each over some rounds, in which they take turns."""
    taken = np.full((ROUNDS, len(works)), np.inf)
    for of_round in taken:
        for i, work in enumerate(works):
            started = clock()
            work()
            of_round[i] = clock() - started
    return taken.min(0).tolist()


@torch.inference_mode()
def main() -> None:
    """Time every step, and its counterpart."""
    if "HGGEP_SHARED" not in os.environ:
        sys.exit("HGGEP_SHARED is not set: it names the folder of real sections and weights")
    torch.set_num_threads(1)
    shared = Path(os.environ["HGGEP_SHARED"])
    hggep.settings.dataset_dir = shared / "data"
    (section,) = open_sections(hggep.datasets.her2st(["C5"]))
    config = Config()
    fields, size = fields_of_view(config, section.mpp, section.mpp), config.patch_size
    encoder = shufflenet_encoder(config).eval()
    load_pretrained(encoder, shared / "weights" / "shufflenetv2_x0_5_trunk.pth")
    folded = encoder.for_inference()
    ways = encoder, folded, torch.compile(folded, dynamic=True), torch.autocast("cpu", torch.bfloat16)(folded)
    plain, fast, compiled, halved = (of_views(of_patches(module), DIHEDRAL) for module in ways)
    colours = of_patches(colour_and_texture)
    xy, cpu = section.xy[:: len(section.xy) // SPOTS][:SPOTS], torch.device("cpu")
    with section.open_image() as image:
        read_patches(image, xy[:1], fields, size)  # an image that is read whole is decoded here

        def read() -> torch.Tensor:
            return torch.from_numpy(read_patches(image, xy, fields, size))

        def one_after_the_other() -> None:
            for start in range(0, SPOTS, BATCH):
                few = torch.from_numpy(read_patches(image, xy[start : start + BATCH], fields, size))
                fast(few), colours(few)

        def at_once(encode: Callable[[torch.Tensor], torch.Tensor] = fast) -> None:
            list(describe_parts(image, [xy], fields, size, [encode, colours], batch_size=BATCH, device=cpu))

        patches = read()
        flat = patches.flatten(0, 1).numpy()
        steps = {
            "reading": least([read], time.process_time),
            "colour and texture": least(
                [lambda: colours(patches), lambda: plain_colour_and_texture(flat)], time.process_time
            ),
            "encoding, eight views": least([lambda: fast(patches), lambda: plain(patches)], time.process_time),
        }
        torch.set_num_threads(os.cpu_count() or 1)
        steps["all, wall time, all cores"] = least([at_once, one_after_the_other], time.perf_counter)
        steps["the same, compiled"] = least([lambda: at_once(compiled), at_once], time.perf_counter)
        steps["the same, bfloat16"] = least([lambda: at_once(halved), at_once], time.perf_counter)
    rows = []
    for name, (own, *other) in steps.items():
        counterpart = other[0] if other else np.nan
        rows.append([name, 1e3 * own / SPOTS, 1e3 * counterpart / SPOTS, counterpart / own])
    result = pd.DataFrame(rows, columns=["step", "ms_per_spot", "counterpart_ms_per_spot", "times_faster"])
    RESULTS.mkdir(exist_ok=True)
    result.to_csv(RESULTS / "encoding.csv", index=False, float_format="%.2f")
    lines = [" | ".join(result.columns), " | ".join(["---"] * 4)]
    lines += [
        " | ".join(["" if value != value else value if isinstance(value, str) else f"{value:.1f}" for value in row])
        for row in rows
    ]
    body = "\n".join(f"| {line} |" for line in lines)
    note = (
        f"{SPOTS} spots of her2st C5, four patches of {size} px each; least of {ROUNDS} rounds, one thread; CPU "
        "seconds of the process but for the last three rows. Counterparts: scikit-image and NumPy, a patch at a time; "
        "the encoder as it is trained; all threads at work on each step in turn; the encoder as it is, twice. "
        f"hggep_sc {hggep.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores."
    )
    (RESULTS / "encoding.md").write_text(f"# Time of describing a spot's patches\n\n{body}\n\n{note}\n")
    print((RESULTS / "encoding.md").read_text())


if __name__ == "__main__":
    main()
