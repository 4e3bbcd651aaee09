"""Predict a slide by `predict_slides`, and be killed when the so-many-th file is about to be put in its place."""

import os
import signal
import sys
from pathlib import Path

import hggep_sc as hggep
from hggep_sc.features import slide as features


def main(model: str, slide: str, out: str, times: str) -> None:
    done, put = [], Path.replace

    def killed(self: Path, target: Path) -> Path:
        done.append(target)
        if len(done) == int(times):
            os.kill(os.getpid(), signal.SIGKILL)
        return put(self, target)

    Path.replace, features.PART_SPOTS = killed, 5
    slides = {"slide": Path(slide)}
    hggep.tl.predict_slides(slides, hggep.HGGEP.load(model), out, chunk_spots=16, device="cpu", progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
