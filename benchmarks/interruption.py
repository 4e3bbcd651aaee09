"""A prediction killed halfway, and what the rerun has left to do.

    python benchmarks/interruption.py                  # 2,500 spots
    python benchmarks/interruption.py --spots 10000

Each prediction runs in a process of its own, of the same slide by the same model (those of scale.py): without a folder
for what is known, with one, with one until half of the spots are described, when it is sent SIGKILL, and once more with
that folder. Seconds are those of `tl.predict`, to the
kill of the killed one.

Writes results/interruption.csv and results/interruption.md beside this file.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from accuracy import RESULTS, made, made_by, table
from scale import MPP, model, on
from slides import write_slide

import hggep_sc as hggep
from hggep_sc.storage.sealed import unsealed

SPACING = 200  # px between spots
UNDER_WAY = 5  # seconds from when half of the spots are known to the kill
WITHOUT, WITH, KILLED, RERUN = "without a folder", "with one", "killed halfway", "rerun"


def side_of(n_spots: int) -> int:
    """Return the side of the slide, px."""
    return round(n_spots**0.5 * SPACING)


def one(folder: Path, result: Path, checkpoint_dir: Path | None, n_spots: int, device: str) -> None:
    """Predict the slide in this process."""
    fitted, image, side = hggep.HGGEP.load(folder / "model"), folder / "slide.tif", side_of(n_spots)
    everywhere = hggep.pp.TissueMask(np.ones((1, 1), dtype=bool), np.array([side, side]), MPP)
    slide = hggep.pp.tile(image, spacing_um=SPACING * MPP, mpp=MPP, model=fitted, tissue=everywhere)
    print("begun", flush=True)
    hggep.tl.predict(slide, fitted, checkpoint_dir=checkpoint_dir, device=device, progress=False)
    print("done", flush=True)
    np.save(result, slide.layers["hggep"])


def known(checkpoint_dir: Path) -> int:
    """Spots that a rerun has not to describe again."""
    files = checkpoint_dir.glob("section_0/*/features/*.safetensors")
    return sum(len(unsealed(file.read_bytes())[0]["indices"]) for file in files)


def run(what: str, folder: Path, checkpoint_dir: Path | None, n_spots: int, device: str) -> dict[str, object]:
    """Predict in another process, or until half is known where it is to be killed; return a row of the table."""
    command = [sys.executable, __file__, "--spots", str(n_spots), "--device", device]
    command += ["--one", str(folder), str(folder / f"{what}.npy")]
    kept = checkpoint_dir or folder / "none"
    before = known(kept)
    with subprocess.Popen([*command, *filter(None, [checkpoint_dir])], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.perf_counter()
        if what == KILLED:
            while known(kept) < n_spots // 2:
                time.sleep(0.5)
            time.sleep(UNDER_WAY)
            process.kill()
        process.stdout.readline()
        seconds = time.perf_counter() - started
    if process.returncode != (-signal.SIGKILL if what == KILLED else 0):
        raise RuntimeError(f"{what}: {' '.join(map(str, process.args))} failed")
    return {
        **on(device),
        "prediction": what,
        "known before": before,
        "known after": known(kept),
        "seconds": seconds,
        "folder_mb": sum(file.stat().st_size for file in kept.rglob("*") if file.is_file()) / 1e6,
    }


def main() -> None:
    """Run all four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=2_500)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, result, *checkpoint_dir = options.one
        one(folder, result, checkpoint_dir[0] if checkpoint_dir else None, options.spots, options.device)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model().save(folder / "model")
        write_slide(folder / "slide.tif", side_of(options.spots))
        folders = {WITHOUT: None, WITH: folder / "whole", KILLED: folder / "killed", RERUN: folder / "killed"}
        rows = [run(what, folder, kept, options.spots, options.device) for what, kept in folders.items()]
        whole, rerun = (np.load(folder / f"{what}.npy") for what in (WITH, RERUN))
    found = pd.DataFrame(rows).assign(spots=options.spots, equal=np.array_equal(whole, rerun), **made_by())
    found.to_csv(RESULTS / "interruption.csv", index=False, float_format="%.4f")
    (RESULTS / "interruption.md").write_text(report(found))
    print(report(found))


def report(rows: pd.DataFrame) -> str:
    """Return the figures as Markdown."""
    seconds = rows.set_index("prediction")["seconds"]
    lost, cost = seconds[KILLED] + seconds[RERUN] - seconds[WITH], seconds[WITH] / seconds[WITHOUT] - 1
    equal = "bit for bit that" if rows["equal"].all() else "NOT that"
    lines = [
        "# A prediction killed halfway",
        "",
        table(rows.drop(columns=["equal", *made_by()]).set_index("device")),
        "",
        f"The folder costs {cost:.0%} of time; the kill cost {lost:.0f} s beside an uninterrupted prediction. "
        f"The rerun's prediction is {equal} of the uninterrupted one.",
        f"{made(rows)}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
