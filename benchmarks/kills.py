"""Fits killed at random moments and gone on with, beside uninterrupted ones.

    python benchmarks/kills.py             # 20 kills of each of five kinds of fit
    python benchmarks/kills.py --kills 3

Every fit runs in a process of its own, of three sections or more. It is sent SIGKILL after its first checkpoint, by a
time drawn evenly from how long an uninterrupted fit takes from there on, and the same call goes on with `resume=True`,
to be killed again in a third of the cases before it may end. A fit that ended before its kill does not count, and
another takes its place.

Writes results/kills.csv and results/kills.md beside this file.
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from accuracy import RESULTS, made, made_by, table

import hggep_sc as hggep
from hggep_sc.tl import fit  # loaded once, before there are other processes

SMALL = {
    "epochs": 5,
    "patch_size": 16,
    "fields_um": (60.0,),
    "fields_px": (60.0,),
    "width": 16,
    "vit_heads": 2,
    "n_components": 4,
}
ALONE = {**SMALL, "ensemble": 1, "cross_fit": False}
LEARNING = {"gem": True, "cbam": True, "backbone_learning_rate": 1e-4}
KINDS = {
    "plain: two networks, each section left out in turn": {"config": {**SMALL, "epochs": 2, "ensemble": 2}},
    "checkpoint_every=2": {"config": {**ALONE, "epochs": 7}, "checkpoint_every": 2},
    "encoder that learns": {"config": {**ALONE, **LEARNING}},
    "validation=": {"config": {**ALONE, "patience": 3}, "validation": 0.3},
    "chunk_spots=": {"config": {**ALONE, "chunk_spots": 10}},
}
AGAIN = 1 / 3  # share of resumed fits that are killed once more


def fitted(data: dict, how: dict, folder: Path, *, resume: bool) -> None:
    """Fit in this process, and note the model."""
    how = {"genes": 12, "weights": None, "device": "cpu", "progress": False, **how}
    model = fit(data, checkpoint_dir=folder / "run", resume=resume, **how)
    losses = " ".join(map(repr, model.history["loss"]))
    (folder / "model").write_text(f"{model.id} {losses}")


def begun(call: Callable[[], None]) -> int:
    """Begin a call in a process of its own, which has everything imported; return its number."""
    if (process := os.fork()) == 0:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    return process


def ended(process: int) -> int:
    """Wait for its end, and return its exit code: 0, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def await_checkpoint(process: int, folder: Path) -> None:
    """Wait until a process's fit has a checkpoint."""
    while not checkpoints(folder):
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise RuntimeError(f"the fit in {folder} ended without a checkpoint")
        time.sleep(0.001)


def killed(call: Callable[[], None], folder: Path, after: float) -> bool:
    """Call in a process that is killed some seconds after there is a checkpoint; False where it ended before."""
    process = begun(call)
    await_checkpoint(process, folder)
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    return ended(process) == -signal.SIGKILL


def checkpoints(folder: Path) -> int:
    """How many networks have one."""
    return sum("last.ckpt" in files for _, _, files in os.walk(folder / "run"))  # which minds no file that goes away


def kills_of(kind: str, n_kills: int, n_sections: int, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """Yield a row for each kill."""
    data, how = hggep.datasets.synthetic(n_sections, 24, n_genes=20), KINDS[kind]
    with tempfile.TemporaryDirectory() as name:
        process = begun(lambda: fitted(data, how, Path(name), resume=False))
        await_checkpoint(process, Path(name))
        started = time.perf_counter()
        if ended(process):
            raise RuntimeError(f"{kind}: the uninterrupted fit failed")
        whole, seconds = (Path(name) / "model").read_text(), time.perf_counter() - started
    done = 0
    while done < n_kills:
        with tempfile.TemporaryDirectory() as name:
            folder, moment = Path(name), rng.uniform(0, seconds)
            if not killed(lambda: fitted(data, how, folder, resume=False), folder, moment):  # noqa: B023 called at once
                continue
            found, kills = checkpoints(folder), 1
            if rng.random() < AGAIN:
                kills += killed(lambda: fitted(data, how, folder, resume=True), folder, rng.uniform(0, seconds))  # noqa: B023
            code = ended(begun(lambda: fitted(data, how, folder, resume=True)))  # noqa: B023
            equal = code == 0 and (folder / "model").read_text() == whole
            done += 1
            yield {"fit": kind, "sections": n_sections, "moment": moment / seconds, "kills": kills} | {
                "networks with a checkpoint": found,
                "equal": equal,
            }


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind of fit")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng, rows = np.random.default_rng(options.seed), []
    for number, kind in enumerate(KINDS):
        for row in kills_of(kind, options.kills, 3 + number % 3, rng):
            rows.append(row)
            print(row, flush=True)
    found = pd.DataFrame(rows).assign(**made_by())
    found.to_csv(RESULTS / "kills.csv", index=False, float_format="%.4f")
    (RESULTS / "kills.md").write_text(report(found))
    print(report(found))


def report(rows: pd.DataFrame) -> str:
    """Return the figures as Markdown."""
    kinds = rows.groupby("fit", sort=False).agg(
        sections=("sections", "first"),
        fits=("equal", "size"),
        kills=("kills", "sum"),
        networks_with_a_checkpoint=("networks with a checkpoint", lambda found: f"{found.min()} to {found.max()}"),
        equal=("equal", "sum"),
    )
    lines = [
        "# Fits killed at random moments",
        "",
        table(kinds),
        "",
        f"Gone on with, {int(rows['equal'].sum())} of {len(rows)} killed fits ended with the model and the losses of "
        "an uninterrupted one, bit for bit.",
        f"{made(rows)}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
